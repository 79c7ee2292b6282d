"""Backup: root key and keyring in one file, under a passphrase. What `llmos key` works with.

The form is that of drivers/store/passphrase.py. Whoever has the file and the passphrase can read
every save. So a copy from before an owner was erased can still read what that
one had, if the saves were copied too.

Offline: no kernel takes part. Restoring puts the root key in its place, and the keyring only where
there is none: the one that is there is newer. Light to import; cryptography is loaded when used.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EACCES, EDQUOT, ENOENT, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivers.store import passphrase
from drivers.store.passphrase import COST as COST

if TYPE_CHECKING:
    from drivers.store.keys import RootKey

FORMAT = "llmos.key-backup/1"
MAX_FILE = 32 << 20
Ask = Callable[[], str]
"""Returns the passphrase."""


_CODES = {
    ENOENT: "ENOENT", EACCES: "EPERM", EPERM: "EPERM", EROFS: "EPERM", ENOSPC: "ENOSPC",
    EDQUOT: "ENOSPC",
}  # fmt: skip


class BackupError(Exception):
    """What is wrong with a backup or a key, with an errno's name; `hint` says what to do."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Kept:
    """What was written or put back. `name` tells root keys apart, and is no secret."""

    path: str
    name: str
    num_owners: int
    keyring: str  # written | kept | restored | none


def write_backup(
    keys_dir: Path, file: Path, ask: Ask, force: bool = False,
    cost: tuple[int, int, int] = COST,
) -> Kept:  # fmt: skip
    """Write a backup, 0600 and durable. ENOENT without keys, EEXIST if the file is there.

    `ask` is called for the passphrase once all else is known to be right.
    """
    from drivers.store.keyring import KEYRING, MAX_BYTES

    root = _root(keys_dir)
    ring = b""
    with _os_errors(f"read {keys_dir / KEYRING}"), suppress(FileNotFoundError):
        ring = _files().read_whole(str(keys_dir / KEYRING), MAX_BYTES)
    num_owners = _num_owners(ring, root, str(keys_dir / KEYRING)) if ring else 0
    if file.is_symlink() or (file.exists() and not force):
        hint = "take another name, or --force to replace it"
        raise BackupError("EEXIST", f"{file} is there already", hint)
    raw = passphrase.seal(FORMAT, root.key + ring, ask(), cost)
    with _os_errors(f"write {file}"):
        _files().write_whole(str(file.absolute()), raw)
    return Kept(str(file), root.name, num_owners, "written" if ring else "none")


def restore_backup(keys_dir: Path, file: Path, ask: Ask, force: bool = False) -> Kept:
    """Put a backup's keys in their place; EPERM for a wrong passphrase, EEXIST for other keys.

    With `force`, keys that are there and are not those of the backup are set aside, not removed.
    """
    from drivers.store.base import StoreFault
    from drivers.store.folders import own_folder
    from drivers.store.keyring import KEYRING, MAX_BYTES
    from drivers.store.keys import ROOT_KEY, RootKey, put_root

    files = _files()
    plain = _opened(file, ask)
    key, ring = plain[:32], plain[32:]
    root = RootKey(key, str(keys_dir / ROOT_KEY))
    num_owners = _num_owners(ring, root, f"the keyring in {file}") if ring else 0
    try:
        own_folder(files, str(keys_dir.absolute()))
    except StoreFault as fault:
        raise BackupError("EPERM", fault.message, fault.hint) from None
    path, ring_path = keys_dir / ROOT_KEY, keys_dir / KEYRING
    with _os_errors(f"write {keys_dir}"):
        found = _read(path, 64)
        if found and found != key:
            _set_aside(path, ring_path, force, root.name)
        found = _read(ring_path, MAX_BYTES)
        if found and not _opens(found, root):
            _set_aside(ring_path, path, force, root.name)
            found = b""
        kept = "kept" if found else "none"
        if ring and not found:
            files.write_whole(str(ring_path), ring)
            kept = "restored"
        put_root(files, str(keys_dir), key)
    return Kept(str(path), root.name, num_owners, kept)


def _read(path: Path, most: int) -> bytes:
    """Return a file of the keys, empty if it is not there."""
    try:
        raw: bytes = _files().read_whole(str(path), most)
    except FileNotFoundError:
        return b""
    return raw


def _set_aside(wrong: Path, other: Path, force: bool, name: str) -> None:
    if not force:
        raise BackupError(
            "EEXIST",
            f"{wrong} does not belong to the root key {name}, which the backup has",
            f"--force sets it aside as {wrong.name}.replaced and takes what the backup has",
        )
    for one in (wrong, other):
        if one.exists() or one.is_symlink():
            aside = one.with_name(f"{one.name}.replaced")
            if aside.exists():
                hint = f"move {aside} elsewhere first"
                raise BackupError("EEXIST", f"{aside} is there already", hint)
            one.rename(aside)


# --- the file ---------------------------------------------------------------------------------


def _opened(file: Path, ask: Ask) -> bytes:
    """Return root key and keyring of a backup."""
    with _os_errors(f"read {file}"):
        raw = _files().read_whole(str(file.absolute()), MAX_FILE)
    try:
        plain = passphrase.unseal(passphrase.read(FORMAT, raw), ask())
    except passphrase.NotSealed:
        raise _no_backup(file) from None
    except passphrase.WrongPassphrase:
        what = f"{file} does not open: the passphrase is another one, or the file is damaged"
        raise BackupError("EPERM", what, "try the passphrase again, or another copy") from None
    if len(plain) < 32:
        raise _no_backup(file)
    return plain


def _no_backup(file: Path) -> BackupError:
    hint = f"a backup is what llmos key backup writes, of the format {FORMAT}"
    return BackupError("ECORRUPT", f"{file} is no backup of keys", hint)


# --- the keys ---------------------------------------------------------------------------------


def _root(keys_dir: Path) -> "RootKey":
    from drivers.store.base import FaultKind, StoreFault
    from drivers.store.keys import CREDENTIALS_DIRECTORY, find_root

    try:
        found = find_root(_files(), str(keys_dir), os.environ.get(CREDENTIALS_DIRECTORY, ""))
    except StoreFault as fault:
        code = "EIO" if fault.kind == FaultKind.IO else "EPERM"
        raise BackupError(code, fault.message, fault.hint) from None
    if found is None:
        hint = "a kernel that keeps saves makes one; --keys-dir says where to look"
        raise BackupError("ENOENT", f"there is no root key in {keys_dir}", hint)
    return found


def _num_owners(ring: bytes, root: "RootKey", what: str) -> int:
    """Return how many owners a keyring has; ECORRUPT if this root key does not open it."""
    from drivers.store.keyring import unpack

    if not _opens(ring, root):
        message = f"{what} does not open with the root key {root.name}"
        raise BackupError("ECORRUPT", message, "restore the keys that belong together")
    return len(unpack(ring, root)[1])


def _opens(ring: bytes, root: "RootKey") -> bool:
    """Whether a keyring is sound, and under this root key."""
    from drivers.store.keyring import WrongRoot, unpack
    from drivers.store.seal import NotAuthentic

    try:
        unpack(ring, root)
    except (WrongRoot, NotAuthentic):
        return False
    return True


def _files() -> Any:
    from drivers.store.files import Files

    return Files()


@contextmanager
def _os_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        code = _CODES.get(error.errno or 0, "EIO")
        raise BackupError(code, f"cannot {doing}: {error.strerror or error}") from None
