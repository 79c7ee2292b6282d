"""Host tier: a model's blocks in the host memory, which the kernel made and this process inherited.

    host memory   [ ... | block 0 | block 1 | ... | rest ][ another model's range ... ]
                        host_offset                       host_offset + host_bytes

Blocks lie there in canonical order, one behind the other, so whichever driver comes next can go on
with them. What is in the range when a model is loaded stays as it is.

Where a run of blocks has all of its pages, it is copied as memory. Where the kernel has given pages
back, it is read and written as a file: to touch a page that is not there costs twice what it costs
to write it, to read it would take memory for zeros, and no memory left is an error then, no SIGBUS.
New pages are mapped at once, on the way out, when nobody waits: on the way back, page by page, that
would take longer than the copy.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

from drivers.base import DriverFault, FaultKind, Load
from drivers.block_memory import BlockMemory, runs

MADV_POPULATE_READ = 22
"""Of madvise, as linux/mman.h has it."""


class HostRange(NamedTuple):
    """Bytes of the host memory."""

    fd: int
    offset: int
    num_bytes: int  # of whole blocks; 0: no host tier

    def map(self) -> mmap.mmap:
        """Map it, shared with all that have the memory."""
        return mmap.mmap(self.fd, self.num_bytes, offset=self.offset)

    def untouched(self) -> int:
        """Return the bytes that have no memory yet; they take it from what is free when used."""
        end, at, held = self.offset + self.num_bytes, self.offset, 0
        while at < end:
            try:
                data = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but holes from here on
                break
            at = os.lseek(self.fd, data, os.SEEK_HOLE)
            held += max(min(at, end) - data, 0)
        return self.num_bytes - held


def host_range(load: Load, fd: int, block_bytes: int) -> HostRange:
    """Return where the blocks of a Load lie; refuse a range that is not within the host memory."""
    offset, asked = load.host_offset, load.host_bytes
    if not asked:
        return HostRange(fd, 0, 0)
    if fd < 0:
        what = f"a host tier of {asked} bytes: the kernel has no host memory for this device"
        raise DriverFault(FaultKind.UNSUPPORTED, what)
    size = os.fstat(fd).st_size
    if asked < 0 or offset < 0 or offset + asked > size:
        what = f"a host tier in bytes {offset} to {offset + asked}, the host memory has {size}"
        raise DriverFault(FaultKind.MODEL_LOAD, what)
    if offset % mmap.PAGESIZE:
        what = f"a host tier from byte {offset} on, which is no multiple of {mmap.PAGESIZE}"
        raise DriverFault(FaultKind.MODEL_LOAD, what)
    if load.num_host_blocks:
        what = f"{load.num_host_blocks} host blocks and a host tier of {asked} bytes: give one"
        raise DriverFault(FaultKind.MODEL_LOAD, what)
    return HostRange(fd, offset, asked // block_bytes * block_bytes)


class HostTier:
    """The mapped host tier of one model. Blocks are in range, and a target is named once."""

    def __init__(self, where: HostRange, block_bytes: int) -> None:
        self.num_blocks = where.num_bytes // block_bytes
        self._where, self._size = where, block_bytes
        self._memory = BlockMemory(where.map(), block_bytes)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def copy_out(self, pool: BlockMemory, src: Sequence[int], dst: Sequence[int]) -> None:
        """Copy blocks of a pool to here; COPY_FAILED names those that were not written."""
        done = 0
        for first, to, count in runs(src, dst, self._size):
            try:
                if self._is_there(to, count):
                    ctypes.memmove(
                        self._memory.address(to), pool.address(first), count * self._size
                    )
                else:
                    self._write(to, pool.bytes(first, count))
            except OSError as error:
                raise _failed("out to the host tier", dst[done:], error) from None
            done += count

    def copy_in(self, src: Sequence[int], pool: BlockMemory, dst: Sequence[int]) -> None:
        """Copy blocks from here to a pool; COPY_FAILED names those that were not written."""
        done = 0
        for first, to, count in runs(src, dst, self._size):
            try:
                if self._is_there(first, count):
                    ctypes.memmove(
                        pool.address(to), self._memory.address(first), count * self._size
                    )
                else:
                    self._read(first, pool.bytes(to, count))
            except OSError as error:
                raise _failed("in from the host tier", dst[done:], error) from None
            done += count

    def move(self, src: Sequence[int], dst: Sequence[int]) -> None:
        """Copy blocks within the tier; all are read before any is written."""
        again = sorted(set(src) & set(dst))  # their bytes are needed after they were overwritten
        kept = BlockMemory(memoryview(bytearray(len(again) * self._size)), self._size)
        self.copy_in(again, kept, range(len(again)))
        place = {block: at for at, block in enumerate(again)}
        for block, to in zip(src, dst, strict=True):
            if block in place:
                self.copy_out(kept, [place[block]], [to])
            else:
                self.copy_out(self._memory, [block], [to])

    def _is_there(self, block: int, count: int) -> bool:
        """Whether some blocks have all of their pages; OSError if they are not in the memory."""
        if self._where.offset + (block + count) * self._size > os.fstat(self._where.fd).st_size:
            raise OSError(0, "the host memory ends before")
        # not SEEK_HOLE, which looks at all that is behind them as well
        start, size = self._pages(block, count)
        there = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        if self._libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), there) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return 0 not in bytes(there)

    def _write(self, block: int, content: memoryview) -> None:
        at, count = self._where.offset + block * self._size, len(content) // self._size
        while content:
            done = os.pwrite(self._where.fd, content, at)
            content, at = content[done:], at + done
        start, size = self._pages(block, count)
        # Linux 5.14; older ones refuse it, and map each page when it is touched
        self._libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), MADV_POPULATE_READ)

    def _pages(self, block: int, count: int) -> tuple[int, int]:
        """Return address and bytes of the memory of some blocks, from the start of a page."""
        torn = self._memory.address(block) % mmap.PAGESIZE
        return self._memory.address(block) - torn, torn + count * self._size

    def _read(self, block: int, into: memoryview) -> None:
        at = self._where.offset + block * self._size
        while into:
            done = os.preadv(self._where.fd, [into], at)
            if not done:
                raise OSError(0, "the host memory ends there")
            into, at = into[done:], at + done


def _failed(where: str, blocks: Sequence[int], error: OSError) -> DriverFault:
    what = f"{len(blocks)} blocks were not copied {where}: {error.strerror}"
    return DriverFault(FaultKind.COPY_FAILED, what, blocks)
