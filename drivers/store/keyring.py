"""Keyring: one key per owner, random, in a file outside the state directory.

    root key -> keyring key -> owners' keys -> one data key per save

The file is `magic, name of the root key, keyring key under the root key, owners' keys under the
keyring key`. Each time that it is written it gets a new keyring key. So an owner who is forgotten
is gone from it, and what an older copy of the file would give back is a question of who has one.
A key is durable before anything is sealed under it.
"""

import os
from typing import Any

import msgpack

from drivers.store.base import FaultKind, StoreFault
from drivers.store.faults import disk_errors, disk_fault
from drivers.store.files import Files
from drivers.store.keys import RootKey, lost
from drivers.store.seal import (
    KEY_BYTES,
    OVERHEAD,
    NotAuthentic,
    Seal,
    bind,
    new_key,
    open_rows,
    seal_rows,
)

KEYRING = "keyring"
MAGIC = b"llmos keyring 1\n"
MAX_BYTES = 16 << 20
"""Of the file: some 300,000 owners."""
_NAME = 8  # bytes of the root key's name
_BODY = len(MAGIC) + _NAME + KEY_BYTES + OVERHEAD
"""Where the sealed owners' keys begin."""


class Keyring:
    """The owners' keys, in memory and on the disk."""

    def __init__(self, files: Files, keys_dir: str, root: RootKey) -> None:
        self._files = files
        self._path = f"{keys_dir}/{KEYRING}"
        self._root = root
        self._owners: dict[int, bytes] = {}
        self.catalogue_key = new_key()

    @staticmethod
    def exists(files: Files, keys_dir: str) -> bool:
        """Whether there is a file, sound or not."""
        with disk_errors(f"look for {keys_dir}/{KEYRING}"):
            return KEYRING in files.names(keys_dir)

    @classmethod
    def make(cls, files: Files, keys_dir: str, root: RootKey) -> "Keyring":
        """Make a keyring with a key for who runs this, durable."""
        keyring = cls(files, keys_dir, root)
        keyring.ensure(os.geteuid())
        return keyring

    @classmethod
    def load(cls, files: Files, keys_dir: str, root: RootKey, state_dir: str) -> "Keyring":
        """Read the keyring; KEY_LOST if it is damaged or of another root key, UNSUPPORTED, IO."""
        keyring = cls(files, keys_dir, root)
        with disk_errors(f"read {keyring._path}"):
            raw = files.read_whole(keyring._path, MAX_BYTES)
        try:
            keyring.catalogue_key, keyring._owners = unpack(raw, root)
        except WrongRoot as wrong:
            what = f"{keyring._path} is under the root key {wrong}, {root.path} is {root.name}"
            raise lost(what, keys_dir, state_dir) from None
        except NotAuthentic:
            if raw[:14] == MAGIC[:14] and raw[: len(MAGIC)] != MAGIC:
                what = f"{keyring._path} is of a newer version of llmos"
                raise StoreFault(FaultKind.UNSUPPORTED, what, "use that version") from None
            raise lost(f"{keyring._path} is damaged", keys_dir, state_dir) from None
        return keyring

    @property
    def owners(self) -> tuple[int, ...]:
        """Those who have a key."""
        return tuple(self._owners)

    def seal_of(self, owner: int) -> Seal | None:
        """Return an owner's key, None if there is none."""
        key = self._owners.get(owner)
        return Seal(key) if key else None

    def ensure(self, owner: int) -> Seal:
        """Return an owner's key, made and durable if there was none; IO, NO_SPACE."""
        if owner not in self._owners:
            self._write(self._owners | {owner: new_key()})
        return Seal(self._owners[owner])

    def forget(self, owner: int) -> None:
        """Destroy an owner's key: nothing of theirs can be read any more; IO, NO_SPACE."""
        self._write({who: key for who, key in self._owners.items() if who != owner})

    def _write(self, owners: dict[int, bytes]) -> None:
        raw = pack(self._root, self.catalogue_key, owners)
        if len(raw) > MAX_BYTES:
            what = f"a keyring of {len(owners):,} owners has {len(raw):,} bytes, the limit is"
            raise StoreFault(FaultKind.NO_SPACE, f"{what} {MAX_BYTES:,}", "forget some owners")
        try:
            self._files.write_whole(self._path, raw)
        except OSError as error:
            # Unsynced or not: what is not durable is not used, and the next try writes anew.
            raise disk_fault(f"write {self._path}", error) from None
        self._owners = owners


class WrongRoot(Exception):
    """A keyring is under another root key; its text is that one's name."""


def pack(root: RootKey, catalogue_key: bytes, owners: dict[int, bytes]) -> bytes:
    """Return a keyring as bytes, under a new keyring key."""
    key = new_key()
    wrapped = Seal(root.key).close(key, bind(MAGIC, root.name))
    body = seal_rows(b"", key, [catalogue_key, sorted(owners.items())])
    return MAGIC + bytes.fromhex(root.name) + wrapped + body


def unpack(raw: bytes, root: RootKey) -> tuple[bytes, dict[int, bytes]]:
    """Return the catalogue's key and the owners'; WrongRoot, NotAuthentic."""
    if not raw.startswith(MAGIC) or not _BODY < len(raw) <= MAX_BYTES:
        raise NotAuthentic
    name = raw[len(MAGIC) : len(MAGIC) + _NAME].hex()
    if name != root.name:
        raise WrongRoot(name)
    wrapped = raw[len(MAGIC) + _NAME : _BODY]
    key = Seal(root.key).open(wrapped, bind(MAGIC, root.name))
    rows: Any = open_rows(b"", key, raw[_BODY:])
    try:
        catalogue_key, owners = rows
        return catalogue_key, dict(owners)
    except (TypeError, ValueError, msgpack.UnpackException):
        raise NotAuthentic from None
