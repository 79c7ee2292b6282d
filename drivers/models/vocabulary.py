"""Vocabulary: the bytes that each id of a model stands for, from its tokenizer.json. Torch-free.

Text is the clients' affair (syscalls/tokenizer.py, whose bytes of an id these are); a driver needs
the bytes to see which ids may come next in a grammar. Special ids stand for nothing here: what a
grammar describes is text. A piece is spelled in 256 letters, one for each byte, or is text with
U+2581 for a space and <0xNN> for a byte.
"""

import re
from pathlib import Path
from typing import Any

from drivers.models.checkpoint_text import MAX_ITEMS, MAX_TOKENIZER, TOKENIZER
from drivers.models.errors import FETCH, ModelError, short
from drivers.models.json_object import read_object
from drivers.models.spm import SPACE

BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def read_vocabulary(folder: Path, rows: int) -> list[bytes]:
    """Return the bytes of ids 0 to `rows` - 1, none for an id that is no text; ENOTSUP, ECORRUPT.

    ENOTSUP says that the folder has no tokenizer, or one whose pieces are spelled in another way.
    """
    path = folder / TOKENIZER
    if not path.exists():
        raise ModelError("ENOTSUP", f"the model has no {TOKENIZER}: it takes ids, no text")
    parts = read_object(path, MAX_TOKENIZER, MAX_ITEMS)
    model, decoder = parts.get("model"), parts.get("decoder")
    pieces = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(pieces, dict):
        raise ModelError("ENOTSUP", f"{TOKENIZER}: model.vocab is no object of pieces")
    tokens = [b""] * rows
    spell = _byte_level if _is_byte_level(decoder) else _sentence_piece
    for piece, id in pieces.items():
        if type(id) is int and 0 <= id < rows:
            tokens[id] = spell(piece)
    for token in _added(parts):
        id, content = token.get("id"), token.get("content")
        if type(id) is not int or not isinstance(content, str):
            raise ModelError("ECORRUPT", f"{TOKENIZER}: {short(token)} is no added token", FETCH)
        if 0 <= id < rows:
            tokens[id] = b"" if token.get("special") is not False else content.encode()
    return tokens


def _is_byte_level(decoder: Any) -> bool:
    """See how pieces are spelled; ENOTSUP if it is neither of the two ways."""
    kind = decoder.get("type") if isinstance(decoder, dict) else None
    if kind == "ByteLevel":
        return True
    steps = decoder.get("decoders") if kind == "Sequence" else None
    steps = steps if isinstance(steps, list) else []
    names = [step.get("type") for step in steps if isinstance(step, dict)]
    if names[:3] == ["Replace", "ByteFallback", "Fuse"]:
        return False
    what = f"{TOKENIZER}: decoder {short(names or kind)} is not built"
    raise ModelError("ENOTSUP", what, "built are ByteLevel, and Replace with ByteFallback")


def _added(parts: dict[str, Any]) -> list[dict[str, Any]]:
    added = parts.get("added_tokens", [])
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ModelError("ECORRUPT", f"{TOKENIZER}: added_tokens is no list of tokens", FETCH)
    return added


def _byte_level(piece: str) -> bytes:
    try:
        return bytes([_ALPHABET[char] for char in piece])
    except KeyError:
        return piece.encode()  # no byte-level spelling: it stands for itself


def _sentence_piece(piece: str) -> bytes:
    byte = BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def _alphabet() -> dict[str, int]:
    """Return the byte of each letter of byte-level BPE (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    letters = {chr(value): value for value in printable}
    return letters | {chr(256 + shift): value for shift, value in enumerate(others)}


_ALPHABET = _alphabet()
