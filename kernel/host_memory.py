"""Host memory: what the host tiers of one device's models lie in, a memfd of the kernel's.

It is made before the first driver starts and outlives every driver: each host is given the same
descriptor, and so is the store host. It has no name that anybody else could open. The kernel never
maps it and never reads a byte of it; it only zeroes what nothing names any more, which gives the
pages back unless they are to be kept. Untouched, it takes no memory.
"""

import ctypes
import os
import weakref
from collections.abc import Iterable, Iterator

ZEROS = memoryview(bytes(1 << 20))
KEEP_SIZE, PUNCH_HOLE = 1, 2
"""Of fallocate, as linux/falloc.h has them."""


class HostMemory:
    """So many bytes, or none at all: then `fd` is -1."""

    def __init__(self, device: str, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.fd = -1
        if num_bytes:
            self.fd = os.memfd_create(f"llmos-host-{device}", os.MFD_CLOEXEC)
            self._closing = weakref.finalize(self, os.close, self.fd)
            os.ftruncate(self.fd, num_bytes)

    def zero(self, ranges: Iterable[tuple[int, int]], keep: bool = False) -> None:
        """Zero ranges of (offset, length) bytes, and give back every page that one of them fills.

        Neighbours count as one, so that they share no page that would have to stay. Drivers that
        have the memory mapped see zeros at once; what is being copied there must have ended.

        `keep` leaves the pages there, for blocks that will be used again: to zero them takes a
        third less time, and a driver copies to a page that is there several times as fast.
        """
        told = sorted(ranges)
        ours = all(min(where) >= 0 and sum(where) <= self.num_bytes for where in told)
        assert ours, "a range of another memory"
        for offset, length in _merged(told):
            if keep:
                self._overwrite(offset, offset + length)
            else:
                self._punch(offset, length)

    def _punch(self, offset: int, length: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        where = ctypes.c_int64(offset), ctypes.c_int64(length)
        if libc.fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, *where) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot zero host memory: {os.strerror(number)}")

    def _overwrite(self, at: int, end: int) -> None:
        while at < end:
            at += os.pwrite(self.fd, ZEROS[: end - at], at)

    def close(self) -> None:
        """Give it back, as soon as no driver has it any more."""
        if self.fd >= 0:
            self._closing()
            self.fd = -1


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the bytes of sorted ranges in as few ranges as there can be."""
    start = end = 0
    for offset, length in ranges:
        if offset > end:
            if end > start:
                yield start, end - start
            start = end = offset
        end = max(end, offset + length)
    if end > start:
        yield start, end - start
