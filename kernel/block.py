"""Blocks: the unit in which KV is kept, shared and counted.

A `Block` is `block_size` token positions of a context: their ids and, when it is resident, the
number of a block on the device that holds their KV. Forks share Blocks by reference, computed or
not, so a fork copies nothing. Three facts move apart and are kept apart:

    ids      what the positions are; only grows while more than one table names the block
    filled   leading positions whose KV is on the device (the fence of their step has passed)
    planned  leading positions whose KV a submitted step writes; planned >= filled

A block whose positions all have ids and KV is *sealed* and never changes. Ids are added by the
block's `writer`, or by its only user. Anybody else continues in a new Block whose `origin` is the
old one: at its first step the device copies the origin's positions, and drops the claim on it.

Every device block is in one state:

    free --alloc--> used --last table gone--> limbo --scrubbed, fence passed--> free
    reserved: the null block, for ever

The limbo rule: a block that anything submitted may still touch is not free. A freed block is
scrubbed by a later message on the same queue, and free (and zero) only when that message's fence
has passed. A block that is the origin of a copy not yet submitted waits in limbo for that first.

The pool knows no contexts, tasks or policies: it counts. It never touches a byte of KV.
"""

from array import array
from collections import deque
from collections.abc import Iterable
from enum import IntEnum
from itertools import chain
from typing import NamedTuple

from drivers.base import NULL_BLOCK
from kernel.panic import KernelPanic, check

NOT_RESIDENT = NULL_BLOCK
"""As a Block's `id`: its KV is on no device; it can be computed from ids."""
MAX_SCRUBS = 4096
"""Blocks that one message has scrubbed; the rest wait for the next."""


class BlockState(IntEnum):
    """Of a device block."""

    FREE = 0
    USED = 1
    LIMBO = 2
    RESERVED = 3


class Counts(NamedTuple):
    """Device blocks by state; they add up to the pool."""

    total: int
    free: int
    cached: int  # no index of cached blocks yet: always 0
    used: int
    limbo: int
    reserved: int


class Block:
    """Ids and, when resident, the KV of up to `block_size` positions."""

    __slots__ = (
        "filled", "heirs", "id", "ids", "origin", "origin_len", "planned", "refs", "writer",
    )  # fmt: skip

    def __init__(self, ids: "array[int]", writer: object) -> None:
        self.ids = ids
        self.writer: object = writer  # a Context; None: nobody
        self.refs = 1  # tables that name it
        self.heirs: set[Block] | None = None  # Blocks that have it as origin
        self.id = NOT_RESIDENT
        self.filled = 0
        self.planned = 0
        self.origin: Block | None = None
        self.origin_len = 0  # positions to take over from the origin

    @property
    def reach(self) -> int:
        """Leading positions that need no computing: planned, or to be taken over."""
        if self.origin is not None and self.origin.id != NOT_RESIDENT:
            return max(self.planned, self.origin_len)
        return self.planned


