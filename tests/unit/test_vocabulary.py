"""The bytes of ids, as a driver reads them: those that the clients' text layer knows."""

import json
from pathlib import Path
from typing import Any

import pytest

from drivers.models.errors import ModelError
from drivers.models.store import ModelStore, default_root
from drivers.models.vocabulary import read_vocabulary
from syscalls.tokenizer import ModelTokenizer, byte_alphabet
from tests.helpers.byte_tokenizer import byte_tokenizer


def write(folder: Path, **parts: Any) -> Path:
    """Write a sound tokenizer with some parts changed; None takes one out."""
    tokenizer = json.loads(byte_tokenizer(3)) | parts
    text = json.dumps({name: part for name, part in tokenizer.items() if part is not None})
    (folder / "tokenizer.json").write_text(text)
    return folder


def same(folder: Path, rows: int) -> None:
    """Compare with the text layer, id by id; special ids stand for nothing here."""
    text = (folder / "tokenizer.json").read_text()
    special = {token["id"] for token in json.loads(text)["added_tokens"] if token["special"]}
    known, tokens = ModelTokenizer(text), read_vocabulary(folder, rows)
    assert len(tokens) == rows
    for id, token in enumerate(tokens):
        assert token == (b"" if id in special else known.id_bytes(id)), id


def test_byte_level(tmp_path: Path) -> None:
    same(write(tmp_path), 300)
    tokens = read_vocabulary(tmp_path, 300)
    assert sorted(tokens[:256]) == [bytes([n]) for n in range(256)]
    assert tokens[256:261] == [b" w0", b" w1", b" w2", b"", b""]
    assert read_vocabulary(tmp_path, 258) == tokens[:258], "rows that no token has, or has no more"


def test_smollm2() -> None:
    same(ModelStore(default_root()).find("smollm2").folder, 49152)


def test_sentence_pieces(tmp_path: Path) -> None:
    pieces = {"\u2581a": 0, "b\u2581c": 1, "<0x0A>": 2, "<0xFF>": 3, "<0x0a>": 4, "\u00e4": 5}
    steps = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    write(
        tmp_path, decoder={"type": "Sequence", "decoders": steps},
        model={"type": "BPE", "vocab": pieces, "merges": []}, added_tokens=[
            {"id": 6, "content": "<s>", "special": True},
            {"id": 7, "content": "\n\n", "special": False},
        ],
    )  # fmt: skip
    assert read_vocabulary(tmp_path, 9) == [
        b" a", b"b c", b"\n", b"\xff", b"<0x0a>", "\u00e4".encode(), b"", b"\n\n", b"",
    ]  # fmt: skip


def test_a_piece_that_is_spelled_otherwise_stands_for_itself(tmp_path: Path) -> None:
    letters = byte_alphabet()
    pieces = {letters[32] + "x": 0, "\u4e00 y": 1}
    write(tmp_path, model={"type": "BPE", "vocab": pieces, "merges": []}, added_tokens=[])
    assert read_vocabulary(tmp_path, 2) == [b" x", "\u4e00 y".encode()]


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"decoder": None}, "ENOTSUP"), ({"decoder": {"type": "WordPiece"}}, "ENOTSUP"),
        ({"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, 7]}}, "ENOTSUP"),
        ({"decoder": {"type": "Sequence", "decoders": 7}}, "ENOTSUP"), ({"decoder": 7}, "ENOTSUP"),
        ({"model": {"vocab": [["a", 0.0]]}}, "ENOTSUP"), ({"model": 7}, "ENOTSUP"),
        ({"added_tokens": 7}, "ECORRUPT"), ({"added_tokens": [7]}, "ECORRUPT"),
        ({"added_tokens": [{"id": "7", "content": "a"}]}, "ECORRUPT"),
        ({"added_tokens": [{"id": 7, "content": None}]}, "ECORRUPT"),
    ],
)  # fmt: skip
def test_what_is_not_built_or_not_sound(tmp_path: Path, parts: dict[str, Any], code: str) -> None:
    with pytest.raises(ModelError) as refused:
        read_vocabulary(write(tmp_path, **parts), 10)
    assert refused.value.code == code


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json") as refused:
        read_vocabulary(tmp_path, 10)
    assert refused.value.code == "ENOTSUP"
