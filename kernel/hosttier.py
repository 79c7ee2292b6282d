"""Host tier: places for KV in memory of the kernel's, which outlives the driver.

It counts as the pool does (kernel/block.py has the states) and touches no byte, except that `zero`,
handed in, zeroes places that nobody uses any more, some in each turn; they are free after that.

A place is *spare* if nothing is lost by giving it up that a table names: what it holds is on the
device as well, or only the prefix index knows it. When places run out, the spare ones go, the
oldest first. Places that a copy needs as they are do not.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from kernel.block import EDGES, NO_PLACE, NOT_RESIDENT, Block, BlockState, Counts, Move
from kernel.ledger import placed
from kernel.panic import KernelPanic, check

BATCH = 64
"""Places that are given up at once when there are none."""


class HostTier:
    """The host places of one model."""

    def __init__(
        self,
        num_blocks: int = 0,
        zero: Callable[[list[int]], None] = lambda places: None,
        at_once: int = BATCH,
    ) -> None:
        """`at_once` places are zeroed in one go."""
        self.num_blocks = num_blocks
        self.dropped = 0  # cached blocks that went with their last copy
        self._zero = zero
        self._at_once = at_once
        self._state = bytearray([BlockState.FREE]) * num_blocks
        self._free = deque(range(num_blocks))
        self._blocks: dict[int, Block] = {}
        self._spare: OrderedDict[Block, None] = OrderedDict()
        self._dirty: list[int] = []

    def _move(self, place: int, to: BlockState) -> None:
        edge = BlockState(self._state[place]), to
        check(edge in EDGES, f"host block {place}: {edge[0].name} to {to.name}")
        self._state[place] = to

    # --- places -------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Places that a copy can have now or as soon as they are zeroed."""
        return len(self._free) + len(self._dirty)

    def alloc(self, block: Block, forget: Callable[[Block], None]) -> bool:
        """Give a Block a place for its copy; `forget` is told of cached ones that are lost for it.

        False if there is none.
        """
        if not self.num_free:
            self._give_up(forget)
        if not self._free:
            self.flush()
        if not self._free:
            return False
        block.host = self._free.popleft()
        self._move(block.host, BlockState.LIMBO)
        self._blocks[block.host] = block
        return True

    def _give_up(self, forget: Callable[[Block], None]) -> None:
        chosen = []
        for block in self._spare:
            if not block.held:
                chosen.append(block)
            if len(chosen) == BATCH:
                break
        for block in chosen:
            lost = block.id == NOT_RESIDENT
            self.drop(block)
            if lost:
                self.dropped += 1
                forget(block)

    def arrived(self, block: Block, kept: int) -> None:
        """Note that the copy to a Block's place is done."""
        self._move(block.host, BlockState.USED if block.refs else BlockState.CACHED)
        block.kept = kept
        self._mark(block)
        placed(block)

    def drop(self, block: Block) -> None:
        """Take a Block's place away; it is zeroed before it is free."""
        place = block.host
        if place == NO_PLACE:
            return
        check(block.moving is Move.NONE, f"host block {place} is dropped in the middle of a copy")
        if self._state[place] != BlockState.LIMBO:
            self._move(place, BlockState.LIMBO)
        self._spare.pop(block, None)
        del self._blocks[place]
        block.host, block.lost, block.kept = NO_PLACE, max(block.lost, block.kept), 0
        placed(block)
        self._dirty.append(place)

    @property
    def has_dirty(self) -> bool:
        return bool(self._dirty)

    def flush(self) -> None:
        """Zero some of what was given up: it is free then."""
        places, self._dirty = self._dirty[: self._at_once], self._dirty[self._at_once :]
        if places:
            self._zero(places)
            for place in places:
                self._move(place, BlockState.FREE)
            self._free.extend(places)

    def renamed(self, block: Block) -> None:
        """Note that a Block's first table came, its last one went, or its device place changed."""
        if block.host == NO_PLACE or self._state[block.host] == BlockState.LIMBO:
            return
        state = BlockState.USED if block.refs else BlockState.CACHED
        if self._state[block.host] != state:
            self._move(block.host, state)
        self._mark(block)

    def _mark(self, block: Block) -> None:
        if block.refs == 0 or block.id != NOT_RESIDENT:
            self._spare.setdefault(block)
        else:
            self._spare.pop(block, None)

    def blocks(self) -> Iterable[Block]:
        """Return the Blocks that have a place, those whose copy is still on its way included."""
        return self._blocks.values()

    def spare(self) -> list[Block]:
        """Return the Blocks that could do without their place, the oldest first."""
        return list(self._spare)

    def lose_all(self) -> None:
        """Forget everything: the model has gone, and nothing is in flight."""
        for block in list(self._blocks.values()):
            block.moving = Move.NONE
            self.drop(block)
        while self._dirty:
            self.flush()

    # --- counting -----------------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        tally = [self._state.count(state) for state in BlockState]
        return Counts(
            self.num_blocks, tally[BlockState.FREE], tally[BlockState.CACHED],
            tally[BlockState.USED], tally[BlockState.LIMBO], 0,
        )  # fmt: skip

    def check(self) -> None:
        """Panic unless the books agree."""
        listed = len(self._blocks) + len(self._free) + len(self._dirty)
        if listed != self.num_blocks:
            raise KernelPanic(f"{listed} host blocks are listed, there are {self.num_blocks}")
        for place, block in self._blocks.items():
            check(block.host == place, f"host block {place} is registered as {block.host}")
            moving = block.moving is Move.OUT
            state = self._state[place]
            check(moving == (state == BlockState.LIMBO), f"host block {place} in limbo for nothing")
            if not moving:
                held = block.refs > 0 or bool(block.heirs)
                check(held or state == BlockState.CACHED, f"host block {place} is kept by nobody")
                check(block.kept > 0, f"host block {place} holds nothing")
        for block in self._spare:
            check(block.host != NO_PLACE, "a spare block has no place")
            check(block.refs == 0 or block.id != NOT_RESIDENT, "a spare block is the only copy")
