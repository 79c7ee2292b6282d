"""Model: weights on a device, with the blocks and the requests that go with them.

    WAITING --Load--> LOADING --Loaded--> UP
       ^------- its device begins a new epoch --------|        FAILED: refused, or its device is
    any of them --> GONE: unloaded; its contexts keep their ids and nothing more

Each model has a pool of its own: a block holds KV of one model only. A device works on one thing at
a time, a step of one model or a load, so its models take turns (kernel/device.py).
"""

from collections.abc import Callable, Iterator
from enum import Enum
from functools import reduce
from itertools import count
from typing import Any, NamedTuple

from drivers import base
from kernel.answer import ModelSpec, check_loaded
from kernel.block import Move
from kernel.diskswap import DiskSwap, SwapFile
from kernel.hosttier import HostTier
from kernel.pager import Pager
from kernel.policy import Policy
from kernel.pool import BlockPool
from kernel.request import Request
from kernel.sched import Scheduler
from kernel.stats import Totals
from kernel.step import StepLimits, step_limits
from kernel.swap import Swap
from syscalls.errors import EAGAIN, ENODEV, KernelError

ZERO_BYTES = 8 << 20
"""Of the host tier, zeroed in one turn: about a millisecond."""


class ModelState(Enum):
    WAITING = "waiting"
    LOADING = "loading"
    UP = "up"
    FAILED = "failed"
    GONE = "unloaded"


