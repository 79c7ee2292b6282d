"""Keys: the root key, and where it comes from.

    KEYS/root.key   32 random bytes, mode 0600 or 0400, made at first use
         keyring    the owners' keys under it (drivers/store/keyring.py)

A systemd credential `llmos-root` wins over the file. Whoever has the root key and the keyring can
read every save; a state directory without them is worth nothing. A root key is never made where
there is something already that only another one opens: it has been lost then, and a person has to
say what happens (`llmos key restore`, or to give those saves up).
"""

import hashlib
import os
import stat
from dataclasses import dataclass

from drivers.store.base import FaultKind, StoreFault
from drivers.store.faults import disk_errors, disk_fault
from drivers.store.files import Files, Unsynced
from drivers.store.seal import KEY_BYTES, new_key

ROOT_KEY = "root.key"
CREDENTIAL = "llmos-root"
CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"
"""Environment variable in which systemd names the folder of a service's credentials."""


@dataclass(frozen=True, slots=True, repr=False)
class RootKey:
    """The root key, and the path that it was read from. Its name is safe to show."""

    key: bytes
    path: str

    @property
    def name(self) -> str:
        """What tells root keys apart without telling them."""
        return name_of(self.key)


def name_of(key: bytes) -> str:
    """Return 16 hexadecimal digits that name a root key."""
    return hashlib.sha256(b"llmos root key\0" + key).hexdigest()[:16]


def find_root(files: Files, keys_dir: str, credentials: str = "") -> RootKey | None:
    """Return the root key, None if there is none; UNSAFE if others could have it, IO.

    `credentials` is the folder of systemd's credentials, empty if there is none.
    """
    if credentials:
        found = _read(files, f"{credentials}/{CREDENTIAL}", by_systemd=True)
        if found:
            return found
    return _read(files, f"{keys_dir}/{ROOT_KEY}", by_systemd=False)


def _read(files: Files, path: str, by_systemd: bool) -> RootKey | None:
    with disk_errors(f"read the root key {path}"):
        try:
            found = files.stat(path)
        except FileNotFoundError:
            return None
        _check(path, found, by_systemd)
        raw = files.read_whole(path, KEY_BYTES)
    if len(raw) != KEY_BYTES:
        what = f"{path} is no root key: it has {found.st_size} bytes, a key has {KEY_BYTES}"
        raise StoreFault(FaultKind.KEY_LOST, what, f"llmos key restore FILE, after: mv {path} away")
    return RootKey(raw, path)


def _check(path: str, found: os.stat_result, by_systemd: bool) -> None:
    """Refuse what others can read; systemd's belong to root and are ours by their group or ACL."""
    mode, owner = stat.S_IMODE(found.st_mode), found.st_uid
    if not stat.S_ISREG(found.st_mode):
        raise _unsafe(f"{path} is no plain file (links are not followed)", f"remove {path}")
    if owner != os.geteuid() and not (by_systemd and owner == 0):
        what = f"{path} belongs to uid {owner}, this is uid {os.geteuid()}"
        raise _unsafe(what, f"chown it, if it is the right one: {path}")
    if mode & (0o027 if by_systemd else 0o177):
        what = f"{path} has mode {mode:04o}: others could have read it, or changed it"
        raise _unsafe(what, f"chmod 600 {path}, if you are sure that nobody has")


def _unsafe(message: str, hint: str) -> StoreFault:
    return StoreFault(FaultKind.UNSAFE, message, hint)


def make_root(files: Files, keys_dir: str) -> RootKey:
    """Make a root key, durable; IO, NO_SPACE."""
    return put_root(files, keys_dir, new_key())


def put_root(files: Files, keys_dir: str, key: bytes) -> RootKey:
    """Write a root key in its place, durable; IO, NO_SPACE. What was there is gone."""
    path = f"{keys_dir}/{ROOT_KEY}"
    try:
        files.write_whole(path, key)
    except Unsynced as error:
        raise disk_fault(f"be sure of {path}", error) from None
    except OSError as error:
        raise disk_fault(f"write {path}", error) from None
    return RootKey(key, path)


def lost(what: str, keys_dir: str, state_dir: str) -> StoreFault:
    """Return the fault of keys that cannot be had any more, and what a person can do."""
    return StoreFault(
        FaultKind.KEY_LOST,
        f"{what}, and without it nothing that is kept can be read",
        "bring it back (llmos key restore FILE), or give up what is kept: "
        f"mv {state_dir}/saves and {keys_dir}/keyring elsewhere",
    )
