"""Disk tier: slots of the swap file that hold KV of sealed blocks, as the kernel counts them.

What a sealed block holds never changes, and its chain says what it is of: so a slot is written
once, and what comes back can be checked. The file is cut into extents, which models claim as they
need them and give back when they go. A slot is `extent of the model * slots of one + place in it`.

    free --> used --> dirty (given up, to be zeroed on the disk) --> free

It moves nothing: kernel/diskswap.py does.
"""

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from kernel.block import NO_PLACE, Block, Counts, Move
from kernel.ledger import placed
from kernel.panic import check

NUM_EXTENTS = 32
BATCH = 64
"""Slots that are given up at once when there are none."""


class Extents:
    """The parts of the swap file."""

    def __init__(self, swap_bytes: int) -> None:
        self.extent_bytes = swap_bytes // NUM_EXTENTS
        self._free = deque(range(NUM_EXTENTS if swap_bytes else 0))

    def claim(self) -> int | None:
        """Return a free extent, if there is one."""
        return self._free.popleft() if self._free else None

    def give(self, extents: Iterable[int]) -> None:
        """Take extents back of which nothing is used."""
        self._free.extend(extents)


class DiskTier:
    """The slots of one model."""

    def __init__(
        self,
        extents: Extents | None = None,
        block_bytes: int = 1,
        on_dirty: Callable[[], None] = lambda: None,
    ) -> None:
        self.per_extent = extents.extent_bytes // block_bytes if extents else 0
        self.extents: list[int] = []
        self.dirty: list[int] = []
        self.counters: dict[int, int] = {}  # writes to each slot
        self.full = False  # of blocks that are nowhere else: to look again is of no use
        self.lost = 0  # blocks that were damaged, or went with the store
        self._of = extents
        self._on_dirty = on_dirty
        self._gone = False  # its model has
        self._free: deque[int] = deque()
        self._blocks: dict[int, Block] = {}

    def alloc(self, block: Block) -> bool:
        """Give a Block a slot; False if there is none."""
        if not self._free and not self._claim():
            if not self.full:
                self._drop_duplicates()
            return False
        block.disk = self._free.popleft()
        self._blocks[block.disk] = block
        placed(block)
        return True

    def _claim(self) -> bool:
        extent = self._of.claim() if self._of and self.per_extent else None
        if extent is None:
            return False
        first = self.num_slots
        self.extents.append(extent)
        self._free.extend(range(first, first + self.per_extent))
        return True

    def _drop_duplicates(self) -> None:
        """Give up slots whose blocks are in another tier, too: there is room for others then."""
        twice = (block for block in self._blocks.values() if max(block.filled, block.kept))
        chosen = list(islice((b for b in twice if not b.held), BATCH))
        self.full = not chosen
        for block in chosen:
            self.drop(block)

    def drop(self, block: Block) -> None:
        """Give a Block's slot up; it is zeroed on the disk before it is free."""
        if block.disk != NO_PLACE:
            check(not block.moving, "a slot is dropped in the middle of a copy")
            del self._blocks[block.disk]
            self.dirty.append(block.disk)
            block.disk = NO_PLACE
            placed(block)
            self.full = False
            self._on_dirty()

    def zeroed(self, slots: Iterable[int]) -> None:
        """Note that slots that were given up are zero."""
        self._free.extend(slots)
        self._part()

    def lose_all(self) -> list[Block]:
        """Forget what was in the file: the store has died, and all slots are free and zero.

        Return the Blocks that were there and are on no way to or from it.
        """
        lost = [block for block in self._blocks.values() if not block.moving]
        self.lost += len(lost)
        for block in self._blocks.values():
            block.disk = NO_PLACE
            placed(block)
        self._blocks.clear()
        self.dirty.clear()
        self.counters.clear()
        self._free = deque(range(self.num_slots))
        self.full = False
        self._part()
        return lost

    def leave(self) -> None:
        """Give everything up: the model has gone. Its extents are free when they are zero."""
        self._gone = True
        for block in list(self._blocks.values()):
            if not block.moving:
                self.drop(block)
        self._part()

    def _part(self) -> None:
        """Give the extents back, once nothing of a model that has gone is left in them."""
        if self._of and self._gone and len(self._free) == self.num_slots:
            self._of.give(self.extents)
            self.extents = []
            self._free.clear()

    # --- counting -----------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """Whether its model has gone."""
        return self._gone

    @property
    def num_slots(self) -> int:
        """Slots that the model has claimed."""
        return len(self.extents) * self.per_extent

    @property
    def counts(self) -> Counts:
        limbo = sum(block.moving is Move.DOWN for block in self._blocks.values())
        used, free = len(self._blocks) - limbo, len(self._free)
        return Counts(self.num_slots, free, 0, used, self.num_slots - free - used, 0)

    def check(self) -> None:
        """Panic unless the books agree."""
        for slot, block in self._blocks.items():
            check(block.disk == slot, f"slot {slot} is registered as {block.disk}")
            check(block.refs > 0 or block.held, f"slot {slot} is kept by nobody")
        listed = len(self._blocks) + len(self._free) + len(self.dirty)
        check(listed <= self.num_slots, f"{listed} slots are listed, there are {self.num_slots}")
