"""Pool: the device places of one model, its lower tiers and its prefix index, kept in step.

The states of a place and their edges are in kernel/block.py. The limbo rule: a place that anything
submitted may still touch is not free. A freed place is scrubbed by a later message on the COMPUTE
queue, and free (and zero) only when that message's fence has passed. One that a copy between tiers
reads or fills, or that is the origin of a copy not yet submitted, waits for that first.

A Block in no table that the index finds is *cached*: it keeps its places until they are needed. A
step may take the place of a cached block at once, the oldest first: nothing submitted but an
earlier message of the same queue can touch it, and the step's own message zeroes it first.

The pool knows no contexts, tasks or policies: it counts. It never touches a byte of KV.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from drivers.base import NULL_BLOCK
from kernel.block import EDGES, NO_PLACE, NOT_RESIDENT, Block, BlockState, Counts, Move
from kernel.disktier import DiskTier
from kernel.hosttier import HostTier
from kernel.ledger import placed
from kernel.panic import KernelPanic, check
from kernel.prefix import PrefixIndex

MAX_SCRUBS = 4096
"""Blocks that one message has scrubbed; the rest wait for the next."""
CHUNK = 256
"""Cached blocks that are looked at at a time."""
DROP_COST = 32
"""To give a cached block up costs as much as so many of a tally (kernel/job.py)."""


class BlockPool:
    """The places of one model on one device."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        host: HostTier | None = None,
        secret: bytes = b"",
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.host = host or HostTier()
        self.disk = DiskTier()  # until it gets another one
        self.index = PrefixIndex(secret)
        self.generation = 0  # rises whenever KV leaves the device: cursors into tables expire
        self.named = 0  # Blocks that tables name
        self.visits = 0  # of saves and loads, that hold some of its places for a while
        self.copied = 0
        self.evicted = 0
        self._clock = clock
        self._state = bytearray([BlockState.FREE]) * num_blocks
        self._state[NULL_BLOCK] = BlockState.RESERVED
        self._fresh = 1  # from here on, no place was ever used
        self._free: deque[int] = deque()  # those below that are free
        self._resident: dict[int, Block] = {}
        self._targets: dict[int, Block] = {}  # places that copies fill
        # those that nothing holds, the oldest first; a dict would be slow to give its first one up
        self._cached: OrderedDict[Block, None] = OrderedDict()
        self._recycled: list[int] = []  # taken from cached blocks, to be scrubbed before all else
        self._dirty: list[int] = []  # in limbo, not yet named in a scrub
        self._scrubbing: deque[tuple[int, list[int]]] = deque()  # (fence value, ids), in order
        self._coming = 0  # in limbo for a scrub
        self._by_state = [num_blocks - 1, 0, 0, 1, 0]

    def _move(self, place: int, to: BlockState) -> None:
        state = BlockState(self._state[place])
        check((state, to) in EDGES, f"block {place}: {state.name} to {to.name}")
        self._state[place] = to
        self._by_state[state] -= 1
        self._by_state[to] += 1

    # --- references ---------------------------------------------------------------------------

    def new_block(self, ids: "array[int]", writer: object, owner: int, payer: Any = None) -> Block:
        """Return a Block that one table names."""
        self.named += 1
        return Block(ids, writer, owner, payer)

    def ref(self, block: Block) -> None:
        """Note that one table more names a Block that was found in the index."""
        block.refs += 1
        if block.refs > 1:
            return
        self.named += 1
        self._cached.pop(block, None)
        if block.id != NOT_RESIDENT:
            self._move(block.id, BlockState.USED)
        self.host.renamed(block)
        placed(block)

    def unref(self, block: Block) -> None:
        """Note that one table fewer names the block; the last one gives its KV up."""
        check(block.refs > 0, f"block {block.id} freed twice")
        block.refs -= 1
        if block.refs == 0:
            self.named -= 1
            placed(block)
            if block.moving is Move.NONE:
                self.drop_origin(block)
            self.leave(block)

    def pin_origin(self, block: Block, origin: Block, positions: int) -> None:
        """Let `block` begin as a copy of the first `positions` of `origin`."""
        block.origin, block.origin_len = origin, positions
        origin.heirs = origin.heirs or set()
        origin.heirs.add(block)

    @contextmanager
    def visit(self) -> Iterator[None]:
        """Note that a save or a load holds places: they are room as soon as it is done."""
        self.visits += 1
        try:
            yield
        finally:
            self.visits -= 1

    def drop_origin(self, block: Block) -> None:
        """Give up the claim on the origin: it was copied, lost, or is no longer wanted."""
        origin = block.origin
        if origin is None:
            return
        block.origin, block.lost = None, max(block.lost, block.origin_len)
        assert origin.heirs is not None
        origin.heirs.discard(block)
        if origin.refs == 0:
            self.leave(origin)

    def enter(self, blocks: Sequence[Block], at: int) -> None:
        """Let blocks[at], whose ids are final, be found by what it holds."""
        vain = self.index.add(blocks, at)
        if vain is not None and vain.refs == 0:
            self.leave(vain)

    def leave(self, block: Block) -> None:
        """Keep a Block that no table names as a cached one, if it is worth it; else vacate it."""
        keep = block in self.index and max(block.filled, block.kept) == self.block_size
        if block.id != NOT_RESIDENT:
            state = BlockState.CACHED if keep else BlockState.LIMBO
            if self._state[block.id] != state:
                self._move(block.id, state)
        self.host.renamed(block)
        if block.held:
            if block.nowhere and not (block.moving or block.readers):
                self._vacate(block)  # it is of no use to those that would begin as its copy
            return
        self.disk.drop(block)  # it would cost more to find it than to compute it
        if not keep:
            self._vacate(block)
        elif block.id != NOT_RESIDENT:
            self._cached[block] = None

    def _vacate(self, block: Block) -> None:
        """Give all places of a Block that nobody names up."""
        self.index.discard(block)
        self._leave_device(block)
        self.host.drop(block)
        self._orphan(block)

    def _leave_device(self, block: Block) -> None:
        """Let the device place of a Block go."""
        if block.id == NOT_RESIDENT:
            return
        if self._state[block.id] != BlockState.LIMBO:
            self._move(block.id, BlockState.LIMBO)
        del self._resident[block.id]
        self._cached.pop(block, None)
        self._dirty.append(block.id)
        self._coming += 1
        self._forget_kv(block)

    def _forget_kv(self, block: Block) -> None:
        block.id, block.lost = NOT_RESIDENT, max(block.lost, block.filled)
        block.filled = block.planned = 0
        self.host.renamed(block)
        placed(block)

    def _orphan(self, block: Block) -> None:
        """Nothing of it is left: what would have begun as its copy is computed from ids."""
        if not block.kept and block.heirs:
            for heir in block.heirs:
                heir.origin, heir.lost = None, max(heir.lost, heir.origin_len)
            block.heirs = None
        if block.refs == 0 and not block.held:
            self.disk.drop(block)

    # --- residency ----------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        return self.num_blocks - self._fresh + len(self._free)

    @property
    def num_cached(self) -> int:
        """Cached blocks whose places the next message can take: it has to zero them."""
        return min(len(self._cached), MAX_SCRUBS - len(self._recycled))

    @property
    def num_coming(self) -> int:
        """Blocks that will be free once what is submitted has passed."""
        return self._coming

    def alloc(self, block: Block) -> None:
        """Give the block a place on the device; the caller has seen that one is free or cached."""
        check(block.id == NOT_RESIDENT, "alloc for a block that has a place")
        if self.num_free:
            place = self._take_free()
        else:
            place = self._recycle()
        self._move(place, BlockState.USED)
        block.id = place
        self._resident[place] = block
        placed(block)

    def _take_free(self) -> int:
        if self._fresh < self.num_blocks:
            self._fresh += 1
            return self._fresh - 1
        return self._free.popleft()

    def _recycle(self) -> int:
        """Take the place of the oldest cached block."""
        check(bool(self._cached), "alloc without a free block")
        old = next(iter(self._cached))
        place = old.id
        del self._cached[old], self._resident[place]
        self._forget_kv(old)
        self._gone(old, 0)
        self._recycled.append(place)
        return place

    def _gone(self, old: Block, by_pid: int) -> None:
        """Note that a cached Block has left the device; without a host copy it is lost."""
        if old.host == NO_PLACE:
            self.index.evicted(old, self._clock(), by_pid)

    def target(self, block: Block) -> None:
        """Give the block a place that a copy brings it to; one is free."""
        check(self.num_free > 0 and block.id == NOT_RESIDENT, "a target without a free block")
        block.target = self._take_free()
        self._move(block.target, BlockState.LIMBO)
        self._targets[block.target] = block

    def untarget(self, block: Block) -> None:
        """Let the target of a Block go: nothing will come. It may have been written to."""
        place, block.target = block.target, NOT_RESIDENT
        if place != NOT_RESIDENT:
            del self._targets[place]
            self._dirty.append(place)
            self._coming += 1

    def arrived(self, block: Block, filled: int) -> None:
        """Note that the copy to a Block's target is done."""
        place, block.target = block.target, NOT_RESIDENT
        del self._targets[place]
        self._resident[place] = block
        block.id, block.filled, block.planned = place, filled, filled
        self._move(place, BlockState.USED if block.refs else BlockState.CACHED)
        self.host.renamed(block)
        placed(block)

    def reclaim(self, count: int, by_pid: int) -> int:
        """Take up to `count` places from cached blocks, the oldest first; return how many."""
        chosen = [block for block, _ in zip(self._cached, range(count), strict=False)]
        for block in chosen:
            self._leave_device(block)
            self._gone(block, by_pid)
        return len(chosen)

    def drop_cached(self, owner: int) -> Generator[int, None, int]:
        """Give up the cached blocks that a user has computed, wherever they are; count them.

        In slices, of blocks that are cached when it begins: each is looked at when it comes to it.
        """
        listed, count = [*self._cached, *self.host.spare()], 0
        for start in range(0, len(listed), CHUNK):
            before = count
            for block in listed[start : start + CHUNK]:
                has_place = block.id != NOT_RESIDENT or block.host != NO_PLACE
                if block.owner == owner and has_place and block.refs == 0 and not block.held:
                    self._vacate(block)
                    count += 1
            yield CHUNK + DROP_COST * (count - before)
        return count

    def evict(self, block: Block) -> None:
        """Drop the block's KV on the device; its ids stay, so it can be computed again.

        What the host tier has of it, its first positions at least, stays.
        """
        check(block.refs > 0 and block.id != NOT_RESIDENT, "evict of a block that is not in use")
        self._leave_device(block)
        self._orphan(block)
        self.evicted += 1
        self.generation += 1

    def release(self, block: Block) -> None:
        """Let a Block's device place go: the host tier has what is in it."""
        below = block.kept == block.filled or block.disk != NO_PLACE
        check(below and block.filled > 0, "release of what no lower tier has")
        self._leave_device(block)
        self.generation += 1

    def lose_device(self) -> None:
        """Drop what is on the device: its epoch ended and its process is reaped. Copies that were
        on their way are over (kernel/swap.py)."""
        for block in list(self._resident.values()):
            self._forget_kv(block)
            self._orphan(block)
            if block.refs == 0 and block.host == NO_PLACE:
                self.index.discard(block)
        for block in self._targets.values():
            block.target = NOT_RESIDENT
        self._targets.clear()
        self._resident.clear()
        self._cached.clear()
        self._recycled.clear()
        self._dirty.clear()
        self._scrubbing.clear()
        self._coming = 0
        self._state[1:] = bytes([BlockState.FREE]) * (self.num_blocks - 1)
        self._by_state = [self.num_blocks - 1, 0, 0, 1, 0]
        self._free.clear()
        self._fresh = 1
        self.generation += 1

    def lose_all(self) -> None:
        """Drop the KV of every block in every tier: the model has gone."""
        blocks = list(self.host.blocks())
        self.lose_device()
        self.host.lose_all()
        for block in blocks:
            self.index.discard(block)
            self._orphan(block)

    # --- limbo --------------------------------------------------------------------------------

    @property
    def has_dirty(self) -> bool:
        return bool(self._dirty)

    def take_scrubs(self, value: int) -> tuple[list[int], list[int]]:
        """Return what the message that fence `value` closes must zero: before it does anything
        else, the places that it has taken from cached blocks; after its copies, those in limbo.
        """
        recycled, self._recycled = self._recycled, []
        count = MAX_SCRUBS - len(recycled)
        ids, self._dirty = self._dirty[:count], self._dirty[count:]
        if ids:
            self._scrubbing.append((value, ids))
        return recycled, ids

    def fence_passed(self, value: int) -> None:
        """Free what was scrubbed up to fence `value`."""
        while self._scrubbing and self._scrubbing[0][0] <= value:
            ids = self._scrubbing.popleft()[1]
            for place in ids:
                self._move(place, BlockState.FREE)
            self._free.extend(ids)
            self._coming -= len(ids)

    # --- counting -----------------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        by = self._by_state
        return Counts(
            self.num_blocks, by[BlockState.FREE], by[BlockState.CACHED], by[BlockState.USED],
            by[BlockState.LIMBO], by[BlockState.RESERVED],
        )  # fmt: skip

    def free(self) -> Iterable[int]:
        """Return the free blocks, in the order in which they will be used."""
        return chain(range(self._fresh, self.num_blocks), self._free)

    def resident(self) -> Iterable[Block]:
        """Return the blocks that have a place on the device, those in limbo for a copy included."""
        return self._resident.values()

    def check(self) -> None:
        """Panic unless the books agree; O(pool), for tests and the idle kernel."""
        tally = [self._state.count(state) for state in BlockState]
        if tally != self._by_state or tally[BlockState.FREE] != self.num_free:
            raise KernelPanic(f"places by state {tally}, by count {self._by_state}")
        states = [0] * len(tally)
        for place, block in self._resident.items():
            check(block.id == place, f"block {place} is registered as {block.id}")
            states[self._state[place]] += 1
            self._check_block(block, BlockState(self._state[place]))
        for state in (BlockState.USED, BlockState.CACHED):
            check(states[state] == tally[state], f"{tally[state]} are {state.name} without a Block")
        limbo = states[BlockState.LIMBO] + self._coming + len(self._targets)
        check(tally[BlockState.LIMBO] == limbo, "a block in limbo waits for nothing")
        loose = sum(not block.held for block in self._resident.values() if block.refs == 0)
        check(loose == len(self._cached), f"{loose} could go, {len(self._cached)} are listed")
        self.host.check()
        self.disk.check()

    def _check_block(self, block: Block, state: BlockState) -> None:
        place = block.id
        if block.refs > 0:
            check(state is BlockState.USED, f"block {place} of a table is {state.name}")
        elif state is BlockState.CACHED:
            check(block in self.index, f"block {place} is cached, and cannot be found")
        else:
            check(state is BlockState.LIMBO and block.held, f"block {place} is kept by nobody")
        sizes = block.filled, block.planned, len(block.ids), self.block_size
        check(sizes == tuple(sorted(sizes)), f"block {place}: filled, planned, ids, size {sizes}")
