"""The free blocks of a pool: which come next, and what many of them cost."""

import tracemalloc
from array import array

import pytest

from kernel.block import Block
from kernel.panic import KernelPanic
from kernel.pool import BlockPool


def take(pool: BlockPool, count: int) -> list[Block]:
    blocks = [Block(array("i", [1]), None) for _ in range(count)]
    for block in blocks:
        pool.alloc(block)
    return blocks


def test_blocks_that_were_never_used_come_first_then_those_given_back() -> None:
    pool = BlockPool(6, 4)
    blocks = take(pool, 3)
    assert [block.id for block in blocks] == [1, 2, 3] and list(pool.free()) == [4, 5]
    for block in (blocks[1], blocks[0]):
        pool.unref(block)
    assert pool.take_scrubs(1)[1] == [2, 1] and pool.num_free == 2
    pool.fence_passed(1)
    pool.check()
    assert list(pool.free()) == [4, 5, 2, 1] and pool.num_free == pool.counts.free == 4
    assert [block.id for block in take(pool, 4)] == [4, 5, 2, 1]
    with pytest.raises(KernelPanic, match="without a free block"):
        take(pool, 1)
    pool.lose_device()
    pool.check()
    assert list(pool.free()) == [1, 2, 3, 4, 5]


def test_a_large_pool_is_made_and_lost_at_once() -> None:
    """A list of all its blocks would hold the loop, and take 40 bytes for each."""
    tracemalloc.start()
    pool = BlockPool(1 << 20, 16)
    take(pool, 100)
    pool.lose_device()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
