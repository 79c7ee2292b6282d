"""Files: every operation of the store on the disk. Nothing else in the store opens a path.

Tests put one in its place that fails the Nth operation, or that remembers what was synced and what
a crash would leave. So what is here is small: operations of the system, and below them the three
ways in which the store combines these. Paths are whole, folders are the store's own (mode 0700).

What a signal interrupts is done again below this (PEP 475). A file whose fsync has failed is given
up: what the system has dropped cannot be told, and a second fsync that succeeds says nothing.
"""

import ctypes
import errno
import os
import stat
from contextlib import suppress
from pathlib import PurePath
from typing import Any

Buffer = bytes | bytearray | memoryview

FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 0x01, 0x02, 0x10
SYNC_FILE_RANGE_WRITE = 2
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Files:
    """The disk."""

    # --- operations of the system -------------------------------------------------------------

    def make_dir(self, path: str) -> None:
        os.mkdir(path, 0o700)  # noqa: PTH102

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(path))  # noqa: PTH208

    def stat(self, path: str) -> os.stat_result:
        """Follows no link."""
        return os.lstat(path)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def create(self, path: str) -> int:
        """Return a new file, 0600, for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def create_unnamed(self, folder: str) -> int:
        """Return a new file without a name, or OSError where the file system has none."""
        return os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)

    def open(self, path: str) -> int:
        """Return a file for reading; a link is refused, a pipe does not block."""
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, buffer: bytearray | memoryview, offset: int) -> int:
        return os.preadv(fd, [buffer], offset)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def allocate(self, fd: int, size: int) -> None:
        """Have the disk's blocks for the first `size` bytes; ENOSPC if there are not as many."""
        os.posix_fallocate(fd, 0, size)

    def zero(self, fd: int, offset: int, size: int) -> None:
        """Zero a range on the disk; it stays allocated where the file system can do both."""
        mode = FALLOC_KEEP_SIZE
        try:
            _fallocate(fd, mode | FALLOC_ZERO_RANGE, offset, size)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            _fallocate(fd, mode | FALLOC_PUNCH_HOLE, offset, size)
            with suppress(OSError):  # a write that finds no space then says so
                _fallocate(fd, 0, offset, size)

    def start_writing(self, fd: int, offset: int, size: int) -> None:
        """Have the disk begin with a range, so that `sync` has less to wait for; a hint."""
        where = ctypes.c_int64(offset), ctypes.c_int64(size)
        _libc_call("sync_file_range", fd, *where, SYNC_FILE_RANGE_WRITE)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def sync_dir(self, path: str) -> None:
        """Make the names in a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)  # noqa: PTH104

    def unlink(self, path: str) -> None:
        os.unlink(path)  # noqa: PTH108

    def free_bytes(self, path: str) -> int:
        """Return what is free on the disk of a path for a user."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    # --- and how they are combined ------------------------------------------------------------

    def write(self, fd: int, data: Buffer, offset: int) -> None:
        """Write all of it; a system that takes a part is asked again for the rest."""
        rest = memoryview(data)
        while rest:
            count = self.pwrite(fd, rest, offset)
            if not count:
                raise OSError(errno.EIO, "a write took nothing")
            rest, offset = rest[count:], offset + count

    def read_into(self, fd: int, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill a buffer; return how much of it, which is less only at the end of the file."""
        rest = memoryview(buffer)
        while rest:
            count = self.pread(fd, rest, offset)
            if not count:
                break
            rest, offset = rest[count:], offset + count
        return len(buffer) - len(rest)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Read that many bytes, fewer only at the end of the file."""
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.read_into(fd, buffer, offset)])

    def read_whole(self, path: str, most: int) -> bytes:
        """Read a plain file of at most `most` bytes; a larger one comes cut, one byte too long."""
        fd = self.open(path)
        try:
            found = self.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is not a plain file")
            return self.read(fd, min(found.st_size, most) + 1, 0)
        finally:
            self.close(fd)

    def write_whole(self, path: str, data: bytes) -> None:
        """Put a file in place, old or new at any moment, and make it durable.

        Unsynced if the last step fails: the new one is there then, but a crash may undo it.
        """
        temporary, folder = f"{path}.tmp", str(PurePath(path).parent)
        self.remove(temporary)
        fd = self.create(temporary)
        try:
            try:
                self.write(fd, data, 0)
                self.sync(fd)
            finally:
                self.close(fd)
            self.rename(temporary, path)
        except OSError:
            with suppress(OSError):
                self.remove(temporary)
            raise
        try:
            self.sync_dir(folder)
        except OSError as error:
            raise Unsynced(error.errno, error.strerror) from None

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self.unlink(path)


class Unsynced(OSError):
    """A new file is in its place, but the folder could not be made durable."""


def _fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    _libc_call("fallocate", fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size))


def _libc_call(name: str, *args: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    while getattr(libc, name)(*args) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
