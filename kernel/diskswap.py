"""Disk swap: blocks on their way to the swap file and back, as errands of the store's lane.

Blocks go out from the host tier where they lie, from the device through the bulk window; they come
back to free places of the device through that window. The file is ephemeral, and its keys are the
store's: the store's death shreds it, and then what was only there is computed again.

A write that fails leaves the block where it was and stops the tier: nothing more goes out, and
`note` says why, until the store is opened anew. A block that is damaged on the disk is lost.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from drivers import base as driver
from drivers.store import base
from kernel.block import NO_PLACE, NOT_RESIDENT, Block, Move
from kernel.disktier import DiskTier, Extents
from kernel.errand import BULK, HOST, DeviceOp, Errands, Filling, Lost
from kernel.ledger import copied
from kernel.panic import check
from kernel.pool import BlockPool
from kernel.storehost import StoreHost, StoreState
from syscalls.errors import KernelError

Errand = Generator[Any, Any, None]


class SwapFile:
    """The swap file of one kernel, and the lane on which blocks go to it and come back."""

    def __init__(
        self,
        store: StoreHost,
        swap_bytes: int,
        bulk_offset: int,
        bulk_bytes: int,
        wipe: Callable[[int, int], None],
    ) -> None:
        """The errands use `bulk_bytes` of the bulk window from `bulk_offset` on, and `wipe` it."""
        self.store = store
        self.extents = Extents(swap_bytes)
        self.lane = Errands(store, lambda end: wipe(bulk_offset, end - bulk_offset), self.go)
        self.bulk_offset = bulk_offset
        self.bulk_bytes = bulk_bytes
        self.swaps: list[DiskSwap] = []
        self._going = False
        store.on_death, store.on_up = self._lost, self.go

    @property
    def serves(self) -> bool:
        return self.store.state is StoreState.UP and self.extents.extent_bytes > 0

    def go(self) -> None:
        """Begin what any model asks for, if nothing runs; else it is begun when that is done."""
        if self._going:
            return
        self._going = True
        self.swaps = [swap for swap in self.swaps if not swap.over]
        while not self.lane.busy and self.store.state is StoreState.UP:
            begun = next((swap for swap in self.swaps if swap.begin()), None)
            if begun is None:
                break
            self.swaps.remove(begun)
            self.swaps.append(begun)  # models take turns
        self._going = False

    def _lost(self) -> None:
        for swap in self.swaps:
            swap.lose_all()


class DiskSwap:
    """The copies of one model to and from the disk."""

    def __init__(self, file: SwapFile | None, model: Any, block_bytes: int) -> None:
        self.note = ""  # why nothing goes out any more
        self.moved = {Move.DOWN: 0, Move.UP: 0}  # blocks
        self.tier = DiskTier(file.extents, block_bytes, file.go) if file else DiskTier()
        self._file = file
        self._model = model
        self._size = block_bytes
        most = file.bulk_bytes // block_bytes if file else 0
        self._batch = min(base.MAX_BLOCKS, most, self.tier.per_extent)
        self._down: deque[Block] = deque()
        self._up: deque[Block] = deque()
        self._moving = 0  # blocks of the errand that runs
        self._writing = 0  # of them, those that will leave the device
        if file is not None:
            file.swaps.append(self)

    # --- asking -------------------------------------------------------------------------------

    @property
    def takes(self) -> bool:
        """Whether blocks may go out."""
        return bool(self._file and self._file.serves and self._batch and not self.note)

    def out(self, block: Block) -> bool:
        """Ask for a sealed Block to go to the disk; False if it cannot, or there is no place."""
        sealed = block.chain and max(block.filled, block.kept) == self._pool.block_size
        if not (self.takes and sealed and self.tier.alloc(block)):
            return False
        block.moving = Move.DOWN
        self._down.append(block)
        self._go()
        return True

    def bring(self, block: Block) -> None:
        """Ask for a Block to come back to the device; the caller has seen that a place is free."""
        check(block.moving is Move.NONE and block.disk != NO_PLACE, "bring of nothing")
        self._pool.target(block)
        block.moving = Move.UP
        self._up.append(block)
        self._go()

    @property
    def leaving(self) -> int:
        """Device places that will be let go."""
        return sum(map(_resident, self._down)) + self._writing

    @property
    def busy(self) -> bool:
        """Whether anything is asked for or on its way."""
        return bool(self._down or self._up or self._moving)

    @property
    def over(self) -> bool:
        """Whether its model has gone, and nothing of it is in the swap file any more."""
        return self.tier.gone and not self.tier.extents and not self.busy

    @property
    def _pool(self) -> BlockPool:
        pool: BlockPool = self._model.pool
        return pool

    def _go(self) -> None:
        assert self._file is not None
        self._file.go()

    def begin(self) -> bool:
        """Begin an errand, if there is anything to do; see whether there was."""
        assert self._file is not None
        lane = self._file.lane
        self._forget_lost()
        if self._up:
            lane.run(self._bring(self._take(self._up)))
        elif self._down:
            lane.run(self._write(self._take(self._down)))
        elif self.tier.dirty:
            lane.run(self._zero())
        else:
            return False
        return True

    def _forget_lost(self) -> None:
        """Take back what has nothing to write any more: it was on a device that has died."""
        if any(not _has_kv(block) for block in self._down):
            lost = [block for block in self._down if not _has_kv(block)]
            self._down = deque(filter(_has_kv, self._down))
            self._take_back(lost)

    def _take(self, asked: "deque[Block]") -> list[Block]:
        """Return blocks of one extent and one tier, to go in one message."""
        first, each = asked[0], self.tier.per_extent
        batch: list[Block] = []
        while asked and len(batch) < self._batch:
            block = asked[0]
            if block.disk // each != first.disk // each or _resident(block) != _resident(first):
                break
            batch.append(asked.popleft())
        return batch

    # --- errands ------------------------------------------------------------------------------

    def _write(self, blocks: list[Block]) -> Errand:
        """Write blocks to their slots; they leave the tier in which they were."""
        states = bytes([base.BlockState.FAILED]) * len(blocks)
        self._moving, counters = len(blocks), self.tier.counters
        self._writing = sum(map(_resident, blocks))
        try:
            window, offsets = yield from self._shown(blocks)
            if blocks[0].disk != NO_PLACE:  # the store has not died meanwhile
                for block in blocks:
                    counters[block.disk] = counters.get(block.disk, 0) + 1
                area, named = self._area(blocks[0].disk), self._named(blocks, offsets)
                answer = yield base.SwapOut(self._number(), area, window, named)
                states, self.note = answer.states, answer.why
        except Lost:
            pass
        except KernelError as error:
            self.note = error.message if self._file and self._file.serves else ""
        finally:
            self._moving = self._writing = 0
            for block, state in zip(blocks, states, strict=True):
                self._written(block, state)

    def _shown(self, blocks: Sequence[Block]) -> Generator[Any, Any, tuple[int, Sequence[int]]]:
        """Return the window in which the store finds blocks, and where."""
        assert self._file is not None
        if not _resident(blocks[0]):
            offset = self._model.host_offset
            return HOST, [offset + block.host * self._size for block in blocks]
        first = self._file.bulk_offset
        ids = driver.ints(block.id for block in blocks)
        yield DeviceOp(self._model, driver.Export(ids, first), Move.OUT)
        return BULK, range(first, first + len(blocks) * self._size, self._size)

    def _written(self, block: Block, state: int) -> None:
        block.moving = Move.NONE
        pool = self._pool
        if block.disk == NO_PLACE:
            pass  # the store has died
        elif state != base.BlockState.OK or self.tier.gone:
            self.tier.drop(block)
        elif block.refs and not block.readers:
            self.moved[Move.DOWN] += 1
            copied((block,), "out_blocks")
            if _resident(block):
                pool.release(block)
            if not block.heirs:
                pool.host.drop(block)
        if block.refs == 0:
            pool.leave(block)

    def _bring(self, blocks: list[Block]) -> Errand:
        """Read blocks from their slots onto the device; what is damaged there is lost."""
        assert self._file is not None
        pool, first = self._pool, self._file.bulk_offset
        offsets = range(first, first + len(blocks) * self._size, self._size)
        self._moving = len(blocks)
        try:
            area, named = self._area(blocks[0].disk), self._named(blocks, offsets)
            reading = base.SwapIn(self._number(), area, BULK, named)
            answer = yield Filling(reading, offsets.stop)
            states = answer.states
            yield from self._import(
                [
                    (block, offset)
                    for block, offset, state in zip(blocks, offsets, states, strict=True)
                    if state == base.BlockState.OK
                ]
            )
            for block, state in zip(blocks, states, strict=True):
                if state != base.BlockState.OK:
                    self._damaged(block)
        except KernelError:
            pass  # the store or the driver has died: the books say what is left
        finally:
            self._moving = 0
            for block in blocks:
                block.moving = Move.NONE
                pool.untarget(block)
                if self.tier.gone:
                    self.tier.drop(block)
                if block.refs == 0:
                    pool.leave(block)

    def _import(self, sound: Sequence[tuple[Block, int]]) -> Generator[Any, Any, None]:
        """Import blocks in runs of neighbours in the window, unless their targets have gone."""
        start = 0
        for at in range(1, len(sound) + 1):
            if at < len(sound) and sound[at][1] == sound[at - 1][1] + self._size:
                continue
            run = sound[start:at]
            start = at
            if any(block.target == NOT_RESIDENT for block, _ in run):
                return  # the device has died
            targets = driver.ints(block.target for block, _ in run)
            yield DeviceOp(self._model, driver.Import(targets, run[0][1]), Move.IN)
            for block, _ in run:
                self._pool.arrived(block, self._pool.block_size)
                self.tier.full = False
                self.moved[Move.UP] += 1
                copied((block,), "in_blocks")

    def _damaged(self, block: Block) -> None:
        """Forget a slot whose content is not what was written there."""
        block.moving = Move.NONE
        self.tier.lost += 1
        self.tier.drop(block)

    def _zero(self) -> Errand:
        """Zero slots that were given up: they are free then."""
        each, dirty = self.tier.per_extent, self.tier.dirty
        extent = dirty[0] // each
        slots = [slot for slot in dirty if slot // each == extent][: base.MAX_BLOCKS]
        chosen = set(slots)
        self.tier.dirty = [slot for slot in dirty if slot not in chosen]
        places = tuple(slot % each for slot in slots)
        epoch = self._file.store.epoch if self._file else 0
        try:
            yield base.FreeSlots(self._number(), self._area(slots[0]), places)
        except KernelError as error:
            if self._file and self._file.serves and self._file.store.epoch == epoch:
                self.note = error.message  # they stay out of use
            return
        self.tier.zeroed(slots)

    # --- messages -----------------------------------------------------------------------------

    def _number(self) -> int:
        assert self._file is not None
        return self._file.store.new_job()

    def _area(self, slot: int) -> base.Area:
        desc, extent = self._model.desc, self.tier.extents[slot // self.tier.per_extent]
        assert self._file is not None
        return base.Area(
            extent * self._file.extents.extent_bytes, desc.block_bytes,
            bytes.fromhex(desc.digest), desc.kv_groups[0].dtype, _layout(desc),
        )  # fmt: skip

    def _named(self, blocks: Sequence[Block], offsets: Sequence[int]) -> tuple[base.Block, ...]:
        return tuple(map(self._name, blocks, offsets))

    def _name(self, block: Block, offset: int) -> base.Block:
        """Say what is at an offset of the window, and what binds it to its slot."""
        slot, counter = block.disk % self.tier.per_extent, self.tier.counters[block.disk]
        return base.Block(slot, offset, block.owner, block.chain, counter)

    # --- for saves ----------------------------------------------------------------------------

    def extent_of(self, block: Block) -> int:
        """Return in which extent a Block's slot is: one message reads those of one."""
        return block.disk // self.tier.per_extent

    def reading(self, blocks: Sequence[Block], first: int) -> Filling:
        """Return what reads the slots of one extent into the bulk window, from `first` on."""
        offsets = range(first, first + len(blocks) * self._size, self._size)
        area, named = self._area(blocks[0].disk), self._named(blocks, offsets)
        return Filling(base.SwapIn(self._number(), area, BULK, named), offsets.stop)

    def damaged(self, blocks: Sequence[Block], states: bytes) -> None:
        """Forget the slots that could not be read."""
        for block, state in zip(blocks, states, strict=True):
            if state != base.BlockState.OK and block.disk != NO_PLACE and not block.moving:
                self.tier.lost += 1
                self.tier.drop(block)

    # --- ending -------------------------------------------------------------------------------

    def lose_all(self) -> None:
        """Forget what was in the file: the store has died. What is on its way ends by itself."""
        lost = self.tier.lose_all()
        self._cancel()
        self.note = ""
        for block in lost:
            if block.refs == 0:
                self._pool.leave(block)

    def leave(self) -> None:
        """Give everything up: the model has gone."""
        self._cancel()
        self.tier.leave()

    def _cancel(self) -> None:
        """Take back what was asked for and has not begun."""
        waiting = [*self._down, *self._up]
        self._down.clear()
        self._up.clear()
        self._take_back(waiting)

    def _take_back(self, waiting: Sequence[Block]) -> None:
        for block in waiting:
            down, block.moving = block.moving is Move.DOWN, Move.NONE
            self._pool.untarget(block)
            if down:
                self.tier.drop(block)
            if block.refs == 0:
                self._pool.leave(block)


def _resident(block: Block) -> bool:
    return block.id != NOT_RESIDENT


def _has_kv(block: Block) -> bool:
    return max(block.filled, block.kept) > 0


def _layout(desc: driver.Loaded) -> str:
    group = desc.kv_groups[0]
    return f"{group.layers}x2x{desc.block_size}x{group.kv_heads}x{group.head_dim}"
