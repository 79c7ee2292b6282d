"""The safetensors reader against files that lie."""

import json
import resource
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from drivers.models import safetensors_file as reader
from drivers.models.errors import ModelError
from drivers.models.safetensors_file import SafetensorsFile
from tests.helpers.safetensors_writer import entry, file, safetensors

HUGE = 2**64 - 1
ROW = bytes(64)  # of the tensors below: 2 × 8 float32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.safetensors"


def refused(path: Path, data: bytes, *said: str, code: str = "ECORRUPT") -> None:
    """Assert that a file is refused, in one line that helps."""
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        SafetensorsFile(path)
    message = caught.value.message
    assert caught.value.code == code and caught.value.hint
    assert path.name in message and "\n" not in message and len(message) < 500
    for part in said:
        assert part in message


def one(**changes: Any) -> dict[str, Any]:
    """Return a header with the tensor t, and what is changed of it."""
    return {"t": entry("F32", (2, 8), 0, 64) | changes}


# --- sound files ----------------------------------------------------------------------------------


def test_a_file_that_the_library_wrote(path: Path) -> None:
    values = np.arange(24, dtype="f4").reshape(2, 3, 4) / 7
    save_file(
        {"half": values.astype("f2"), "single": values, "row": values[0, 0], "none": values[:0]},
        path,
        {"format": "np"},
    )
    with SafetensorsFile(path) as found:
        assert {name: t.shape for name, t in found.tensors.items()} == {
            "half": (2, 3, 4), "single": (2, 3, 4), "row": (4,), "none": (0, 3, 4),
        }  # fmt: skip
        assert found.float32("single", 0, 2).tolist() == values.tolist()
        assert found.float32("half", 1, 2).tolist() == values.astype("f2")[1:].tolist()
        assert found.float32("row", 1, 3).tolist() == values[0, 0, 1:3].tolist()


def test_the_library_reads_what_the_tests_write(path: Path) -> None:
    """So that what is refused below is refused for the reason that is said."""
    path.write_bytes(safetensors({"t": np.ones((2, 8), "f4"), "u": np.zeros(3, "f4")}, "F32"))
    with safe_open(path, "np") as file:
        assert file.get_tensor("t").tolist() == [[1.0] * 8] * 2
    for header in (one(), {**one(), "__metadata__": {"a": "b"}}):
        path.write_bytes(file_of(header))
        with safe_open(path, "np") as found:
            assert found.keys() == ["t"]


def file_of(header: object, data: bytes = ROW) -> bytes:
    return file(header, data)


def test_bfloat16_is_exact(path: Path) -> None:
    bits = np.array([0x3F80, 0xC049, 0x0001, 0x7F7F, 0x8000], "<u2")
    path.write_bytes(file_of({"t": entry("BF16", (5,), 0, 10)}, bits.tobytes()))
    with SafetensorsFile(path) as found:
        values = found.float32("t", 0, 5)
    assert values.view("<u4").tolist() == [bit << 16 for bit in bits.tolist()]
    assert values[:2].tolist() == [1.0, -3.140625]


@pytest.mark.parametrize("shift", range(1, 9))
def test_data_at_any_byte(path: Path, shift: int) -> None:
    """The format lets a header have any length."""
    values = np.arange(16, dtype="<f4").reshape(2, 8)
    raw = json.dumps(one()).encode()
    path.write_bytes(file_of(raw + b" " * shift, values.tobytes()))
    with SafetensorsFile(path) as found:
        assert found.tensors["t"].offset == 8 + len(raw) + shift
        assert found.float32("t", 0, 2).tolist() == values.tolist()


def test_names_in_any_letters(path: Path) -> None:
    for name in ("h\u00e4h", "\U0001f600", "\\ud83d"):  # the last is a backslash and letters
        path.write_bytes(file_of({name: one()["t"]}))
        with SafetensorsFile(path) as found, safe_open(path, "np") as theirs:
            assert list(found.tensors) == theirs.keys() == [name]


def test_arrays_outlive_the_file(path: Path) -> None:
    path.write_bytes(file_of(one(), pack("<16f", *range(16))))
    with SafetensorsFile(path) as found:
        values = found.float32("t", 0, 2)
    assert values.sum() == 120


# --- files cut short ------------------------------------------------------------------------------


def test_a_file_cut_anywhere(path: Path) -> None:
    whole = safetensors({"t": np.ones((2, 8), "f4"), "u": np.zeros(3, "f4")}, "BF16")
    for size in range(len(whole)):
        refused(path, whole[:size])
    path.write_bytes(whole)
    SafetensorsFile(path).close()
    refused(path, whole + b"\0", f"from {len(whole)} on")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.safetensors", tmp_path):
        with pytest.raises(ModelError, match="cannot read") as caught:
            SafetensorsFile(path)
        assert caught.value.code == "ENOENT" and caught.value.hint


