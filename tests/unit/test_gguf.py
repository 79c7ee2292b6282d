"""The GGUF reader against files that lie."""

import resource
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers.models import gguf as reader
from drivers.models.config import ModelConfig
from drivers.models.errors import ModelError
from drivers.models.gguf import GgufFile
from drivers.models.tokenizer import tokenizer_json
from tests.helpers.gguf_writer import (
    ARRAY,
    BOOL,
    F32,
    STRING,
    TYPE_Q4_1,
    U8,
    U32,
    U64,
    Tensor,
    array,
    gguf,
    llama_file,
    string,
    strings,
    text,
    u32,
)  # fmt: skip

HUGE = 2**64 - 1
ROW = bytes(64)  # of the tensors below: 8 × 2 float32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def refused(path: Path, data: bytes, *said: str, code: str = "ECORRUPT") -> None:
    """Assert that a file is refused, in words that help."""
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        GgufFile(path)
    assert caught.value.code == code
    assert caught.value.hint
    assert path.name in caught.value.message
    for part in said:
        assert part in caught.value.message


# --- sound files ----------------------------------------------------------------------------------


def test_a_sound_file(path: Path) -> None:
    entries = [
        u32("number", 7), text("text", "häh"), strings("list", ["a", "", "ü"]),
        ("flag", pack("<I?", BOOL, True)), array("flags", BOOL, 3, b"\0\1\0"),
        array("reals", F32, 2, pack("<2f", 0.5, -1)), array("none", U32, 0, b""),
    ]  # fmt: skip
    values = np.arange(16, dtype="<f4")
    tensors = [Tensor("second", offset=64), Tensor("first", (8,))]
    path.write_bytes(gguf(entries, tensors, bytes(64) + values.tobytes()))
    with GgufFile(path) as file:
        assert file.metadata == {
            "number": 7, "text": "häh", "list": ["a", "", "ü"], "flag": True,
            "flags": [False, True, False], "reals": [0.5, -1.0], "none": [],
        }  # fmt: skip
        assert file.tensors["second"].shape == (2, 8)
        assert file.dequantize("second").tolist() == values.reshape(2, 8).tolist()
        assert file.raw("first").tolist() == [0] * 32
        with pytest.raises(ModelError, match="no tensor third"):
            file.raw("third")


def test_arrays_outlive_the_file(path: Path) -> None:
    path.write_bytes(gguf([], [Tensor("t")], b"\1" * 64))
    with GgufFile(path) as file:
        raw = file.raw("t")
    assert raw.sum() == 64


def test_versions(path: Path) -> None:
    path.write_bytes(gguf(version=2))
    GgufFile(path).close()
    for version in (0, 1, 4, 0x03000000):
        refused(path, gguf(version=version), str(version), "2 and 3", code="ENOTSUP")


def test_the_real_model(smollm2: Path) -> None:
    (real,) = smollm2.glob("*.gguf")
    with GgufFile(real) as file:
        assert len(file.tensors) == 272
        assert ModelConfig.from_gguf(file).vocab_size == 49_152
        assert file.dequantize("blk.0.attn_norm.weight").shape == (576,)


# --- files cut short ------------------------------------------------------------------------------


def test_a_file_cut_anywhere(path: Path) -> None:
    whole = llama_file()[: HEAD + 64]  # all but the tensor, and a little of that
    for size in [*range(0, HEAD, 17), *range(HEAD - 80, len(whole))]:
        refused(path, whole[:size])


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.gguf", tmp_path):
        with pytest.raises(ModelError, match="cannot read") as caught:
            GgufFile(path)
        assert caught.value.code == "ENOENT" and caught.value.hint


@pytest.mark.parametrize("data", [b"", b"GGUF", bytes(24), b"PK\3\4" + bytes(60)])
def test_other_files(path: Path, data: bytes) -> None:
    refused(path, data)


# --- numbers that lie -----------------------------------------------------------------------------

