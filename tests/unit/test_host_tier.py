"""The mapped host tier: what it takes of memory, what is not there, and what cannot be reached."""

import mmap
import os
from collections.abc import Iterator

import pytest

from drivers.base import DriverFault, FaultKind, Load
from drivers.block_memory import BlockMemory
from drivers.host_tier import HostRange, HostTier, host_range
from kernel.host_memory import HostMemory

PAGE = mmap.PAGESIZE
SIZE, BLOCKS = 3 * PAGE // 2, 8  # every other block begins within a page


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory("test", 2 * PAGE + BLOCKS * SIZE)
    yield made
    made.close()


@pytest.fixture
def where(memory: HostMemory) -> HostRange:
    return HostRange(memory.fd, 2 * PAGE, BLOCKS * SIZE)


def pool() -> BlockMemory:
    """Return memory whose blocks are all different."""
    content = b"".join(bytes([block + 1]) * SIZE for block in range(BLOCKS))
    return BlockMemory(memoryview(bytearray(content)), SIZE)


def held(memory: HostMemory) -> int:
    return os.fstat(memory.fd).st_blocks * 512


def test_blocks_that_are_not_there_are_zeros_and_take_nothing(
    memory: HostMemory, where: HostRange
) -> None:
    tier, blocks = HostTier(where, SIZE), pool()
    tier.copy_in(range(BLOCKS), blocks, range(BLOCKS))
    assert not any(blocks.bytes(0, BLOCKS)) and held(memory) == 0
    tier.copy_out(pool(), [4], [2])
    assert held(memory) == 2 * PAGE
    tier.copy_in(range(BLOCKS), blocks, range(BLOCKS))
    assert held(memory) == 2 * PAGE
    assert [blocks.bytes(block)[0] for block in range(BLOCKS)] == [0, 0, 5, 0, 0, 0, 0, 0]
    assert bytes(blocks.bytes(2)) == bytes([5]) * SIZE


def test_what_is_untouched_is_known_to_the_byte(memory: HostMemory, where: HostRange) -> None:
    """Memory in front of the range and behind it is not its own."""
    tier, whole = HostTier(where, SIZE), BLOCKS * SIZE
    other = HostRange(memory.fd, 0, 2 * PAGE)
    assert where.untouched() == whole and other.untouched() == 2 * PAGE
    os.pwrite(memory.fd, b"x", 0)
    assert where.untouched() == whole and other.untouched() == PAGE
    tier.copy_out(pool(), [0, 1], [0, 1])
    assert where.untouched() == whole - 2 * SIZE and other.untouched() == PAGE
    tier.copy_out(pool(), [6], [6])
    assert where.untouched() == whole - 2 * SIZE - 2 * PAGE
    tier.copy_out(pool(), range(BLOCKS), range(BLOCKS))
    assert where.untouched() == 0 and other.untouched() == PAGE
    memory.zero([(2 * PAGE, 2 * SIZE)])
    assert where.untouched() == 2 * SIZE


def test_runs_that_pass_the_end_fail_and_kill_nobody(memory: HostMemory, where: HostRange) -> None:
    """In the middle of a block and of a run, on pages that were there."""
    tier, blocks = HostTier(where, SIZE), pool()
    tier.copy_out(blocks, range(BLOCKS), range(BLOCKS))
    os.ftruncate(memory.fd, 2 * PAGE + 5 * SIZE + 1)
    with pytest.raises(DriverFault) as caught:
        tier.copy_in([0, 1, 4, 5, 6], blocks, [0, 1, 2, 3, 4])
    assert caught.value.kind == FaultKind.COPY_FAILED and caught.value.items == (2, 3, 4)
    tier.copy_in([0, 4], blocks, [6, 7])
    assert [blocks.bytes(block)[0] for block in (6, 7)] == [1, 5]


def test_the_range_of_a_load(memory: HostMemory) -> None:
    load = Load(0, "null", "float32", 16, 8, 0, 0, True, 0)
    assert host_range(load, memory.fd, SIZE).num_bytes == 0
    assert host_range(load, -1, SIZE).num_bytes == 0
    tier = load._replace(host_bytes=3 * SIZE + 1, host_offset=PAGE)
    assert host_range(tier, memory.fd, SIZE) == (memory.fd, PAGE, 3 * SIZE)
    os.ftruncate(memory.fd, PAGE)
    with pytest.raises(DriverFault, match=f"the host memory has {PAGE}"):
        host_range(tier, memory.fd, SIZE)
    os.ftruncate(memory.fd, 1 << 20)
    assert host_range(tier, memory.fd, SIZE).num_bytes == 3 * SIZE, "it may have grown"
