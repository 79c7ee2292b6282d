"""Model: weights on a device, with the blocks and the requests that go with them.

    WAITING --Load--> LOADING --Loaded--> UP
       ^------- its device begins a new epoch --------|        FAILED: refused, or its device is
    any of them --> GONE: unloaded; its contexts keep their ids and nothing more

Each model has a pool of its own: a block holds KV of one model only. A device works on one thing at
a time, a step of one model or a load, so its models take turns (kernel/device.py).
"""

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import reduce
from itertools import count
from typing import Any

from drivers import base
from kernel.answer import ModelSpec, check_loaded
from kernel.block import BlockPool
from kernel.context import Context
from kernel.policy import Policy
from kernel.request import Request
from kernel.sched import Scheduler
from kernel.stats import Totals
from kernel.step import step_limits
from syscalls.errors import EAGAIN, ENODEV, KernelError


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
        self.deaths = 0  # epochs that ended while it was being loaded
        self._pool: BlockPool | None = None
        self._sched: Scheduler | None = None

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
        pool, sched = self._sched.pool, self._sched
        return Totals(
            sched.steps, sched.wasted, pool.copied, pool.evicted,
            sched.prefill_tokens, sched.decode_tokens, sched.seqs, sched.step_us,
        )  # fmt: skip

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
            spec.max_ctx, spec.deterministic, spec.threads,
        )  # fmt: skip

    def take(
        self,
        loaded: base.Loaded,
        policy: Policy,
        prefill_chunk: int,
        target_us: int,
        contexts: Callable[[], Iterable[Context]],
    ) -> str:
        """Begin to serve; return why the kernel cannot, if it cannot. Lie if it is another."""
        check_loaded(loaded, self.number, self.spec, self.loaded)
        if len(loaded.kv_groups) != 1:
            return f"the model has {len(loaded.kv_groups)} KV groups (ENOTSUP)"
        limits = step_limits(loaded, prefill_chunk, target_us)
        needed = -(-loaded.max_ctx // loaded.block_size)
        if needed > limits.max_block_refs:
            return (
                f"a full context has {needed} blocks, a step may name {limits.max_block_refs}; "
                "lower --max-ctx or raise --block-size"
            )
        if self._pool is None:
            pool = self._pool = BlockPool(loaded.num_blocks, loaded.block_size)

            def mine() -> Iterable[Context]:
                return (ctx for ctx in contexts() if ctx.pool is pool)

            self._sched = Scheduler(pool, policy, limits, mine)
        self.loaded, self.state, self.note = loaded, ModelState.UP, ""
        return ""

    def lose_all(self) -> list[Request]:
        """Forget all KV: the epoch has ended; return the requests that were in flight."""
        hit = self._sched.fail() if self._sched else []
        if self._pool and self._sched:
            self._pool.lose_all()
            self._sched.lose_slots()
        if self.serves:
            self.state = ModelState.WAITING
        return hit

    def end(self, state: ModelState, note: str) -> list[Request]:
        """Serve no more: FAILED or GONE; return the requests that this ends."""
        self.state, self.note = state, note
        return [request for request in self.requests if not request.background]


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