class BlockPool:
    """The device blocks of one model on one device."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.generation = 0  # rises whenever KV of a block is dropped: cursors into tables expire
        self.copied = 0
        self.evicted = 0
        self._state = bytearray([BlockState.FREE]) * num_blocks
        self._state[NULL_BLOCK] = BlockState.RESERVED
        self._fresh = 1  # from here on, no block was ever used
        self._free: deque[int] = deque()  # those below that are free
        self._resident: dict[int, Block] = {}
        self._dirty: list[int] = []  # in limbo, not yet named in a scrub
        self._scrubbing: deque[tuple[int, list[int]]] = deque()  # (fence value, ids), in order
        self._used = 0

    # --- references ---------------------------------------------------------------------------

    def unref(self, block: Block) -> None:
        """Note that one table fewer names the block; the last one gives its KV up."""
        check(block.refs > 0, f"block {block.id} freed twice")
        block.refs -= 1
        if block.refs == 0:
            self.drop_origin(block)
            self._leave(block)

    def pin_origin(self, block: Block, origin: Block, positions: int) -> None:
        """Let `block` begin as a copy of the first `positions` of `origin`."""
        block.origin, block.origin_len = origin, positions
        origin.heirs = origin.heirs or set()
        origin.heirs.add(block)

    def drop_origin(self, block: Block) -> None:
        """Give up the claim on the origin: it was copied, lost, or is no longer wanted."""
        origin = block.origin
        if origin is None:
            return
        block.origin = None
        assert origin.heirs is not None
        origin.heirs.discard(block)
        if origin.refs == 0:
            self._leave(origin)

    def _leave(self, block: Block) -> None:
        if block.id == NOT_RESIDENT:
            return
        if self._state[block.id] == BlockState.USED:
            self._state[block.id] = BlockState.LIMBO
            self._used -= 1
        if not block.heirs:
            self._vacate(block)

    def _vacate(self, block: Block) -> None:
        del self._resident[block.id]
        self._dirty.append(block.id)
        self._forget_kv(block)

    def _forget_kv(self, block: Block) -> None:
        """Nothing of it is left: what would have begun as its copy is computed from ids."""
        block.id = NOT_RESIDENT
        block.filled = block.planned = 0
        for heir in block.heirs or ():
            heir.origin = None
        block.heirs = None

    # --- residency ----------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        return self.num_blocks - self._fresh + len(self._free)

    @property
    def num_coming(self) -> int:
        """Blocks that will be free once what is submitted has passed."""
        return len(self._dirty) + sum(len(ids) for _, ids in self._scrubbing)

    def alloc(self, block: Block) -> None:
        """Give the block a place on the device; the caller has seen that one is free."""
        check(self.num_free > 0 and block.id == NOT_RESIDENT, "alloc without a free block")
        if self._fresh < self.num_blocks:
            block.id, self._fresh = self._fresh, self._fresh + 1
        else:
            block.id = self._free.popleft()
        check(self._state[block.id] == BlockState.FREE, f"block {block.id} was not free")
        self._state[block.id] = BlockState.USED
        self._resident[block.id] = block
        self._used += 1

    def evict(self, block: Block) -> None:
        """Drop the block's KV; its ids stay, so it can be computed again."""
        check(block.refs > 0 and block.id != NOT_RESIDENT, "evict of a block that is not in use")
        self._state[block.id] = BlockState.LIMBO
        self._used -= 1
        self._vacate(block)
        self.evicted += 1
        self.generation += 1

    def lose_all(self) -> None:
        """Drop the KV of every block: the device's epoch ended and its process is reaped."""
        for block in self._resident.values():
            self._forget_kv(block)
        self._resident.clear()
        self._dirty.clear()
        self._scrubbing.clear()
        self._state[1:] = bytes([BlockState.FREE]) * (self.num_blocks - 1)
        self._free.clear()
        self._fresh = 1
        self._used = 0
        self.generation += 1

    # --- limbo --------------------------------------------------------------------------------

    @property
    def has_dirty(self) -> bool:
        return bool(self._dirty)

    def take_dirty(self, value: int) -> list[int]:
        """Return the blocks to scrub in the message that fence `value` closes."""
        ids, self._dirty = self._dirty[:MAX_SCRUBS], self._dirty[MAX_SCRUBS:]
        if ids:
            self._scrubbing.append((value, ids))
        return ids

    def fence_passed(self, value: int) -> None:
        """Free what was scrubbed up to fence `value`."""
        while self._scrubbing and self._scrubbing[0][0] <= value:
            for block_id in self._scrubbing.popleft()[1]:
                check(self._state[block_id] == BlockState.LIMBO, f"block {block_id} left limbo")
                self._state[block_id] = BlockState.FREE
                self._free.append(block_id)

    # --- counting -----------------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        limbo = self.num_blocks - 1 - self.num_free - self._used
        return Counts(self.num_blocks, self.num_free, 0, self._used, limbo, 1)

    def free(self) -> Iterable[int]:
        """Return the free blocks, in the order in which they will be used."""
        return chain(range(self._fresh, self.num_blocks), self._free)

    def resident(self) -> Iterable[Block]:
        """Return the blocks that have a place on the device, those in limbo for a copy included."""
        return self._resident.values()

    def check(self) -> None:
        """Panic unless the books agree; O(pool), for tests and the idle kernel."""
        tally = [self._state.count(state) for state in BlockState]
        counts = self.counts
        listed = (counts.free, counts.used, counts.limbo, counts.reserved)
        if tuple(tally) != listed:
            raise KernelPanic(f"blocks by state {tally}, by list {listed}")
        held = sum(1 for block in self._resident.values() if block.refs == 0)
        check(len(self._resident) == counts.used + held, "a block in use has no Block")
        check(held + self.num_coming == counts.limbo, "a block in limbo waits for nothing")
        for block_id, block in self._resident.items():
            check(block.id == block_id, f"block {block_id} is registered as {block.id}")
            check(block.refs > 0 or bool(block.heirs), f"block {block_id} is kept by nobody")
            check(
                block.filled <= block.planned <= len(block.ids) <= self.block_size,
                f"block {block_id}: {block.filled} filled, {block.planned} planned, "
                f"{len(block.ids)} ids",
            )
