"""Portable: a save as a file that can go to another machine. Ids and messages, no KV.

A safetensors file, in this form to the byte:

    8 bytes   length of the header, little-endian
    header    JSON: "__metadata__" has format, model, saved_unix, tokenizer and sha256
    ids       I32, all of them
    turns     U8, where the messages end (syscalls/turnmarks.py)

`tokenizer` is the SHA-256 of the model's tokenizer.json, without which ids mean nothing; empty if
it has none. `sha256` is that of header and data, with 64 zeros in its own place. What is read is
foreign: every size is checked before anything is made of it, and a header that is not the one that
would be written for these sizes is refused. Whoever has such a file can read what is in it, unless
it is sealed under a passphrase (drivers/store/passphrase.py).

Nothing of it needs a call of its own: a save is loaded and its ids are read; ids are appended and
saved. The numbers of export_ctx and import_ctx stay reserved for exports with KV.
"""

import hashlib
import json
import os
import re
import stat
import struct
import sys
from array import array
from collections.abc import Callable
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any, NamedTuple

from syscalls.abi import MAX_EXTRA
from syscalls.turnmarks import marks_of
from userland.exits import Failure, reason

FORMAT = "llmos.ctx/1"
SEALED = "llmos.ctx-sealed/1"
MAX_IDS = 1 << 24
MAX_HEADER = 4096
MAX_FILE = 8 + MAX_HEADER + 4 * MAX_IDS + MAX_EXTRA
MAX_SEALED = MAX_FILE * 4 // 3 + 4096
_ZEROS = "0" * 64
_MODEL = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_HEX = re.compile(r"[0-9a-f]{64}")
Ask = Callable[[], str]
"""Returns the passphrase."""


class Portable(NamedTuple):
    """What such a file holds."""

    model: str
    tokenizer: str
    saved_unix: int
    ids: "array[int]"
    turns: bytes


# --- the bytes --------------------------------------------------------------------------------


def pack(portable: Portable) -> bytes:
    """Return the file."""
    data = _little(portable.ids).tobytes() + portable.turns
    digest = hashlib.sha256(_header(portable, _ZEROS) + data).hexdigest()
    return _header(portable, digest) + data


