"""Blocks that lie one behind the other in memory of this process, and copies between such memories.

A copy is one memory copy per run of neighbours, made without the interpreter's lock and in one
thread: beside a forward pass it takes no core that the pass is using.
"""

import ctypes
from collections.abc import Iterator, Sequence
from mmap import mmap

RUN_BYTES = 8 << 20
"""Of one piece of a copy, so that each is looked at and told of alone."""


class BlockMemory:
    """Blocks of `block_bytes` each in a writable buffer, from byte `offset` on."""

    def __init__(self, buffer: "memoryview | mmap", block_bytes: int, offset: int = 0) -> None:
        self.block_bytes = block_bytes
        self._bytes = memoryview(buffer).cast("B")[offset:]
        self._address = 0
        if self._bytes:
            self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._bytes))

    def address(self, block: int) -> int:
        return self._address + block * self.block_bytes

    def bytes(self, block: int, count: int = 1) -> memoryview:
        """Return some blocks as they lie there."""
        size = self.block_bytes
        return self._bytes[block * size : (block + count) * size]

    def copy(self, src: Sequence[int], target: "BlockMemory", dst: Sequence[int]) -> None:
        """Copy block src[i] to block dst[i] of other memory."""
        for first, to, count in runs(src, dst, self.block_bytes):
            size = count * self.block_bytes
            ctypes.memmove(target.address(to), self.address(first), size)


def runs(
    src: Sequence[int], dst: Sequence[int], block_bytes: int
) -> Iterator[tuple[int, int, int]]:
    """Yield (first source, first target, count) of neighbours on both sides, in order."""
    most, at, total = max(1, RUN_BYTES // block_bytes), 0, len(src)
    while at < total:
        first, to, end = src[at], dst[at], at + 1
        while (
            end < total
            and end - at < most
            and src[end] == first + end - at
            and dst[end] == to + end - at
        ):
            end += 1
        yield first, to, end - at
        at = end
