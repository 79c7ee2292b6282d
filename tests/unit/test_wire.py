"""Hostile bytes: whatever arrives, decoding returns a checked request or raises BadRequest."""

import re
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syscalls import abi, wire
from syscalls.errors import E2BIG, EINVAL, ENOTSUP, EPROTO, KernelError
from tests.helpers import golden

GOLDEN = {
    name: [bytes.fromhex(frame) for frame in frames]
    for name, frames in golden.recorded()["requests"].items()
}
PLAIN: list[Any] = [1, 1, 1.0, 0, 1.0, 0.0, None, [], False, None]
"""The arguments of an infer before those that adjust logits."""
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=80)
    | st.binary(max_size=80),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def pack(message: Any) -> bytes:
    frame: bytes = msgpack.packb(message, use_bin_type=True)
    return frame


def refuse(*frames: bytes) -> wire.BadRequest:
    """Decode what must be refused; return how."""
    with pytest.raises(wire.BadRequest) as caught:
        wire.unpack_request(frames)
    bad = caught.value
    clean(bad.error)
    assert bad.__cause__ is None
    return bad


def clean(error: KernelError) -> None:
    """A message for a stranger: short, and nothing of the kernel's inside."""
    for text in (error.message, error.hint):
        assert len(text) < 500
        assert not re.search(r"0x[0-9a-f]{9,}|Traceback|File \"|\.py\b|<\w+ object", text)
        assert not re.search(r"(^|\s)/\w+/", text)


def decode(*frames: bytes) -> KernelError | None:
    """Decode anything; return how it was refused, None if it is a request."""
    try:
        request = wire.unpack_request(frames)
    except wire.BadRequest as bad:
        assert isinstance(bad.call, int) and 0 <= bad.call < 2**64
        clean(bad.error)
        return bad.error
    assert isinstance(request.args, request.row.args)
    return None


# --- anything -------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_any_bytes(frames: list[bytes]) -> None:
    decode(*frames)


@given(VALUES)
def test_any_msgpack(message: Any) -> None:
    decode(pack(message))


@given(st.lists(VALUES, min_size=3, max_size=6), st.binary(max_size=16))
def test_any_message_that_begins_well(rest: list[Any], ids: bytes) -> None:
    decode(pack([abi.VERSION, *rest]), ids)


@settings(max_examples=300)
@given(st.sampled_from(sorted(abi.BY_NUMBER)), st.lists(VALUES, max_size=11), st.integers(0, 3))
def test_any_arguments_of_any_call(number: int, args: list[Any], flags: int) -> None:
    decode(pack([abi.VERSION, number, 1, flags, args]))


