"""The sans-IO session: every call ends once, and nothing is taken for another call's."""

from array import array
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscalls import abi, wire
from syscalls.abi import Event
from syscalls.errors import (
    E2BIG,
    EAGAIN,
    EBADCTX,
    ECONNRESET,
    EINVAL,
    EIO,
    ENOTSUP,
    EPROTO,
    Errno,
    KernelError,
)
from syscalls.session import (
    Exited,
    Pending,
    Progress,
    Rewind,
    Session,
    Signalled,
    Token,
    make_row,
)
from tests.helpers import golden


def reply(*events: list[Any], ids: list[int] | None = None) -> list[bytes]:
    frames = [wire.pack_events(list(events))]
    return frames if ids is None else [*frames, wire.pack_ids(ids)]


def fin(call: int, length: int = 0, count: int = 0) -> list[Any]:
    return [Event.FIN, call, [0, length], count]


def err(call: int, errno: int = Errno.EBADCTX) -> list[Any]:
    return [Event.ERR, call, errno, "what", "next", {"limit": 3}]


def started(count: int) -> tuple[Session, list[Pending]]:
    session = Session()
    return session, [session.request("read_ctx", 1)[0] for _ in range(count)]


# --- out ------------------------------------------------------------------------------------------


def test_call_ids_rise_from_one() -> None:
    _, pendings = started(5)
    assert [pending.call for pending in pendings] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", golden.REQUESTS)
def test_requests_are_what_the_kernel_decodes(name: str) -> None:
    ids = golden.IDS.get(name)
    pending, frames = Session().request(golden.call_of(name), *golden.REQUESTS[name], ids=ids)
    request = wire.unpack_request(frames)
    assert (request.call, request.row.name) == (pending.call, golden.call_of(name))
    assert list(request.ids or ()) == list(ids or ())


def test_arguments_left_out_take_their_default() -> None:
    _, frames = Session().request("infer", 5)
    args = wire.unpack_request(frames).args
    assert args._replace(stop_ids=()) == abi.Infer(5)


def test_flags_travel() -> None:
    _, frames = Session().request("append", 5, ids=[1], flags=abi.Flag.QUEUE)
    assert wire.unpack_request(frames).flags == abi.Flag.QUEUE


def test_reserved_calls_can_be_sent() -> None:
    """So that the kernel, which may be newer, says whether it has them."""
    pending, frames = Session().request("embed")
    with pytest.raises(wire.BadRequest) as caught:
        wire.unpack_request(frames)
    assert isinstance(caught.value.error, ENOTSUP)
    assert caught.value.call == pending.call


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        ("nonsense", (), EINVAL),
        ("stat_ctx", (), EINVAL),
        ("stat_ctx", (1, 2), EINVAL),
        ("stat_ctx", (2**64,), EINVAL),
        ("stat_ctx", (object(),), EINVAL),
        ("alloc_ctx", (1, "\ud800"), EINVAL),
        ("alloc_ctx", (1, None, "x" * abi.MAX_FRAME), E2BIG),
    ],
)
def test_what_cannot_be_sent(name: str, args: tuple[Any, ...], error: type[KernelError]) -> None:
    session = Session()
    with pytest.raises(error):
        session.request(name, *args)
    assert session.in_flight == 0


@pytest.mark.parametrize(
    ("ids", "error"), [([-1], EINVAL), ([2**31], EINVAL), (array("i", [1]) * (2**18 + 1), E2BIG)]
)
def test_ids_that_cannot_be_sent(ids: Any, error: type[KernelError]) -> None:
    session = Session()
    with pytest.raises(error):
        session.request("append", 1, ids=ids)
    assert session.in_flight == 0
    assert session.request("append", 1, ids=[1])[0].call == 1


def test_handles_rise_under_their_connection() -> None:
    session = Session()
    session.bind(0xAB)
    handles = [session.handle() for _ in range(100)]
    assert handles == sorted(set(handles))
    assert {handle >> 24 for handle in handles} == {0xAB}
    assert handles[0] == 0xAB000001


def test_handles_run_out() -> None:
    session = Session()
    session._handles = 2**24 - 2
    assert session.handle() == 2**24 - 1
    with pytest.raises(EAGAIN):
        session.handle()


@pytest.mark.parametrize("connection", [-1, 256])
def test_connection_out_of_range(connection: int) -> None:
    with pytest.raises(EPROTO):
        Session().bind(connection)


# --- in -------------------------------------------------------------------------------------------


def test_a_result() -> None:
    session, (pending,) = started(1)
    assert session.receive(reply(fin(1, 9))) == [pending]
    assert pending.done
    assert pending.value() == abi.ReadCtxResult(0, 9)
    assert session.in_flight == 0


def test_an_error() -> None:
    session, (pending,) = started(1)
    session.receive(reply(err(1)))
    with pytest.raises(EBADCTX) as caught:
        pending.value()
    assert caught.value.hint == "next"
    assert caught.value.details == {"limit": 3}


