"""Folders: the store's own are made 0700, and one that others could read or change is refused."""

import os
import stat
from pathlib import PurePath

from drivers.store.base import FaultKind, StoreFault
from drivers.store.faults import disk_errors
from drivers.store.files import Files


def own_folder(files: Files, path: str) -> None:
    """Have a folder of ours at `path`; what is missing of it is made, and is durable then."""
    with disk_errors(f"use {path}"):
        if not PurePath(path).is_absolute() or ".." in PurePath(path).parts:
            raise _unsafe(path, "is no whole path", "name it from / on, without ..")
        _make(files, path)
        found = files.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise _unsafe(path, "is no folder (links are not followed)", "name the folder itself")
    if found.st_uid != os.geteuid():
        what = f"belongs to uid {found.st_uid}, this is uid {os.geteuid()}"
        raise _unsafe(path, what, f"chown it, or name another folder than {path}")
    if found.st_mode & 0o077:
        what = f"has mode {stat.S_IMODE(found.st_mode):04o}: others could get at it"
        raise _unsafe(path, what, f"chmod 700 {path}")


def _make(files: Files, path: str) -> None:
    try:
        files.stat(path)
        return
    except FileNotFoundError:
        pass
    parent = str(PurePath(path).parent)
    _make(files, parent)
    files.make_dir(path)
    files.sync_dir(parent)


def _unsafe(path: str, what: str, hint: str) -> StoreFault:
    return StoreFault(FaultKind.UNSAFE, f"{path} {what}", hint)