@given(st.sampled_from(sorted(GOLDEN)), st.data())
def test_one_argument_exchanged(name: str, data: st.DataObject) -> None:
    message = msgpack.unpackb(GOLDEN[name][0])
    if message[4]:
        at = data.draw(st.integers(0, len(message[4]) - 1))
        message[4][at] = data.draw(VALUES)
    decode(pack(message))


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_every_truncation(name: str) -> None:
    frame, *rest = GOLDEN[name]
    for end in range(len(frame)):
        refuse(frame[:end], *rest)
    for ids in rest:
        for end in range(len(ids)):
            assert isinstance(decode(frame, ids[:end]), EPROTO) == bool(end % 4)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_every_single_bit_flip(name: str) -> None:
    for at, frame in enumerate(GOLDEN[name]):
        for bit in range(8 * len(frame)):
            flipped = bytearray(frame)
            flipped[bit // 8] ^= 1 << bit % 8
            decode(*GOLDEN[name][:at], bytes(flipped), *GOLDEN[name][at + 1 :])


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_trailing_bytes(name: str) -> None:
    frame, *rest = GOLDEN[name]
    assert isinstance(refuse(frame + b"\x00", *rest).error, EPROTO)


# --- shape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [9, 1023, 1024, 60_000])
@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1k"], ids=["arrays", "maps"])
def test_depth(depth: int, opener: bytes) -> None:
    frame = (opener * depth)[: abi.MAX_FRAME - 1] + b"\xc0"
    refuse(frame)


def test_depth_beyond_the_frame() -> None:
    assert isinstance(refuse(b"\x91" * 100_000 + b"\xc0").error, E2BIG)


@pytest.mark.parametrize("depth", [9, 1000])
def test_depth_inside_an_argument(depth: int) -> None:
    head = b"\x95\x01\x0b\x01\x00\x91"  # stat_task with one argument
    assert isinstance(refuse(head + b"\x91" * depth + b"\xc0").error, EINVAL | EPROTO)


def test_a_frame_full_of_empty_maps() -> None:
    refuse(b"\xdc\xff\xff" + b"\x80" * 65_000)
    refuse(b"\xdc\x0f\xff" + b"\x80" * 4095)


@pytest.mark.parametrize(
    "claim",
    [head + b"\xff\xff\xff\xff" for head in (b"\xdd", b"\xdf", b"\xc6", b"\xdb")],
    ids=["array", "map", "bytes", "text"],
)
def test_a_size_that_is_not_there(claim: bytes) -> None:
    refuse(claim)
    refuse(b"\x95\x01\x0b\x01\x00" + claim)


@pytest.mark.parametrize("ext", [b"\xd4\x05x", b"\xd6\xff\x00\x00\x00\x00", b"\xc7\x00\x01"])
def test_extension_types_and_timestamps(ext: bytes) -> None:
    refuse(ext)
    refuse(b"\x95\x01\x0b\x01\x00\x91" + ext)


def test_duplicate_fields() -> None:
    """Arguments are an array, so no field can be said twice; a map in their place is refused."""
    twice = b"\x82\xa3pid\x01\xa3pid\x02"
    assert isinstance(refuse(b"\x95\x01\x0b\x01\x00" + twice).error, EPROTO)


def test_map_keys_that_are_not_text() -> None:
    refuse(b"\x95\x01\x0b\x01\x00\x91\x81\x01\x02")


@pytest.mark.parametrize("count", [0, 3, 4])
def test_number_of_frames(count: int) -> None:
    bad = refuse(*[GOLDEN["stat_task"][0]] * count)
    assert isinstance(bad.error, EPROTO)
    assert str(count) in bad.error.message


@pytest.mark.parametrize("items", [1, 2, 3, 4, 6])
def test_number_of_items_in_frame_1(items: int) -> None:
    bad = refuse(pack([abi.VERSION, 11, 9, 0, [], 0][:items]))
    assert isinstance(bad.error, EPROTO)
    assert bad.call == (9 if items > 2 else 0)


@pytest.mark.parametrize("value", [None, {}, "text", b"bytes", 1, 1.5, True, [], [[]]])
def test_a_message_that_is_no_message(value: Any) -> None:
    assert isinstance(refuse(pack(value)).error, EPROTO)


# --- header ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 2, 255, -1, 2**64 - 1, "1", None, 1.0, True, [1]])
def test_wrong_version_still_answers_the_call(version: Any) -> None:
    bad = refuse(pack([version, 11, 77, 0, []]))
    assert isinstance(bad.error, EPROTO)
    assert bad.call == 77


@pytest.mark.parametrize("call", [0, -1, True, 1.0, "1", None, []])
def test_wrong_call_id_answers_nobody(call: Any) -> None:
    bad = refuse(pack([abi.VERSION, 11, call, 0, []]))
    assert (bad.call, type(bad.error)) == (0, EPROTO)


def test_highest_call_id() -> None:
    assert wire.unpack_request([pack([abi.VERSION, 11, 2**64 - 1, 0, []])]).call == 2**64 - 1


@pytest.mark.parametrize("flags", [2**32, -1, True, "", None])
def test_wrong_flags(flags: Any) -> None:
    bad = refuse(pack([abi.VERSION, 11, 5, flags, []]))
    assert (bad.call, type(bad.error)) == (5, EPROTO)


@pytest.mark.parametrize("number", [True, "hello", None, 5.0])
def test_numbers_that_are_no_call(number: Any) -> None:
    bad = refuse(pack([abi.VERSION, number, 5, 0, []]))
    assert (bad.call, type(bad.error)) == (5, EPROTO)


@pytest.mark.parametrize("number", [0, 12, 999, -1, 2**40])
def test_calls_of_a_newer_abi_are_not_supported(number: int) -> None:
    bad = refuse(pack([abi.VERSION, number, 5, 0, []]))
    assert (bad.call, type(bad.error)) == (5, ENOTSUP)
    assert str(number) in bad.error.message


@pytest.mark.parametrize("flags", [4, 7, 2**32 - 1])
def test_flags_of_a_newer_abi_are_not_supported(flags: int) -> None:
    bad = refuse(pack([abi.VERSION, 11, 5, flags, []]))
    assert (bad.call, type(bad.error)) == (5, ENOTSUP)


@pytest.mark.parametrize("call", abi.CALLS, ids=lambda call: call.name)
def test_ids_go_with_calls_that_take_them(call: abi.Call) -> None:
    if call.args is None:
        return
    frames = golden.request(call.name)[:1]
    if call.ids:
        assert wire.unpack_request([*frames, wire.pack_ids([1])]).ids
        return
    for ids in (b"", wire.pack_ids([1])):
        bad = refuse(*frames, ids)
        assert type(bad.error) is EPROTO and call.name in bad.error.message


@pytest.mark.parametrize("call", [c for c in abi.CALLS if c.args is None], ids=lambda c: c.name)
def test_reserved_numbers_are_not_supported(call: abi.Call) -> None:
    bad = refuse(pack([abi.VERSION, call.number, 5, 0, [1, "x"]]))
    assert (bad.call, type(bad.error)) == (5, ENOTSUP)
    assert call.name in bad.error.message


# --- arguments ------------------------------------------------------------------------------------


def refused(name: str, *args: Any) -> KernelError:
    """Return how a call with these arguments is refused."""
    bad = refuse(pack([abi.VERSION, abi.BY_NAME[name].number, 5, 0, list(args)]))
    assert bad.call == 5
    return bad.error


def test_too_few_arguments() -> None:
    error = refused("alloc_ctx")
    assert isinstance(error, EPROTO) and "1" in error.message


@pytest.mark.parametrize("name", sorted(map(golden.call_of, GOLDEN)))
def test_arguments_of_a_newer_abi_are_not_supported(name: str) -> None:
    newest = [said for said in golden.REQUESTS if golden.call_of(said) == name][-1]
    full = [list(arg) if isinstance(arg, tuple) else arg for arg in golden.REQUESTS[newest]]
    assert isinstance(refused(name, *full, None), ENOTSUP)


@pytest.mark.parametrize(
    ("name", "args", "field"),
    [
        ("stat_task", [True], "pid"),
        ("stat_task", [1.0], "pid"),
        ("stat_task", [-1], "pid"),
        ("stat_task", [2**53 + 1], "pid"),
        ("exit", [256], "status"),
        ("kill", [1, 0], "signal"),
        ("kill", [1, 65], "signal"),
        ("wait", [1, 1], "no_hang"),
        ("alloc_ctx", [2**32], "ctx"),
        ("alloc_ctx", [1, "a b"], "model"),
        ("alloc_ctx", [1, "x" * 129], "model"),
        ("alloc_ctx", [1, None, "a\x00b"], "name"),
        ("alloc_ctx", [1, None, "a\nb"], "name"),
        ("alloc_ctx", [1, None, "e\u0301"], "name"),
        ("alloc_ctx", [1, None, "\u00e9" * 129], "name"),
        ("alloc_ctx", [1, None, b"bytes"], "name"),
        ("hello", ["x" * 65], "name"),
        ("hello", ["../x"], "name"),
        ("hello", [""], "name"),
        ("hello", ["ok\n"], "name"),
        ("hello", ["ok", b"x" * 33], "ticket"),
        ("hello", ["ok", "text"], "ticket"),
        ("infer", [1, 0], "max_tokens"),
        ("infer", [1, 2**31], "max_tokens"),
        ("infer", [1, 1, float("nan")], "temperature"),
        ("infer", [1, 1, float("inf")], "temperature"),
        ("infer", [1, 1, float("-inf")], "temperature"),
        ("infer", [1, 1, -0.1], "temperature"),
        ("infer", [1, 1, True], "temperature"),
        ("infer", [1, 1, "1"], "temperature"),
        ("infer", [1, 1, 1.0, 0, 1.1], "top_p"),
        ("infer", [1, 1, 1.0, 0, 1.0, 0.0, -1], "seed"),
        ("infer", [1, 1, 1.0, 0, 1.0, 0.0, None, [0] * 65], "stop_ids"),
        ("infer", [1, 1, 1.0, 0, 1.0, 0.0, None, [True]], "stop_ids"),
        ("infer", [1, 1, 1.0, 0, 1.0, 0.0, None, [2**31]], "stop_ids"),
        ("infer", [1, 1, 1.0, 0, 1.0, 0.0, None, {}], "stop_ids"),
        ("infer", [1, 1, 1.0, 0, 1.0, 0.0, None, [], 1], "ignore_eos"),
        ("infer", [1, 1, 1.0, 0, 1.0, 0.0, None, [], False, 21], "logprobs"),
        ("infer", [*PLAIN, 0.0], "repetition_penalty"),
        ("infer", [*PLAIN, 1.0, 2.5], "presence_penalty"),
        ("infer", [*PLAIN, 1.0, 0.0, float("nan")], "frequency_penalty"),
        ("infer", [*PLAIN, 1.0, 0.0, 0.0, [[n, 1.0] for n in range(301)]], "logit_bias"),
        ("infer", [*PLAIN, 1.0, 0.0, 0.0, [[1, 1.0], [2]]], "logit_bias"),
        ("infer", [*PLAIN, 1.0, 0.0, 0.0, [[1.0, 1]]], "logit_bias"),
        ("infer", [*PLAIN, 1.0, 0.0, 0.0, [[1, 100.5]]], "logit_bias"),
        ("infer", [*PLAIN, 1.0, 0.0, 0.0, [[1, float("inf")]]], "logit_bias"),
        ("infer", [*PLAIN, 1.0, 0.0, 0.0, {"1": 1.0}], "logit_bias"),
        ("infer", [*PLAIN, 1.0, 0.0, 0.0, [], -1], "penalize_from"),
        ("score", [1, 0], "start"),
        ("score", [1, 1, 21], "top"),
        ("shutdown", [float("nan")], "grace_s"),
        ("shutdown", [3600.5], "grace_s"),
    ],
)  # fmt: skip
def test_values_out_of_range_name_the_field(name: str, args: list[Any], field: str) -> None:
    error = refused(name, *args)
    assert isinstance(error, EINVAL)
    assert f"{name}: {field} must be" in error.message


def test_text_with_lone_surrogates() -> None:
    lone = b"\xa3\xed\xa0\x80"  # U+D800, which UTF-8 does not have
    assert isinstance(refuse(b"\x95\x01\x01\x05\x00\x91" + lone).error, EPROTO)


@given(st.text(max_size=300))
def test_any_title(title: str) -> None:
    message = [abi.VERSION, 32, 1, 0, [1, None, title]]
    try:
        frame = pack(message)
    except UnicodeEncodeError:
        return  # lone surrogates cannot be said at all
    error = decode(frame)
    assert error is None or isinstance(error, EINVAL)


def test_whole_numbers_are_fine_where_a_real_is_asked_for() -> None:
    request = wire.unpack_request([pack([abi.VERSION, 64, 1, 0, [1, 8, 0]])])
    assert request.args.temperature == 0


# --- sizes ----------------------------------------------------------------------------------------


def frame_of(size: int) -> bytes:
    """Return a well-formed frame 1 of exactly this size, refused for its content only."""
    head = b"\x95\x01\x01\x05\x00\x91\xda" + struct.pack(">H", size - 9)
    return head + b"x" * (size - 9)


@pytest.mark.parametrize("size", [abi.MAX_FRAME - 1, abi.MAX_FRAME])
def test_frame_1_within_the_limit(size: int) -> None:
    assert len(frame_of(size)) == size
    assert isinstance(refuse(frame_of(size)).error, EINVAL)


def test_frame_1_over_the_limit() -> None:
    error = refuse(frame_of(abi.MAX_FRAME + 1)).error
    assert isinstance(error, E2BIG)
    assert error.details == {"limit": abi.MAX_FRAME}


@pytest.mark.parametrize("ids", [0, 1, abi.MAX_IDS - 1, abi.MAX_IDS])
def test_frame_2_within_the_limit(ids: int) -> None:
    request = wire.unpack_request([GOLDEN["append"][0], b"\x01\x00\x00\x00" * ids])
    assert request.ids is not None
    assert len(request.ids) == ids


def test_frame_2_over_the_limit() -> None:
    bad = refuse(GOLDEN["append"][0], b"\x00\x00\x00\x00" * (abi.MAX_IDS + 1))
    assert isinstance(bad.error, E2BIG)
    assert bad.call == golden.CALL


def test_frame_2_is_whole_ids() -> None:
    for extra in (1, 2, 3):
        bad = refuse(GOLDEN["append"][0], b"\x00" * (4 + extra))
        assert isinstance(bad.error, EPROTO)
        assert bad.call == golden.CALL


# --- ids and replies ------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**31 - 1), max_size=100))
def test_ids_come_back(ids: list[int]) -> None:
    packed = wire.pack_ids(ids)
    assert packed == struct.pack(f"<{len(ids)}i", *ids)
    assert list(wire.unpack_ids(packed)) == ids


@pytest.mark.parametrize("ids", [[-1], [5, -2], [2**31], [2**70], [1.5], ["a"], [None], "ab"])
def test_ids_out_of_range_are_not_sent(ids: Any) -> None:
    with pytest.raises(EINVAL):
        wire.pack_ids(ids)


@given(st.binary(max_size=300))
def test_any_reply(frame: bytes) -> None:
    try:
        assert isinstance(wire.unpack_events(frame), list)
    except EPROTO as error:
        clean(error)


@pytest.mark.parametrize("version", [0, 2, None, "1", True, 1.0])
def test_a_reply_of_another_version(version: Any) -> None:
    with pytest.raises(EPROTO) as caught:
        wire.unpack_events(pack([version, []]))
    assert "same version" in caught.value.hint