@pytest.mark.parametrize("data", [b"", b"GGUF", bytes(64), b"PK\3\4" + bytes(60)])
def test_other_files(path: Path, data: bytes) -> None:
    refused(path, data, "byte")


# --- headers that lie -----------------------------------------------------------------------------

TWO = {"a": entry("F32", (2, 8), 0, 64), "b": entry("F32", (2, 8), 64, 128)}
LIES: dict[str, tuple[bytes, ...] | tuple[Any, ...]] = {
    "length": (file(one(), ROW, HUGE), "byte 0 is 18446744073709551615", "limit", "16777216"),
    "length at the limit": (file(one(), ROW, 1 << 24), "byte 0 is 16777216", "the file has"),
    "length short": (file(one(), ROW, 10), "no JSON at byte"),
    "length 0": (file(b"", ROW), "no JSON at byte 8"),
    "no object": (file_of([]), "byte 8 is no object but []"),
    "a number": (file_of(b"7" * 40), "is no object but 77"),
    "digits": (file_of(b'{"t": ' + b"7" * 5000 + b"}"), "thousands of digits"),
    "deep": (file_of(b"[" * 100_000), "byte 8 is nested too deep"),
    "deep objects": (file_of(b'{"a":' * 100_000), "byte 8 is nested too deep"),
    "items": (file_of(b"[" + b"0," * 1_100_000), "up to 1100001 items", "1048576"),
    "tensors": (file_of({f"t{n}": 0 for n in range(65_538)}), "65538 tensors", "65536"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "not UTF-8 at byte 10"),
    "name not UTF-8": (file_of(b'{"t\xc0\x80": 1}'), "not UTF-8 at byte 11"),
    "byte mark": (file_of(b"\xef\xbb\xbf{}"), "no JSON at byte 8"),
    "half a letter": (file_of(b'{"\\ud83d": 1}'), "byte 8 has \\ud83d, half a letter"),
    "half of a value": (file_of(b'{"t": ["\\uDE00"]}'), "byte 8 has \\ude00, half a letter"),
    "NaN": (file_of(b'{"t": NaN}'), "byte 8", "NaN is no number"),
    "cut": (file_of(b'{"\xc3\xa4": {'), "no JSON at byte 16"),
    "twice": (file_of(b'{"t": 1, "t": 1}'), "'t' is there twice"),
    "field twice": (file_of(b'{"t": {"dtype": 1, "dtype": 2}}'), "'dtype' is there twice"),
    "metadata": (file_of({"__metadata__": {"a": 1}, **one()}), "__metadata__", "{'a': 1}"),
    "metadata list": (file_of({"__metadata__": [], **one()}), "__metadata__"),
    "name": (file_of({"n" * 257: one()["t"]}), "257 letters", "256", "byte 9"),
    "no entry": (file_of({"t": 7}), "'t'", "byte 9", "it is 7"),
    "no dtype": (file_of({"t": {"shape": [1], "data_offsets": [0, 4]}}), "not dtype, shape"),
    "a further field": (file_of(one(strides=[1])), "not dtype, shape and data_offsets"),
    "dtype": (file_of(one(dtype="F31")), "'t' in the header at byte 9", "dtype 'F31'"),
    "dtype of another kind": (file_of(one(dtype=["F32"])), "dtype ['F32']"),
    "shape": (file_of(one(shape=7)), "shape 7"),
    "shape below 0": (file_of(one(shape=[-2, -8])), "shape [-2, -8]"),
    "shape true": (file_of(one(shape=[True, 16])), "shape [True, 16]"),
    "shape real": (file_of(one(shape=[2.0, 8])), "shape [2.0, 8]"),
    "shape text": (file_of(one(shape=["2", 8])), "shape ['2', 8]"),
    "shape null": (file_of(one(shape=None)), "shape None"),
    "dims": (file_of(one(shape=[1] * 9)), "up to 8 sizes"),
    "shape huge": (file_of(one(shape=[2**64, 1])), "shape [18446744073709551616, 1]"),
    "shape wraps": (file_of(one(shape=[2**62, 4])), "takes 73786976294838206464 bytes"),
    "shape large": (file_of(one(shape=[2, 9])), "takes 72 bytes", "[0, 64] have 64"),
    "shape 0": (file_of(one(shape=[2, 0])), "takes 0 bytes"),
    "another type": (file_of(one(dtype="BF16")), "takes 32 bytes"),
    "offsets": (file_of(one(data_offsets=[0])), "data_offsets [0] are no begin and end"),
    "offsets below 0": (file_of(one(data_offsets=[-64, 0])), "data_offsets [-64, 0]"),
    "offsets backwards": (file_of(one(data_offsets=[64, 0])), "[64, 0] are no begin and end"),
    "offsets outside": (file_of(one(data_offsets=[4, 68])), "[4, 68]", "64 bytes of data"),
    "offsets wrap": (file_of(one(data_offsets=[0, HUGE])), str(HUGE), "64 bytes of data"),
    "offsets real": (file_of(one(data_offsets=[0, 64.0])), "[0, 64.0]"),
    "over": (
        file_of({**TWO, "b": entry("F32", (2, 8), 32, 96)}, 2 * ROW),
        "tensor 'b' at byte", "lies over another",
    ),
    "same": (file_of({**one(), "u": one()["t"]}), "lies over another"),
    "hole": (
        file_of({**TWO, "b": entry("F32", (2, 8), 68, 132)}, 3 * ROW),
        "tensor 'b' at byte", "behind a hole",
    ),
    "hole before": (file_of(one(data_offsets=[4, 68]), 2 * ROW), "behind a hole"),
    "rest": (file_of(one(), 2 * ROW), "no tensor has the bytes from"),
    "nothing has them": (file_of({}), "no tensor has the bytes from 10 on"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie(path: Path, lie: str) -> None:
    data, *said = LIES[lie]
    refused(path, data, *said)


def test_types_that_are_not_built(path: Path) -> None:
    for dtype, size in (("I64", 8), ("F64", 8), ("F8_E4M3", 1), ("BOOL", 1), ("U8", 1)):
        header = {"t": entry(dtype, (8,), 0, 8 * size)}
        refused(path, file_of(header, bytes(8 * size)), f"dtype {dtype}", "'t'", code="ENOTSUP")


@pytest.mark.timeout(20)
def test_lies_cost_nothing(path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data, *_ in LIES.values():
        refused(path, data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 96 << 10  # KiB


@pytest.mark.timeout(20)
@pytest.mark.parametrize("filling", [b"{},", b"[],", b'"",', b"0.5,", b'"\\u00e4",', b"  "])
def test_a_header_of_nothing_but(path: Path, filling: bytes) -> None:
    """As many bytes and as many items as there may be, that would become as many objects."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = reader.MAX_TENSORS * reader.ITEMS_PER_TENSOR
    per_item = sum(filling.count(sign) for sign in b",[{") or 1
    for count in (reader.MAX_HEADER // len(filling) - 1, limit // per_item - 1):
        refused(path, file_of(b"[" + filling * count), "byte")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB


# --- any bytes at all -----------------------------------------------------------------------------

SMALL = safetensors(
    {"model.norm.weight": np.ones(8, "f4"), "model.embed_tokens.weight": np.ones((4, 8), "f4")},
    "F32",
)
PIECES = [
    b"\xff" * 8, bytes(8), pack("<Q", 2**63), b"[", b"}", b'"', b"-1", b"1e9", b"null", b"{},",
    b"\\u0000", b"\\ud800", b"F16", b"BF16", b"999", b",", b"[0,0]",
]  # fmt: skip
pieces = st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from(PIECES))
edits = st.lists(st.tuples(st.integers(0, len(SMALL) - 160), pieces), min_size=1, max_size=4)


@pytest.mark.timeout(60)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits, st.booleans())
def test_only_model_errors_come_out(
    path: Path, edits: list[tuple[int, bytes]], repair: bool
) -> None:
    """And what is taken, the library takes as well."""
    data = bytearray(SMALL)
    for at, new in edits:
        data[at : at + len(new)] = new
    if repair:  # the length of the header, so that what is in it is looked at
        data[:8] = SMALL[:8]
    path.write_bytes(data)
    try:
        with SafetensorsFile(path) as found:
            for name, tensor in found.tensors.items():
                if tensor.shape:
                    found.float32(name, 0, tensor.shape[0])
    except ModelError as error:
        assert error.hint and len(error.message) < 500
    else:
        try:
            with safe_open(path, "np") as theirs:
                assert set(theirs.keys()) == found.tensors.keys()
        except SafetensorError as error:
            raise AssertionError(f"taken, but {error}: {bytes(data)!r}") from None


@pytest.mark.timeout(60)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes(path: Path, data: bytes, headed: bool) -> None:
    path.write_bytes(file(data) if headed else data)
    try:
        SafetensorsFile(path).close()
    except ModelError as error:
        assert error.hint and len(error.message) < 500


def test_the_file_that_is_mutated_is_sound(path: Path) -> None:
    path.write_bytes(SMALL)
    with SafetensorsFile(path) as found:
        assert found.tensors["model.embed_tokens.weight"].shape == (4, 8)
