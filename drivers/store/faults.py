"""Faults: what the disk refuses, as the store says it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from drivers.store.base import FaultKind, StoreFault
from drivers.store.files import Files

FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into a StoreFault that says what was being done."""
    try:
        yield
    except OSError as error:
        raise disk_fault(doing, error) from None


def disk_fault(doing: str, error: OSError) -> StoreFault:
    """Return the fault of an error of the disk."""
    why = error.strerror or type(error).__name__
    if error.errno in FULL:
        hint = "make room on that disk, or raise the quota"
        return StoreFault(FaultKind.NO_SPACE, f"cannot {doing}: {why}", hint)
    hint = "look at the folder's owner and mode" if error.errno in DENIED else "look at the disk"
    return StoreFault(FaultKind.IO, f"cannot {doing}: {why}", hint)


def no_space(files: Files, folder: str, what: str, needed: int, error: OSError) -> StoreFault:
    """Return the fault of a disk that has no room for `needed` bytes; another error as it is."""
    fault = disk_fault(f"make room for {what}", error)
    if fault.kind != FaultKind.NO_SPACE:
        return fault
    try:
        available = files.free_bytes(folder)
    except OSError:
        return fault
    message = f"{what} takes {needed:,} bytes, {folder} has {available:,} ({error.strerror})"
    return StoreFault(FaultKind.NO_SPACE, message, fault.hint, needed, available)