def test_an_error_of_a_newer_kernel() -> None:
    session, (pending,) = started(1)
    session.receive(reply(err(1, 4711)))
    with pytest.raises(EIO, match="4711"):
        pending.value()


def test_events_of_a_call_stay_in_order() -> None:
    session, (pending,) = started(1)
    token = [Event.TOKEN, 1, [5], [-0.5], [[[5, -0.5], [6, -1.0]]]]
    session.receive(reply([Event.PROGRESS, 1, "prefill", 3, 9], token, [Event.REWIND, 1, 4]))
    session.receive(reply([Event.TOKEN, 1, [6], None, None], fin(1)))
    assert list(pending.events) == [
        Progress("prefill", 3, 9),
        Token([5], [-0.5], [[(5, -0.5), (6, -1.0)]]),
        Rewind(4),
        Token([6], None, None),
    ]


def test_events_about_the_session() -> None:
    session, _ = started(1)
    assert session.receive(reply([Event.SIGNAL, 0, 15], [Event.EXIT, 0, 52, 3, "exit"])) == []
    assert list(session.events) == [Signalled(15), Exited(52, 3, "exit")]
    assert session.lost is None


def test_an_error_about_the_session_ends_it() -> None:
    """Nobody knows which call it was about, and none may wait for ever."""
    session, pendings = started(2)
    assert session.receive(reply(err(0, Errno.EPROTO))) == pendings
    assert all(pending.done for pending in pendings)
    assert isinstance(session.events[0], EPROTO)
    with pytest.raises(EPROTO):
        session.request("stat_task")


def test_unknown_event_kinds_are_a_newer_kernels() -> None:
    session, (pending,) = started(1)
    session.receive(reply([99, 1, "what"], [99, 0], fin(1)))
    assert pending.done


def test_fields_that_a_newer_kernel_adds_are_left_out() -> None:
    session, (pending,) = started(1)
    session.receive(reply([Event.FIN, 1, [0, 9, "new"], 0, "newer"]))
    assert pending.value() == abi.ReadCtxResult(0, 9)


@pytest.mark.parametrize("second", [fin(1), err(1), [Event.TOKEN, 1, [5], None, None]])
def test_nothing_comes_after_the_end(second: list[Any]) -> None:
    for first in (fin(1), err(1)):
        session, _ = started(1)
        session.receive(reply(first))
        with pytest.raises(EPROTO, match="ended already"):
            session.receive(reply(second))


def test_two_ends_in_one_reply() -> None:
    session, (pending,) = started(1)
    with pytest.raises(EPROTO, match="ended already"):
        session.receive(reply(fin(1, 7), err(1)))
    assert pending.value().length == 7


@pytest.mark.parametrize("call", [2, 77, -1, 2**64 - 1])
@pytest.mark.parametrize("event", [fin, err])
def test_events_of_calls_that_were_never_made(call: int, event: Any) -> None:
    session, _ = started(1)
    with pytest.raises(EPROTO, match="never made"):
        session.receive(reply(event(call)))
    assert session.in_flight == 1


@pytest.mark.parametrize(
    "event",
    [
        [],
        [1],
        "text",
        None,
        {},
        ["1", 1],
        [1, "1"],
        [1.0, 1, [0, 0], 0],
        [Event.FIN, 1],
        [Event.FIN, 1, [0, 0]],
        [Event.FIN, 1, [0], 0],
        [Event.FIN, 1, {}, 0],
        [Event.FIN, 1, [0, 0], -1],
        [Event.FIN, 1, [0, 0], None],
        [Event.FIN, 1, [0, 0], True],
        [Event.ERR, 1],
        [Event.ERR, 1, 2, "what"],
        [Event.ERR, 1, 2, "what", "hint", 5],
        [Event.ERR, 1, [], "what", "hint", {}],
        [Event.TOKEN, 1],
        [Event.TOKEN, 1, 5, None, None],
        [Event.TOKEN, 1, [5], 5, None],
        [Event.TOKEN, 1, [5], None, [[5]]],
        [Event.TOKEN, 1, [5], None, [[[float("inf"), 0.0]]]],
        [Event.PROGRESS, 1, "prefill"],
        [Event.REWIND, 1],
        [Event.SIGNAL, 0],
        [Event.EXIT, 0, 5],
    ],
)
def test_events_out_of_form(event: Any) -> None:
    session, _ = started(1)
    with pytest.raises(EPROTO):
        session.receive(reply(event))


@pytest.mark.parametrize("count", [0, 3])
def test_number_of_frames(count: int) -> None:
    session, _ = started(1)
    with pytest.raises(EPROTO):
        session.receive(reply(fin(1)) * count)


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_any_bytes(frames: list[bytes]) -> None:
    session, _ = started(2)
    try:
        session.receive(frames)
    except EPROTO:
        pass


