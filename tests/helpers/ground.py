"""Ground: what a walk is on: a kernel of some size, its policy, its driver and its store.

All of it follows from one seed. The driver's queues run beside each other in any order; the policy
copies or drops as it likes; the link looks at each step before the driver sees it.
"""

from random import Random
from typing import Any, NamedTuple

from drivers import base
from drivers.null_model import SLOT
from drivers.store.store import Store
from kernel.chosen import Chosen
from kernel.loopback import LoopbackLink
from kernel.store import LoopbackStore
from tests.helpers.disks import MemoryFiles
from tests.helpers.sim import Sim

PAGE = 4096
BULK_BYTES = 4 * PAGE
DISK = {"state_dir": "/state", "keys_dir": "/keys", "swap_bytes": 1 << 16}


class Ground(NamedTuple):
    """What a walk is on; all of it follows from one seed, or is given."""

    seed: int
    num_blocks: int
    host_blocks: int
    block_size: int
    prefill_chunk: int
    beside: bool
    swaps: float  # how often the policy copies what it could drop
    disk: bool  # whether there is a swap file
    overlap: int = 0  # steps that may be submitted before one has ended

    @classmethod
    def of(cls, seed: int) -> "Ground":
        random = Random(seed)
        return cls(
            seed, random.randint(4, random.choice([12, 24, 64])), random.randint(0, 64),
            random.choice([2, 4, 8, 16]), random.choice([3, 7, 32]), random.random() < 0.75,
            random.choice([0.5, 0.9, 1.0]), seed % 5 == 4, (0, 1, 4)[seed % 3],
        )._replace(**random.choice([{}, {}, {}, {"host_blocks": 0}]))  # fmt: skip


class Whim(Chosen):
    """One of the built-in policies, that copies or drops as a seed wants it."""

    def __init__(self, random: Random, swaps: float) -> None:
        super().__init__(random.choice(["fair", "fifo", "priority"]), {})
        self.random = random
        self.share = swaps

    def swaps(self, tokens: int, copy_us: float, compute_us: float) -> bool:
        return self.random.random() < self.share


class WalkLink(LoopbackLink):
    """Looks at each Submit, and has a host tier of as many blocks as it is told."""

    def __init__(self, ground: Ground, host_bytes: int) -> None:
        beside = Random(ground.seed + 2) if ground.beside else None
        super().__init__("null0", BULK_BYTES, host_bytes, beside)
        self.ground = ground
        self.sim: Sim | None = None
        self.ahead: dict[bytes, tuple[int, bytes]] = {}  # slots of ids that nobody knew yet:
        # each with its position and the slot before

    def _emit(self, message: Any) -> None:
        if isinstance(message, base.Loaded):
            message = message._replace(num_host_blocks=self.ground.host_blocks)
        super()._emit(message)

    def send(self, message: Any) -> None:
        if isinstance(message, base.Submit) and self.sim is not None:
            self._see_writes(message)
        super().send(message)

    def _handle(self, message: Any) -> None:
        super()._handle(message)
        for op in message.ops if isinstance(message, base.Submit) else ():
            if isinstance(op, base.Execute):
                self._note_ahead(op)

    def _note_ahead(self, op: base.Execute) -> None:
        """Note what a step has stored of ids that were sampled by the one before it."""
        driver: Any = self._driver
        pool = driver.models[op.model].pool
        indptr, blocks, slots = (memoryview(raw).cast("i") for raw in op.tables[0])
        starts, lengths = memoryview(op.qo_indptr).cast("i"), memoryview(op.kv_len).cast("i")
        size = self.ground.block_size
        for s, length in enumerate(lengths):
            index, position = starts[s], length - 1
            if memoryview(op.tokens).cast("i")[index] != base.LAST_SAMPLE:
                continue
            block, offset = divmod(position - 1, size)
            before = blocks[indptr[s] + block] * size + offset
            slot = bytes(pool[slots[index] * SLOT :][:SLOT])
            self.ahead[slot] = position, bytes(pool[before * SLOT :][:SLOT])

    def _see_writes(self, submit: base.Submit) -> None:
        """Nothing is written that is filled, or by two at once; no copy reads what is free."""
        assert self.sim is not None
        pool = next(m.pool for m in self.sim.loaded if m.number == submit.model)
        size, blocks = pool.block_size, {block.id: block for block in pool.resident()}
        written: set[int] = set()
        for op in submit.ops:
            if not isinstance(op, base.Execute):
                continue
            for slot in memoryview(op.tables[0].write_slot).cast("i"):
                place, offset = divmod(slot, size)
                if place == base.NULL_BLOCK:
                    continue
                assert slot not in written, f"slot {slot} is written twice in one step"
                written.add(slot)
                assert offset >= blocks[place].filled, f"block {place} is written again"


def store_of(link: LoopbackLink) -> LoopbackStore:
    files, windows = MemoryFiles(), [link.bulk_fd, link.host_fd]
    return LoopbackStore(lambda emit: Store(emit, windows, files, clock=lambda: 1e9))
