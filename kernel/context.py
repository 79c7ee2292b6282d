"""Context: a token sequence with its KV, the address space of the kernel.

A context is `length` ids, kept in a table of Blocks that forks share (kernel/block.py). How much
of it is computed is a fact of its blocks, not of the context: what one sharer computes, all have.
Behind its last id there may be empty blocks, for ids that a step is about to sample (`open_to`).
Ids change in three ways only: append, trim, and fork (which makes another context). All of them
work on ids alone; KV follows when the scheduler runs the context.

Not here: who may do it (syscall handlers), when it is computed (sched), what is dropped (pager).
"""

from array import array
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from kernel.block import NO_PLACE, Block
from kernel.ledger import passes
from kernel.panic import check
from kernel.pool import BlockPool
from syscalls.abi import Access

MAX_LOSSES = 16
"""That a context remembers."""
_FILLED, _ID = attrgetter("filled"), attrgetter("id")


class Loss(NamedTuple):
    """KV that a context has lost, or would have found had it not been evicted."""

    at: float
    what: str  # swapped | dropped | evicted | died
    why: str
    start: int  # position of the first
    tokens: int
    by_pid: int  # whose request needed the room; 0: nobody's
    cost_us: int  # to have it again


class Context:
    """One context of a task."""

    def __init__(
        self, handle: int, pid: int, name: str, model: Any, pool: BlockPool, owner: int = 0
    ) -> None:
        self.handle = handle
        self.pid = pid
        self.owner = owner  # uid, whose prefixes it finds and adds to
        self.name = name
        self.model = model  # a Model (kernel/model.py)
        self.pool = pool
        self.account: Any = None  # of its task: what it holds is charged to it
        self.blocks: list[Block] = []
        self.length = 0
        self.request: Any = None  # the Request being scheduled, at most one
        self.queued: deque[Any] = deque()  # calls that wait behind it (QUEUE)
        self.fresh = 0  # positions computed for an append, that no infer has counted yet
        self.last_use = 0  # kernel turn
        self.used_at = 0.0  # when it was last in a step
        self.returns_at = 0.0  # when its task is expected back from a call; 0: it is in none
        self.paid = 0  # leading positions that somebody was charged for: again they cost nothing
        self.pinned = False  # its KV stays on the device
        self.demoted = False  # its KV is the first to leave
        self.retained_until = 0.0  # its KV leaves after that of others
        self.stopped = False  # so is its task
        self.feed: Any = None  # the Feed (kernel/topic.py) that adds ids to it
        self.gone = False  # it was freed; its blocks may still be given back
        self.losses: deque[Loss] = deque(maxlen=MAX_LOSSES)
        self.grant: Any = None  # the Grant (kernel/grant.py) through which it was opened
        self.access = Access(15)  # what its task may do with it
        self.foreign = 0  # leading ids that are the grantor's
        self._seen = pool.generation
        self._settled = 0  # leading blocks that are sealed
        self._table: array[int] = array("i")  # device ids of the settled blocks

    @property
    def revoked(self) -> bool:
        """Whether the grant was taken back through which it was opened: it is to be freed."""
        return self.grant is not None and self.grant.taken

    @property
    def busy(self) -> bool:
        """Whether an infer of it is unfinished; a prefill in the background does not count."""
        return self.request is not None and not self.request.background

    # --- ids ----------------------------------------------------------------------------------

    def append(self, ids: "Sequence[int]") -> None:
        """Add ids at the end. Sealed and shared blocks are left as they are."""
        size = self.pool.block_size
        room = -self.length % size
        if room:
            tail = self._own_tail(size - room)
            tail.ids.extend(ids[:room])
            tail.writer = self
        for start in range(room, len(ids), size):
            self._open((self.length + start) // size).extend(ids[start : start + size])
        self.length += len(ids)

    def _open(self, at: int) -> "array[int]":
        """Return the ids of an empty block behind all that have some; there may be one already."""
        if at == len(self.blocks):
            self.blocks.append(self.pool.new_block(array("i"), self, self.owner, self.account))
        return self.blocks[at].ids

    def open_to(self, end: int) -> bool:
        """Have blocks for positions before `end` whose ids are not known yet; `close` drops them.

        False if this must not write behind its last id: a block there is somebody else's to go on
        in, or has to be copied first.
        """
        size = self.pool.block_size
        offset = self.length % size
        if offset:
            tail = self.blocks[self.length // size]
            if len(tail.ids) != offset or (tail.writer is not self and tail.refs > 1):
                return False
            tail.writer = self
        while len(self.blocks) * size < end:
            self._open(len(self.blocks))
        return True

    def close(self) -> None:
        """Drop blocks behind the last id."""
        keep = -(-self.length // self.pool.block_size)
        while len(self.blocks) > keep:
            self.pool.unref(self.blocks.pop())

    def _own_tail(self, offset: int) -> Block:
        """Return the last block in a state in which this context may add ids at `offset`."""
        at = self.length // self.pool.block_size
        tail = self.blocks[at]
        if len(tail.ids) == offset and (tail.writer is self or tail.refs == 1):
            self._take(tail, tail, offset)
            return tail
        reach = max(tail.planned, tail.kept, len(tail.ids) if tail.disk != NO_PLACE else 0)
        if tail.refs == 1 and reach <= offset:
            self.pool.index.changed(tail)
            del tail.ids[offset:]  # mine alone, and no KV of it reaches past the offset
            tail.origin_len, tail.lost = min(tail.origin_len, offset), min(tail.lost, offset)
            self._take(tail, tail, offset)
            return tail
        copy = self.pool.new_block(tail.ids[:offset], self, self.owner, self.account)
        copy.lost = min(tail.lost, offset)
        self._take(copy, tail, offset)
        positions = min(offset, max(tail.filled, tail.kept))
        if positions:
            self.pool.pin_origin(copy, tail, positions)
        self.blocks[at] = copy
        self._settled = min(self._settled, at)
        del self._table[self._settled :]
        self.pool.unref(tail)
        return copy

    def _take(self, block: Block, source: Block, offset: int) -> None:
        """Make a block with others' ids before the offset this owner's, before it adds its own.

        Its chain is salted then: who may not read those ids could else find them out, by prompts
        that are found in the index if they are equal.
        """
        block.salt = source.salt
        if source.owner != self.owner:
            block.salt = b"%d ids of %d" % (offset, source.owner)
            block.owner = self.owner

    def trim(self, length: int) -> None:
        """Drop ids from the end, and the writer role in a block that is cut."""
        check(0 <= length <= self.length, f"trim of {self.length} ids to {length}")
        size = self.pool.block_size
        keep = -(-length // size)
        for block in reversed(self.blocks[keep:]):  # what lies deeper is worth less to the index
            self.pool.unref(block)
        del self.blocks[keep:]
        if length % size and self.blocks[-1].writer is self and length < self.length:
            self.blocks[-1].writer = None
        self.length = length
        self.paid = min(self.paid, length)
        self.foreign = min(self.foreign, length)
        self._settled = min(self._settled, keep)
        del self._table[self._settled :]

    def fork(self, handle: int, pid: int, name: str) -> "Context":
        """Return a context with the same ids and rights that shares every block."""
        child = Context(handle, pid, name, self.model, self.pool, self.owner)
        child.grant, child.access, child.foreign = self.grant, self.access, self.foreign
        child.blocks = self.blocks[: -(-self.length // self.pool.block_size)]
        for block in child.blocks:
            block.refs += 1  # this is all that a fork costs
        child.length, child.paid = self.length, self.paid
        child._seen, child._settled = self._seen, self._settled
        child._table = self._table[:]
        return child

    def open(self, handle: int, pid: int, name: str, owner: int, grant: Any) -> "Context":
        """Return a context of another task that shares what a grant says, with its rights."""
        child = self.fork(handle, pid, name)
        child.owner = owner
        if grant.length is not None:
            child.trim(min(grant.length, child.length))
        child.grant, child.access, child.foreign = grant, grant.access, child.length
        return child

    def adopt(self, at: int, block: Block) -> None:
        """Name a Block that holds the same as blocks[at], in its place."""
        old, self.blocks[at] = self.blocks[at], block
        passes(block, self.account)
        self.pool.ref(block)
        self.pool.unref(old)

    def free(self) -> None:
        """Drop every block."""
        self.trim(0)

    def read(self, start: int, stop: int) -> "array[int]":
        """Return the ids at start <= position < stop."""
        size = self.pool.block_size
        ids: array[int] = array("i")
        for block in self.blocks[start // size : -(-stop // size)]:
            ids.extend(block.ids)
        first = start - start % size
        return ids[start - first : stop - first]

    # --- KV -----------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Move the cursor over blocks that are sealed; look at all again if any KV was dropped."""
        size, blocks = self.pool.block_size, self.blocks
        if self._seen != self.pool.generation:
            self._seen = self.pool.generation
            head = blocks[: self._settled]
            if sum(map(_FILLED, head)) == size * len(head):
                self._table = array("i", map(_ID, head))
            else:
                self._settled = 0
                del self._table[:]
        while self._settled < len(blocks) and blocks[self._settled].filled == size:
            self._table.append(blocks[self._settled].id)
            self._settled += 1

    @property
    def computed(self) -> int:
        """Leading positions whose KV exists, in any tier."""
        self._settle()
        size, count = self.pool.block_size, self._settled * self.pool.block_size
        for index in range(self._settled, len(self.blocks)):
            have = self.blocks[index].have
            count += have
            if have < size:
                break
        return min(self.length, count)

    @property
    def planned(self) -> int:
        """Leading positions whose KV exists or is being written by a submitted step.

        A block with an origin counts what it will take over: the copy goes out with its first step.
        """
        self._settle()
        size = self.pool.block_size
        for index in range(self._settled, len(self.blocks)):
            reach = self.blocks[index].reach
            if reach < size:
                return min(self.length, index * size + reach)
        return self.length

    def table(self, length: int) -> "array[int]":
        """Return the device ids of the blocks that hold the first `length` positions."""
        self._settle()
        count = -(-length // self.pool.block_size)
        if count <= self._settled:
            return self._table[:count]
        return self._table + array("i", (b.id for b in self.blocks[self._settled : count]))