def _header(portable: Portable, digest: str) -> bytes:
    ids_bytes, turns_bytes = 4 * len(portable.ids), len(portable.turns)
    table: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT, "model": portable.model, "saved_unix": str(portable.saved_unix),
            "tokenizer": portable.tokenizer, "sha256": digest,
        },
        "ids": {
            "dtype": "I32", "shape": [len(portable.ids)], "data_offsets": [0, ids_bytes],
        },
        "turns": {
            "dtype": "U8", "shape": [turns_bytes],
            "data_offsets": [ids_bytes, ids_bytes + turns_bytes],
        },
    }  # fmt: skip
    raw = json.dumps(table, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def unpack(raw: bytes) -> Portable:
    """Return what a file holds; ValueError with the reason if it is none, or is damaged."""
    (length,) = struct.unpack("<Q", raw[:8]) if len(raw) >= 8 else (0,)
    if not 2 <= length <= MAX_HEADER or 8 + length > len(raw):
        raise ValueError("it is no exported context")
    said, num_ids, num_turns = _read_header(raw[8 : 8 + length])
    start, end = 8 + length, 8 + length + 4 * num_ids
    if len(raw) != end + num_turns:
        raise ValueError(f"it has {len(raw):,} bytes, its header says {end + num_turns:,}")
    ids = array("i")
    ids.frombytes(raw[start:end])
    found = Portable(
        said["model"], said["tokenizer"], int(said["saved_unix"]), _little(ids), raw[end:]
    )
    zeroed = _header(found, _ZEROS)
    if raw[:start] != _header(found, said["sha256"]) or not _HEX.fullmatch(said["sha256"]):
        raise ValueError("its header is not as it was written")
    if hashlib.sha256(zeroed + raw[start:]).hexdigest() != said["sha256"]:
        raise ValueError("it is damaged: its checksum is another one")
    if min(found.ids) < 0:
        raise ValueError(f"it has id {min(found.ids)}")
    return found._replace(turns=found.turns if marks_of(found.turns, num_ids) else b"")


def _read_header(raw: bytes) -> tuple[dict[str, str], int, int]:
    """Return the metadata, the number of ids and that of bytes of turns; ValueError."""
    try:
        table = json.loads(raw)
        said = table["__metadata__"]
        form = said["format"]
        (num_ids,), (num_turns,) = table["ids"]["shape"], table["turns"]["shape"]
        fields = [said[name] for name in ("model", "tokenizer", "saved_unix", "sha256")]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("its header cannot be read") from None
    if form != FORMAT:
        newer = isinstance(form, str) and re.fullmatch(r"llmos\.ctx/\d{1,9}", form)
        what = f"it is in the format {form}, this version reads {FORMAT}" if newer else ""
        raise ValueError(what or "it is no exported context")
    sizes = (("ids", num_ids, 1, MAX_IDS), ("bytes of turns", num_turns, 0, MAX_EXTRA))
    for what, size, least, most in sizes:
        if type(size) is not int or not least <= size <= most:
            raise ValueError(f"it says that it has {size} {what}, {least} to {most:,} are possible")
    if any(type(field) is not str for field in fields):
        raise ValueError("its header cannot be read")
    model, tokenizer, saved_unix, _ = fields
    if not _MODEL.fullmatch(model) or not re.fullmatch(r"\d{1,15}", saved_unix, re.ASCII):
        raise ValueError("its header names no model, or no time")
    if tokenizer and not _HEX.fullmatch(tokenizer):
        raise ValueError("its header names no tokenizer")
    return said, num_ids, num_turns


def _little(ids: "array[int]") -> "array[int]":
    """Return ids as they are in the file, or back."""
    if sys.byteorder == "big":
        ids = array("i", ids)
        ids.byteswap()
    return ids


# --- the file ---------------------------------------------------------------------------------


def write(file: Path, portable: Portable, ask: Ask | None, force: bool) -> int:
    """Write a file, 0600, whole and durable; sealed if there is a passphrase; return its bytes."""
    if file.is_symlink() or (file.exists() and not force):
        hint = "take another name, or --force to replace it"
        raise Failure(f"{file} is there already", hint, code="EEXIST")
    raw = pack(portable)
    if ask is not None:
        from drivers.store import passphrase

        raw = passphrase.seal(SEALED, raw, ask())
    try:
        _put(file, raw, force)
        _sync(file.parent)
    except FileExistsError:
        raise Failure(f"{file} is there already", "take another name", code="EEXIST") from None
    except OSError as error:
        code = "ENOSPC" if error.errno in (ENOSPC, EDQUOT) else "EIO"
        raise Failure(f"cannot write {file}: {reason(error)}", code=code) from None
    return len(raw)


def _put(file: Path, raw: bytes, force: bool) -> None:
    """Write a new file under its name, or one that then takes the place of another."""
    path = file.with_name(f".{file.name}.{os.getpid()}.tmp") if force else file
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as out:
            out.write(raw)
            out.flush()
            os.fsync(fd)
        path.replace(file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read(file: Path, ask: Ask) -> Portable:
    """Read a file; the passphrase is asked for if it is sealed. Failure says what is wrong."""
    raw = _bytes_of(file)
    try:
        return unpack(_opened(file, raw, ask) if raw.startswith(b"{") else raw)
    except ValueError as error:
        raise Failure(f"{file} cannot be imported: {error}", code="ECORRUPT") from None


def _bytes_of(file: Path) -> bytes:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as opened:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                raise Failure(f"{file} is no plain file", code="EINVAL")
            if about.st_size > MAX_SEALED:
                size = f"{about.st_size:,} bytes, the limit is {MAX_SEALED:,}"
                raise Failure(f"{file} cannot be imported: it has {size}", code="E2BIG")
            return opened.read(MAX_SEALED)
    except (OSError, ValueError) as error:
        absent = isinstance(error, FileNotFoundError)
        code = "ENOENT" if absent else "EIO"
        raise Failure(f"cannot read {file}: {reason(error)}", code=code) from None


def _opened(file: Path, raw: bytes, ask: Ask) -> bytes:
    from drivers.store import passphrase

    try:
        return passphrase.unseal(passphrase.read(SEALED, raw), ask())
    except passphrase.NotSealed:
        raise ValueError("it is no exported context") from None
    except passphrase.WrongPassphrase:
        what = f"{file} does not open: the passphrase is another one, or the file is damaged"
        hint = "try the passphrase again, or another copy"
        raise Failure(what, hint, code="EPERM") from None
