"""Contexts and blocks against a plain model: lists of ids, whatever is forked, trimmed or dropped.

The device is a dictionary from block to the ids whose KV it holds, written by the same rules as a
step: so a context must always find, in its own blocks, the KV of its own ids.
"""

from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kernel.block import NOT_RESIDENT, Block, Move
from kernel.context import Context
from kernel.hosttier import HostTier
from kernel.panic import KernelPanic
from kernel.pool import BlockPool
from kernel.swap import Swap

SIZE = 4
IDS = st.lists(st.integers(0, 9), min_size=1, max_size=11)


class Contexts(RuleBasedStateMachine):
    """Random appends, forks, trims, frees, computations and evictions."""

    contexts = Bundle("contexts")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(num_blocks=400, block_size=SIZE)
        self.mirror: dict[Context, list[int]] = {}
        self.device: dict[int, list[int]] = {}
        self.value = 0

    @rule(target=contexts)
    def make(self) -> Context:
        ctx = Context(len(self.mirror), 7, "", "m", self.pool)
        self.mirror[ctx] = []
        return ctx

    @rule(ctx=contexts, ids=IDS)
    def append(self, ctx: Context, ids: list[int]) -> None:
        ctx.append(array("i", ids))
        self.mirror[ctx] += ids

    @rule(target=contexts, ctx=contexts)
    def fork(self, ctx: Context) -> Context:
        before = self.pool.counts
        child = ctx.fork(0, 7, "")
        assert self.pool.counts == before, "a fork takes no block"
        self.mirror[child] = list(self.mirror[ctx])
        return child

    @rule(ctx=contexts, data=st.data())
    def trim(self, ctx: Context, data: st.DataObject) -> None:
        length = data.draw(st.integers(0, ctx.length))
        ctx.trim(length)
        del self.mirror[ctx][length:]

    @rule(ctx=consumes(contexts))
    def free(self, ctx: Context) -> None:
        ctx.free()
        del self.mirror[ctx]

    @rule(ctx=contexts, count=st.integers(1, 12))
    def compute(self, ctx: Context, count: int) -> None:
        """What a step does: places, copies, then KV of the next positions."""
        start = ctx.planned
        end = min(ctx.length, start + count)
        for index in range(start // SIZE, -(-end // SIZE)):
            block = ctx.blocks[index]
            if index > start // SIZE and block.reach:
                break
            self._place(block)
            upto = min(SIZE, end - index * SIZE)
            for offset in range(block.planned, upto):
                slots = self.device[block.id]
                assert len(slots) == offset, "a position is computed once, in order"
                slots.append(ctx.read(0, ctx.length)[index * SIZE + offset])
            block.planned = block.filled = max(block.planned, upto)

    def _place(self, block: Block) -> None:
        if block.id != NOT_RESIDENT:
            return
        self.pool.alloc(block)
        self.device[block.id] = []
        if block.origin is not None:
            if block.origin.id != NOT_RESIDENT:
                copied = self.device[block.origin.id][: block.origin_len]
                assert len(copied) == block.origin_len
                self.device[block.id] = copied
                block.planned = block.filled = block.origin_len
            self.pool.drop_origin(block)

    @rule(ctx=contexts, data=st.data())
    def evict(self, ctx: Context, data: st.DataObject) -> None:
        resident = [block for block in ctx.blocks if block.id != NOT_RESIDENT]
        if resident:
            self.pool.evict(data.draw(st.sampled_from(resident)))

    @rule()
    def lose(self) -> None:
        self.pool.lose_device()

    @rule()
    def scrub(self) -> None:
        self.value += 1
        for block_id in self.pool.take_scrubs(self.value)[1]:
            self.device.pop(block_id, None)
        self.pool.fence_passed(self.value)

    @invariant()
    def ids_are_the_mirror(self) -> None:
        for ctx, ids in self.mirror.items():
            assert ctx.length == len(ids)
            assert list(ctx.read(0, ctx.length)) == ids

    @invariant()
    def kv_is_that_of_the_ids(self) -> None:
        for ctx, ids in self.mirror.items():
            for index in range(-(-ctx.computed // SIZE)):
                upto = min(SIZE, ctx.computed - index * SIZE)
                held = self.device[ctx.blocks[index].id][:upto]
                assert held == ids[index * SIZE : index * SIZE + upto]

    @invariant()
    def books_agree(self) -> None:
        self.pool.check()
        for ctx in self.mirror:
            assert list(ctx.table(ctx.length)) == [block.id for block in ctx.blocks]
            assert ctx.computed <= ctx.planned <= ctx.length or ctx.length == 0
        shares = sum(1 / b.refs for ctx in self.mirror for b in ctx.blocks if b.id)
        assert abs(shares - self.pool.counts.used) < 1e-6

    def teardown(self) -> None:
        for ctx in self.mirror:
            ctx.free()
        self.scrub()
        counts = self.pool.counts
        assert (counts.used, counts.limbo, counts.free) == (0, 0, counts.total - 1)


Contexts.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestContexts = Contexts.TestCase


def filled(pool: BlockPool, ids: list[int]) -> Context:
    ctx = Context(1, 7, "", "m", pool)
    ctx.append(array("i", ids))
    for index, block in enumerate(ctx.blocks):
        pool.alloc(block)
        block.filled = block.planned = min(SIZE, ctx.length - index * SIZE)
    return ctx


def test_writer_goes_on_in_place_and_the_fork_copies() -> None:
    pool = BlockPool(16, SIZE)
    parent = filled(pool, [1, 2, 3, 4, 5, 6])
    child = parent.fork(2, 7, "")
    parent.append(array("i", [7]))
    assert child.blocks[1] is parent.blocks[1], "the writer adds in place"
    child.append(array("i", [8]))
    assert child.blocks[0] is parent.blocks[0], "sealed blocks stay shared"
    assert child.blocks[1].origin is parent.blocks[1] and child.blocks[1].origin_len == 2
    assert list(child.read(0, 7)) == [1, 2, 3, 4, 5, 6, 8]
    assert list(parent.read(0, 7)) == [1, 2, 3, 4, 5, 6, 7]


def test_sealed_block_is_never_cut_in_place() -> None:
    pool = BlockPool(16, SIZE)
    ctx = filled(pool, [1, 2, 3, 4])
    sealed = ctx.blocks[0]
    ctx.trim(2)
    ctx.append(array("i", [9]))
    assert ctx.blocks[0] is not sealed and list(sealed.ids) == [1, 2, 3, 4]
    assert sealed.refs == 0 and pool.counts.limbo == 1, "kept for the copy, then gone"


def test_nothing_is_cut_that_a_step_still_writes() -> None:
    pool = BlockPool(16, SIZE)
    ctx = filled(pool, [1, 2, 3])
    ctx.blocks[0].filled = 1  # positions 1 and 2 are in flight
    in_flight = ctx.blocks[0]
    ctx.trim(2)
    ctx.append(array("i", [9]))
    assert ctx.blocks[0] is not in_flight and ctx.blocks[0].origin_len == 1


def test_what_a_copy_brings_is_not_there_before_it_has_come() -> None:
    """Found by a walk: its origin had come back by then, and a step gave it a second place."""
    pool = BlockPool(16, SIZE, HostTier(8))
    swap = Swap(pool, block_bytes=64)
    parent = filled(pool, [1, 2, 3, 4, 5, 6])
    child, origin = parent.fork(2, 7, ""), parent.blocks[1]
    child.append(array("i", [7]))
    assert child.planned == 6, "the origin is there to be copied"
    assert swap.out(origin) and swap.take(Move.OUT)
    swap.landed(Move.OUT, 1)
    assert child.planned == 4, "the origin is on the host tier"
    pool.take_scrubs(1)
    pool.fence_passed(1)
    swap.bring(origin)
    assert swap.take(Move.IN)
    swap.bring(child.blocks[1])
    swap.landed(Move.IN, 1)
    assert parent.planned == 6 and child.planned == 4, "only the origin has come"
    assert swap.take(Move.IN)
    swap.landed(Move.IN, 1)
    assert child.planned == 6


def test_freed_block_waits_for_its_fence() -> None:
    pool = BlockPool(3, SIZE)
    filled(pool, [1, 2, 3, 4, 5]).free()
    assert pool.counts.limbo == 2 and pool.num_free == 0
    assert sorted(pool.take_scrubs(5)[1]) == [1, 2]
    pool.fence_passed(4)
    assert pool.num_free == 0
    pool.fence_passed(5)
    assert pool.num_free == 2


def test_double_free_panics() -> None:
    pool = BlockPool(3, SIZE)
    block = Block(array("i", [1]), writer=None)
    pool.unref(block)
    with pytest.raises(KernelPanic, match="freed twice"):
        pool.unref(block)