LIES = {
    "keys": (gguf(num_keys=HUGE), "18446744073709551615 keys", "4096"),
    "keys at the limit": (gguf(num_keys=4096), "needs 8 bytes"),
    "tensors": (gguf(num_tensors=HUGE), "18446744073709551615 tensors", "65536"),
    "tensors at the limit": (gguf(num_tensors=65_536), "needs 8 bytes"),
    "key": (gguf([(257 * "k", b"")]), "257 bytes", "256"),
    "string": (gguf([("k", pack("<I", STRING) + string("", HUGE))]), "limit is 4194304"),
    "string in bounds": (gguf([("k", pack("<I", STRING) + string("", 4096))]), "needs 4096"),
    "array": (gguf([array("k", U8, HUGE, b"")]), "18446744073709551615 items", "8388608"),
    "array in bounds": (gguf([array("k", U64, 5000, b"")]), "needs 40000 bytes"),
    "strings": (gguf([array("k", STRING, 2**23, b"")]), "needs 67108864 bytes"),
    "item": (gguf([array("k", STRING, 1, string("", HUGE) + ROW)]), "item 0", "64 are possible"),
    "items end": (gguf([array("k", STRING, 2, string("a" * 24))]), "item 1 of 2"),
    "type": (gguf([("k", pack("<I", 13))]), "type 13"),
    "item type": (gguf([array("k", 99, 1, ROW)]), "type 99"),
    "nested": (gguf([array("k", ARRAY, 1, ROW)]), "array of arrays"),
    "key utf-8": (gguf([("k", pack("<I", STRING) + string(b"\xff\xfe"))]), "not UTF-8"),
    "item utf-8": (gguf([array("k", STRING, 1, string(b"\xc0\x80"))]), "item 0", "not UTF-8"),
    "key twice": (gguf([u32("k", 1), u32("k", 1)]), "'k' is there twice"),
    "alignment 0": (gguf([u32("general.alignment", 0)]), "alignment 0"),
    "alignment 12": (gguf([u32("general.alignment", 12)]), "alignment 12"),
    "alignment huge": (gguf([u32("general.alignment", 2**31)]), "65536"),
    "alignment text": (gguf([text("general.alignment", "32")]), "'32'"),
    "name": (gguf([], [Tensor("n" * 257)], ROW), "257 bytes", "256"),
    "name twice": (gguf([], [Tensor("t"), Tensor("t", offset=64)], 2 * ROW), "'t' is there twice"),
    "dims 0": (gguf([], [Tensor("t", ())], ROW), "0 dimensions"),
    "dims 5": (gguf([], [Tensor("t", (1,) * 5)], ROW), "5 dimensions"),
    "dims huge": (gguf([], [Tensor("t", (HUGE,) * 4)], ROW), "needs", "the file has"),
    "dim 0": (gguf([], [Tensor("t", (8, 0))], ROW), "(0, 8)"),
    "block": (gguf([], [Tensor("t", (31, 2), TYPE_Q4_1)], ROW), "Q4_1", "(2, 31)"),
    "kind": (gguf([], [Tensor("t", kind=4)], ROW), "type 4"),
    "kind huge": (gguf([], [Tensor("t", kind=2**32 - 1)], ROW), "type 4294967295"),
    "offset": (gguf([], [Tensor("t", offset=32)], ROW), "needs 64 bytes"),
    "offset odd": (gguf([], [Tensor("t", offset=4)], 2 * ROW), "alignment is 32"),
    "offset wraps": (gguf([], [Tensor("t", offset=2**64 - 64)], ROW), "needs 64 bytes"),
    "size wraps": (gguf([], [Tensor("t", (2**62, 4))], ROW), "needs 73786976294838206464 bytes"),
    "over": (gguf([], [Tensor("a"), Tensor("b", offset=32)], 2 * ROW), "'b' at", "over another"),
    "same": (gguf([], [Tensor("a"), Tensor("b")], ROW), "over another"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie(path: Path, lie: str) -> None:
    data, *said = LIES[lie]
    refused(path, data, *said)


def test_arrays_are_limited_in_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand bytes would be as many Python objects; a file of gigabytes has more."""
    monkeypatch.setattr(reader, "MAX_ITEMS", 15_000)
    raw = bytes(10_000)
    path.write_bytes(gguf([array("a", U8, 10_000, raw)]))
    GgufFile(path).close()
    refused(path, gguf([array("a", U8, 10_000, raw), array("b", U8, 10_000, raw)]), "15000")


@pytest.mark.timeout(20)
def test_lies_cost_nothing(path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data, *_ in LIES.values():
        refused(path, data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


# --- any bytes at all -----------------------------------------------------------------------------

SMALL = llama_file()
HEAD = len(SMALL) - 260 * 32
edits = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 400), st.integers(0, HEAD - 1)),
        st.one_of(
            st.binary(min_size=1, max_size=4),
            st.sampled_from([b"\xff" * 8, bytes(8), pack("<Q", 2**63), pack("<Q", 2**40)]),
        ),
    ),
    min_size=1,
    max_size=4,
)


def read_all(path: Path) -> Any:
    with GgufFile(path) as file:
        return ModelConfig.from_gguf(file), tokenizer_json(file)


@pytest.mark.timeout(60)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(edits)
def test_only_model_errors_come_out(path: Path, edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(SMALL)
    for at, new in edits:
        data[at : at + len(new)] = new
    path.write_bytes(data)
    try:
        read_all(path)
    except ModelError as error:
        assert error.hint and len(error.message) < 500


def test_the_file_that_is_mutated_is_sound(path: Path) -> None:
    path.write_bytes(SMALL)
    config, tokenizer = read_all(path)
    assert config.eos_ids == (1,) and "<|im_end|>" in tokenizer