class Model:
    """One model of a device. `number` is the driver's name for it."""

    def __init__(self, number: int, spec: ModelSpec, device: str) -> None:
        self.number = number
        self.spec = spec
        self.device = device
        self.state = ModelState.WAITING
        self.note = ""
        self.loaded: base.Loaded | None = None
        self.asked: Any = None  # (session, call) of the load_model that waits for it
        self.num_contexts = 0  # that use it
        self.loads = 0  # of contexts that the store reads into its part of the host memory
        self.deaths = 0  # epochs that ended while it was being loaded
        self.host_offset = 0  # where its part of the host memory begins
        self._pool: BlockPool | None = None
        self._sched: Scheduler | None = None
        self._swap: Swap | None = None
        self.disk_swap = DiskSwap(None, self, 1)  # until it has a pool

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def pool(self) -> BlockPool:
        """The block pool; EAGAIN, ENODEV before the model was loaded for the first time."""
        if self._pool is None:
            raise self.unavailable()
        return self._pool

    @property
    def sched(self) -> Scheduler:
        """The scheduler; likewise."""
        if self._sched is None:
            raise self.unavailable()
        return self._sched

    @property
    def swap(self) -> Swap:
        """The copies between its tiers; likewise."""
        if self._swap is None:
            raise self.unavailable()
        return self._swap

    @property
    def desc(self) -> base.Loaded:
        """What the driver said of it; likewise."""
        if self.loaded is None:
            raise self.unavailable()
        return self.loaded

    @property
    def requests(self) -> list[Request]:
        return list(self._sched.requests.values()) if self._sched else []

    @property
    def totals(self) -> Totals:
        """What its scheduler and its pool have done."""
        if self._sched is None:
            return Totals()
        pool, sched, swap = self._sched.pool, self._sched, self.swap
        out, back = swap.moved[Move.OUT], swap.moved[Move.IN]
        return Totals(
            sched.steps, sched.wasted, pool.copied, pool.evicted,
            sched.prefill_tokens, sched.decode_tokens, sched.seqs, sched.step_us,
            out, back, out * swap.block_bytes, back * swap.block_bytes, swap.copy_us,
            sched.reuse.hit_tokens, sched.pager.lost_tokens,
            self.disk_swap.moved[Move.DOWN], self.disk_swap.moved[Move.UP],
        )  # fmt: skip

    @property
    def promise_limit(self) -> int:
        """The most Blocks that tables may name, wherever their KV is."""
        places = self.pool.num_blocks - 1 + self.pool.host.num_blocks
        return int(places * self.spec.overcommit)

    @property
    def evicted(self) -> int:
        return self._pool.evicted if self._pool else 0

    @property
    def serves(self) -> bool:
        """Whether it runs requests, or will when its device is up again."""
        return self.state not in (ModelState.FAILED, ModelState.GONE)

    def require(self) -> None:
        """Raise ENODEV if the model will not serve requests, EAGAIN if not yet."""
        if not self.serves or self.loaded is None:
            raise self.unavailable()

    def unavailable(self) -> KernelError:
        """Return the error for whoever needs it now."""
        why = f": {self.note}" if self.note else ""
        error = EAGAIN if self.serves else ENODEV
        return error(
            f"model {self.name} on device {self.device} is {self.state.value}{why}",
            "llmos status shows it",
        )

    # --- loading ------------------------------------------------------------------------------

    def load(self) -> base.Load:
        """Return the message that loads it."""
        self.state, spec = ModelState.LOADING, self.spec
        return base.Load(
            self.number, spec.path, spec.dtype, spec.block_size, spec.num_blocks, spec.kv_bytes,
            spec.max_ctx, spec.deterministic, spec.threads, 0, spec.kv_dtype,
            spec.host_bytes, self.host_offset,
        )  # fmt: skip

    def take(self, loaded: base.Loaded, means: "Means") -> str:
        """Begin to serve; return why the kernel cannot, if it cannot. Lie if it is another."""
        check_loaded(loaded, self.number, self.spec, self.loaded)
        if len(loaded.kv_groups) != 1:
            return f"the model has {len(loaded.kv_groups)} KV groups (ENOTSUP)"
        limits = step_limits(loaded, *means.limits)
        needed = -(-loaded.max_ctx // loaded.block_size)
        if needed > limits.max_block_refs:
            return (
                f"a full context has {needed} blocks, a step may name {limits.max_block_refs}; "
                "lower --max-ctx or raise --block-size"
            )
        if self._pool is None:
            self._begin(loaded, limits, means)
        self.loaded, self.state, self.note = loaded, ModelState.UP, ""
        return ""

    def _begin(self, loaded: base.Loaded, limits: StepLimits, means: "Means") -> None:
        """Make the pool and what works on it, for all epochs to come."""
        size, offset = loaded.block_bytes, self.host_offset

        def zero(places: list[int]) -> None:
            means.zero_host([(offset + place * size, size) for place in places], True)

        host = HostTier(loaded.num_host_blocks, zero, max(1, ZERO_BYTES // size))
        pool = BlockPool(loaded.num_blocks, loaded.block_size, host, means.secret, means.clock)

        self._pool, self._swap = pool, Swap(pool, size)
        self.disk_swap = DiskSwap(means.swap_file, self, size)
        pool.disk = self.disk_swap.tier
        pager = Pager(pool, self._swap, self.disk_swap, means.policy, means.burying, means.clock)
        self._sched = Scheduler(pool, means.policy, limits, pager)

    def lose_device(self) -> list[Request]:
        """Forget what was on the device: the epoch has ended; return the requests in flight.

        What lies in the host tier is still there, and is copied to the next epoch's device.
        """
        hit = self._sched.fail() if self._sched else []
        if self._pool and self._sched and self._swap:
            if self.serves:
                self._sched.pager.note_death()
            self._swap.lose_all()
            self._pool.lose_device()
            self._sched.lose_slots()
            self._swap.lose_ops(flying=self.state is not ModelState.GONE)
        if self.serves:
            self.state = ModelState.WAITING
        return hit

    def lose_op(self, move: Move) -> None:
        """Tell whoever waits for an op of a model that has gone: it was in flight, and has ended.

        One of the other direction may be in flight still, and so the driver at the bulk window.
        """
        if self._swap:
            self._swap.lose_op(move)

    def lose_ops(self) -> None:
        """Tell whoever waits for an op of a model that has gone: nothing of it is in flight."""
        if self._swap:
            self._swap.lose_ops()

    def zero_host(self, means: "Means") -> None:
        """Zero its part of the host memory: it has gone, and no copy is in flight any more."""
        if self.spec.host_bytes:
            means.zero_host([(self.host_offset, self.spec.host_bytes)], False)

    def end(self, state: ModelState, note: str) -> list[Request]:
        """Serve no more: FAILED or GONE; return the requests that this ends."""
        self.state, self.note = state, note
        if self._pool and state is ModelState.GONE:
            self.lose_device()
            self._pool.lose_all()
            self.disk_swap.leave()
        else:
            self.lose_ops()
        return [request for request in self.requests if not request.background]


class Means(NamedTuple):
    """What a device gives its models to work with."""

    policy: Policy
    limits: tuple[int, int, int]  # prefill_chunk, target_us, max_seqs
    burying: Callable[[], bool]  # whether contexts that have gone are still giving blocks back
    clock: Callable[[], float]
    secret: bytes  # of the prefix index
    zero_host: Callable[[list[tuple[int, int]], bool], None]  # whether pages are to stay
    swap_file: SwapFile | None


class ModelTable:
    """The models of one device by name, in the order in which they came."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._models: dict[str, Model] = {}
        self._numbers = count()
        self._served = -1  # number of the model that had the last step
        self._past = Totals()  # of models that are gone
        self.leaving: list[Model] = []  # the driver does not know yet that they are gone

    def add(self, spec: ModelSpec) -> Model:
        """Make a model that waits to be loaded."""
        model = self._models[spec.name] = Model(next(self._numbers), spec, self._device)
        taken = {other.host_offset for other in (*self, *self.leaving) if other is not model}
        model.host_offset = next(o for o in count(0, max(1, spec.host_bytes)) if o not in taken)
        return model

    def remove(self, model: Model) -> None:
        """Take a model out; what it has done still counts."""
        del self._models[model.name]
        self._past = self._past.plus(model.totals)

    def find(self, name: str) -> Model | None:
        return self._models.get(name)

    def first(self) -> Model | None:
        """Return the one that has been there longest."""
        return next(iter(self._models.values()), None)

    def waiting(self) -> Model | None:
        """Return the next one to load."""
        return next((model for model in self if model.state is ModelState.WAITING), None)

    def in_turn(self) -> list[Model]:
        """Return the models that are up, those first that come after the last one served."""
        up = [model for model in self if model.state is ModelState.UP]
        return sorted(up, key=lambda model: (model.number <= self._served, model.number))

    def served(self, model: Model) -> None:
        """Note who had a step."""
        self._served = model.number

    @property
    def totals(self) -> Totals:
        """What was done since the kernel began; it never falls."""
        return reduce(Totals.plus, (model.totals for model in self), self._past)

    @property
    def evicted(self) -> int:
        """Blocks whose KV was dropped, as in `totals`; quicker, for every turn asks."""
        return self._past.evicted + sum(model.evicted for model in self._models.values())

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._models.values()))

    def __len__(self) -> int:
        return len(self._models)

    def __str__(self) -> str:
        return ", ".join(self._models) or "none"