# --- ids of results -------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), min_size=1, max_size=8))
def test_results_share_frame_2_in_order(parts: list[list[int]]) -> None:
    session, pendings = started(len(parts))
    events = [fin(n + 1, 0, len(part)) for n, part in enumerate(parts)]
    session.receive(reply(*events, ids=[id for part in parts for id in part]))
    assert [list(pending.ids) for pending in pendings] == parts


@pytest.mark.parametrize("count", [0, 1, 3])
def test_frame_2_is_used_up_exactly(count: int) -> None:
    session, _ = started(1)
    with pytest.raises(EPROTO):
        session.receive(reply(fin(1, 0, count), ids=[1, 2]))


def test_a_frame_2_of_broken_ids() -> None:
    session, _ = started(1)
    with pytest.raises(EPROTO):
        session.receive([*reply(fin(1)), b"\x00\x00\x00"])


# --- the end --------------------------------------------------------------------------------------


def test_fail_all_ends_every_call_once() -> None:
    session, pendings = started(3)
    session.receive(reply(fin(2, 4)))
    assert session.fail_all() == [pendings[0], pendings[2]]
    assert session.fail_all() == []
    assert pendings[1].value().length == 4
    for pending in (pendings[0], pendings[2]):
        with pytest.raises(ECONNRESET):
            pending.value()


def test_a_lost_session_makes_no_calls() -> None:
    session, _ = started(1)
    session.fail_all(ECONNRESET("gone"))
    session.fail_all(EIO("later reasons say less"))
    for _ in range(2):
        with pytest.raises(ECONNRESET, match="gone") as caught:
            session.request("stat_task")
        assert len(caught.traceback) < 6  # raising it again must not collect frames


@given(st.data())
def test_every_call_ends_once_whatever_the_order(data: st.DataObject) -> None:
    """Calls, replies with events of many calls, and the kernel's death, interleaved at random."""
    session = Session()
    open_: dict[int, Pending] = {}
    ended: dict[int, Any] = {}
    tokens: dict[int, list[int]] = {}
    for _ in range(data.draw(st.integers(1, 12), "steps")):
        for _ in range(data.draw(st.integers(0, 3), "calls")):
            pending, _ = session.request("read_ctx", 1)
            open_[pending.call], tokens[pending.call] = pending, []
        events: list[list[Any]] = []
        ids: list[int] = []
        for call in data.draw(st.permutations(sorted(open_)), "order")[:4]:
            end = data.draw(st.sampled_from(["token", "fin", "err"]), "event")
            if end == "token":
                tokens[call].append(call)
                events.append([Event.TOKEN, call, [call], None, None])
                continue
            count = call % 3 if end == "fin" else 0
            ids += [call] * count
            events.append(fin(call, call, count) if end == "fin" else err(call))
            ended[call] = (end, open_.pop(call))
        news = session.receive(reply(*events, ids=ids))
        assert [pending.call for pending in news] == [event[1] for event in events]
    session.fail_all()
    for call, (end, pending) in ended.items():
        if end == "fin":
            assert pending.value().length == call
            assert list(pending.ids) == [call] * (call % 3)
        else:
            with pytest.raises(EBADCTX):
                pending.value()
    for pending in open_.values():
        with pytest.raises(ECONNRESET):
            pending.value()
    for pending in [*open_.values(), *(pending for _, pending in ended.values())]:
        got = [id for event in pending.events if isinstance(event, Token) for id in event.ids]
        assert got == tokens[pending.call]
    assert session.in_flight == 0


# --- rows -----------------------------------------------------------------------------------------


def test_rows() -> None:
    assert make_row(abi.LengthResult, [5]) == abi.LengthResult(5)
    assert make_row(abi.LengthResult, [5, 6]) == abi.LengthResult(5)
    assert make_row(None, [5]) == [5]
    wrongs: list[Any] = [[], None, {}, 5]
    for wrong in wrongs:
        with pytest.raises(EPROTO, match="LengthResult"):
            make_row(abi.LengthResult, wrong)


def test_arguments_that_have_their_default_are_not_sent() -> None:
    """So a kernel that does not know the last ones understands a call that does not use them."""
    session = Session()

    def sent(*args: Any) -> Any:
        _, frames = session.request(*args)
        return msgpack.unpackb(frames[0])[4]

    assert sent("infer", 7) == [7]
    assert sent("infer", 7, 512, 1.0, 0, 1.0, 0.0, None, (), True) == [
        7, 512, 1.0, 0, 1.0, 0.0, None, [], True,
    ]  # fmt: skip
    assert sent("hello", "task", None, False, None) == []
    assert sent("hello", "other") == ["other"]
    assert sent("exit", 0) == [] and sent("exit", False) == [False], "equal, and not the same"
