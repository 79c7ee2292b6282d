"""JSON objects out of files that may hold anything.

Bytes and items are limited before the library makes an object of each of them; a name that is
there twice, a number that is none and text that is not UTF-8 are refused. What does not hold is
ModelError ECORRUPT, naming the file and the byte.
"""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from drivers.models.errors import FETCH, ModelError, short

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half a letter, as JSON spells it; with its other half before or after it, it is sound."""


class _Invalid(ValueError):
    """What the library lets through and we do not."""


def read_bytes(path: Path, limit: int) -> bytes:
    """Return what a file has, up to `limit` bytes; ENOENT if it cannot be read."""
    if not path.is_file():  # reading a pipe would wait
        raise ModelError("ENOENT", f"cannot read {path.name}: it is no file", FETCH)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        what = f"cannot read {path.name}: {error.strerror}"
        raise ModelError("ENOENT", what, FETCH) from None
    if len(data) > limit:
        what = f"{path.name} has more than {limit} bytes, which is the limit"
        raise ModelError("ECORRUPT", what, FETCH)
    return data


def read_object(path: Path, max_bytes: int, max_items: int) -> dict[str, Any]:
    """Return the object of a file; ENOENT if it cannot be read."""
    return parse_object(read_bytes(path, max_bytes), path.name, max_items)


def parse_object(data: bytes, name: str, max_items: int, start: int = 0) -> dict[str, Any]:
    """Return the object that `data` spells; in the file it lies at `start`."""

    def corrupt(what: str) -> NoReturn:
        raise ModelError("ECORRUPT", f"{name}: {what}", FETCH)

    items = data.count(b",") + data.count(b"[") + data.count(b"{")
    if items > max_items:
        corrupt(f"the JSON at byte {start} has up to {items} items, the limit is {max_items}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        corrupt(f"not UTF-8 at byte {start + error.start}")
    try:
        read = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
        if SURROGATE.search(data):
            json.dumps(read, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        at = start + len(text[: error.pos].encode("utf-8"))
        corrupt(f"no JSON at byte {at}: {error.msg}")
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        corrupt(f"the JSON at byte {start} has \\u{half:04x}, half a letter")
    except RecursionError:
        corrupt(f"the JSON at byte {start} is nested too deep")
    except _Invalid as error:
        corrupt(f"the JSON at byte {start}: {error}")
    except ValueError:  # Python's own limit
        corrupt(f"the JSON at byte {start} has a number of thousands of digits")
    if not isinstance(read, dict):
        corrupt(f"the JSON at byte {start} is no object but {short(read)}")
    return read


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Invalid(f"{short(name)} is there twice")
            seen.add(name)
    return read


def _constant(text: str) -> NoReturn:
    raise _Invalid(f"{text} is no number")
