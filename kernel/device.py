"""Device: one driver with its loaded model, its block pool and its scheduler.

    STARTING --Ready--> LOADING --Loaded--> UP          FAILED: out of restarts, or cannot load
        ^----- driver died, faulted or hung: new epoch -----|

One Submit is in flight at a time; its fence is (epoch, COMPUTE, value). When an epoch ends, the
process is reaped first; then what was in flight is undone, every block loses its KV, and the same
requests run again in the next epoch, computed from ids. A request that was in flight in three
deaths is failed with EIO, so that one bad request cannot take the device down for ever.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from drivers import base
from kernel.block import BlockPool
from kernel.context import Context
from kernel.link import Link, LinkDown
from kernel.policy import Policy
from kernel.request import Request, Token
from kernel.sched import Scheduler, StepLimits
from kernel.step import Entry, step_ops
from syscalls.errors import EIO, ENODEV, KernelError

log = logging.getLogger(__name__)

Outcome = tuple[Request, Token | KernelError]
"""What a step gave a request: an id, or the error that ends it."""


class DeviceState(Enum):
    STARTING = "starting"
    LOADING = "loading"
    UP = "up"
    FAILED = "failed"


class ModelSpec(NamedTuple):
    """What to load, and the budget for it."""

    name: str
    path: str
    dtype: str
    block_size: int
    num_blocks: int  # 0: as many as kv_bytes allows
    kv_bytes: int
    max_ctx: int  # 0: the model's own
    deterministic: bool
    threads: int


class Limits(NamedTuple):
    """Of a device."""

    prefill_chunk: int
    target_us: int
    hang_s: float
    max_restarts: int
    restart_window_s: float
    max_request_deaths: int = 3


MODEL = 0
"""The driver's number of the model; this kernel loads one per device."""


class Device:
    """One device of the kernel."""

    def __init__(
        self,
        link: Link,
        spec: ModelSpec,
        limits: Limits,
        policy: Policy,
        clock: Callable[[], float],
        contexts: Callable[[], Iterable[Context]],
    ) -> None:
        self.link = link
        self.spec = spec
        self.limits = limits
        self.state = DeviceState.STARTING
        self.epoch = 0
        self.note = ""
        self.ready: base.Ready | None = None
        self.loaded: base.Loaded | None = None
        self.estimate: base.Estimate | None = None
        self.progress: base.Progress | None = None
        self._policy = policy
        self._clock = clock
        self._contexts = contexts
        self._pool: BlockPool | None = None
        self._sched: Scheduler | None = None
        self._value = 0
        self._in_flight = 0  # fence value, 0: none
        self._heard = 0.0
        self._deaths: deque[float] = deque()

    @property
    def name(self) -> str:
        return self.link.device

    @property
    def pool(self) -> BlockPool:
        """The block pool; ENODEV before the model was loaded for the first time."""
        if self._pool is None:
            raise self._unavailable()
        return self._pool

    @property
    def sched(self) -> Scheduler:
        """The scheduler; ENODEV before the model was loaded for the first time."""
        if self._sched is None:
            raise self._unavailable()
        return self._sched

    @property
    def desc(self) -> base.Loaded:
        """The loaded model; ENODEV before it was loaded for the first time."""
        if self.loaded is None:
            raise self._unavailable()
        return self.loaded

    @property
    def requests(self) -> list[Request]:
        return list(self._sched.requests.values()) if self._sched else []

    def _unavailable(self) -> ENODEV:
        why = f": {self.note}" if self.note else ""
        return ENODEV(f"device {self.name} is {self.state.value}{why}", "llmos status shows it")

    def require(self) -> None:
        """Raise ENODEV if the device will not serve requests."""
        if self.state is DeviceState.FAILED or self.loaded is None:
            raise self._unavailable()

    # --- epochs -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin an epoch: start the driver and greet it."""
        self.epoch += 1
        self._value = 0
        self.state = DeviceState.STARTING
        self._heard = self._clock()
        self.link.start()
        self.link.send(base.Hello(*base.ABI, base.schema_hash(), self.epoch, self.name))

    def deadline(self) -> float | None:
        """When to give the driver up for hung; None while it owes nothing."""
        owes = self._in_flight or self.state in (DeviceState.STARTING, DeviceState.LOADING)
        return self._heard + self.limits.hang_s if owes else None

    def expire(self, now: float) -> list[Outcome]:
        """Replace a driver that is past its deadline."""
        deadline = self.deadline()
        if deadline is None or now < deadline:
            return []
        self.link.kill()
        return self._end_epoch(f"no sign of life for {self.limits.hang_s:g} s")

    def _end_epoch(self, why: str) -> list[Outcome]:
        """Undo what was in flight, forget all KV, start over or give up."""
        log.error("device %s: epoch %d ended: %s", self.name, self.epoch, why)
        self.note, self._in_flight = why, 0
        hit = self._sched.fail() if self._sched and self._sched.step else []
        if self._pool:
            self._pool.lose_all()
        failed: list[Outcome] = []
        for request in hit:
            request.deaths += 1
            if request.deaths >= self.limits.max_request_deaths:
                story = f"device {self.name} ended {request.deaths} times while running this"
                failed.append((request, EIO(f"{story}; the last time: {why}")))
        now = self._clock()
        self._deaths.append(now)
        while self._deaths[0] < now - self.limits.restart_window_s:
            self._deaths.popleft()
        if len(self._deaths) > self.limits.max_restarts:
            return failed + self._give_up(
                f"{why}; {self.limits.max_restarts} restarts did not help"
            )
        self.start()
        return failed

    def _give_up(self, why: str) -> list[Outcome]:
        self.link.kill()
        self.state, self.note = DeviceState.FAILED, why
        log.error("device %s failed: %s", self.name, why)
        return [(request, self._unavailable()) for request in self.requests if request.infer]

    # --- messages of the driver ---------------------------------------------------------------

    def collect(self) -> Iterator[Outcome]:
        """Handle every message that the driver has sent."""
        while self.state is not DeviceState.FAILED:
            try:
                message = self.link.receive()
                if message is None:
                    return
                self._heard = self._clock()
                yield from self._handle(message)
            except LinkDown as down:
                yield from self._end_epoch(str(down))
                return

    def _handle(self, message: object) -> Iterable[Outcome]:
        match message:
            case base.Ready():
                return self._on_ready(message)
            case base.Loaded():
                return self._on_loaded(message)
            case base.Complete():
                return self._on_complete(message)
            case base.Fault():
                return self._on_fault(message)
            case base.Estimate():
                self.estimate = message
            case base.Progress():
                self.progress = message
            case base.Heartbeat() | base.StatsReply():
                pass
            case _:
                return self._lie(f"sent {type(message).__name__}")
        return ()

    def _lie(self, what: str) -> list[Outcome]:
        """A driver that breaks the protocol is replaced."""
        self.link.kill()
        return self._end_epoch(f"the driver {what}, which the ABI does not allow here")

    def _on_ready(self, ready: base.Ready) -> list[Outcome]:
        if (ready.major, ready.schema) != (base.ABI[0], base.schema_hash()):
            return self._give_up("the driver speaks another ABI; reinstall llmos-kernel")
        if ready.epoch != self.epoch or self.state is not DeviceState.STARTING:
            return self._lie("greeted out of turn")
        self.ready, self.state = ready, DeviceState.LOADING
        spec = self.spec
        self.link.send(
            base.Load(
                MODEL, spec.path, spec.dtype, spec.block_size, spec.num_blocks, spec.kv_bytes,
                spec.max_ctx, spec.deterministic, spec.threads,
            )
        )  # fmt: skip
        return []

    def _on_loaded(self, loaded: base.Loaded) -> list[Outcome]:
        if self.state is not DeviceState.LOADING:
            return self._lie("loaded out of turn")
        if len(loaded.kv_groups) != 1:
            return self._give_up(f"the model has {len(loaded.kv_groups)} KV groups (ENOTSUP)")
        if -(-loaded.max_ctx // loaded.block_size) > loaded.max_block_refs:
            return self._give_up("a full context has more blocks than a step may name")
        if self._pool is None:
            self._pool = BlockPool(loaded.num_blocks, loaded.block_size)
            limits = StepLimits(
                loaded.max_tokens, loaded.max_seqs, loaded.max_block_refs,
                min(self.limits.prefill_chunk, loaded.max_tokens), self.limits.target_us,
            )  # fmt: skip
            self._sched = Scheduler(self._pool, self._policy, limits, self._contexts)
        elif loaded.num_blocks < self._pool.num_blocks:
            return self._give_up(
                f"{loaded.num_blocks} blocks after the restart, {self._pool.num_blocks} before"
            )
        self.loaded, self.state, self.progress = loaded, DeviceState.UP, None
        log.info("device %s: %s up in epoch %d", self.name, self.spec.name, self.epoch)
        return []

    def _on_complete(self, complete: base.Complete) -> Iterable[Outcome]:
        fence = (complete.epoch, complete.queue, complete.value)
        if not self._in_flight or fence != (self.epoch, base.Queue.COMPUTE, self._in_flight):
            return self._lie(f"completed fence {fence}")
        self._in_flight = 0
        self.pool.fence_passed(complete.value)
        return self.sched.commit(complete) if self.sched.step else ()

    def _on_fault(self, fault: base.Fault) -> list[Outcome]:
        kind = base.FaultKind(fault.kind).name
        if fault.value == 0:
            if self.state in (DeviceState.STARTING, DeviceState.LOADING):
                return self._give_up(f"{fault.message} ({kind})")
            return self._lie(f"faulted with {kind}: {fault.message}")
        self.link.kill()
        return self._end_epoch(f"{kind}: {fault.message}")

    # --- steps --------------------------------------------------------------------------------

    def step(self) -> list[Outcome]:
        """Submit the next step, or the scrubs that are due, if the device is idle."""
        if self.state is not DeviceState.UP or self._in_flight:
            return []
        entries, copies = self.sched.plan()
        failed = self._submit(entries, copies) if entries else []
        self.sched.make_room()
        if not self._in_flight and self.state is DeviceState.UP and self.pool.has_dirty:
            failed += self._submit([], [])
        return failed

    def _submit(self, entries: list[Entry], copies: list[tuple[int, int]]) -> list[Outcome]:
        self._value += 1
        dirty = self.pool.take_dirty(self._value)
        ops = step_ops(MODEL, self._value, entries, copies, dirty)
        self._in_flight, self._heard = self._value, self._clock()
        if entries:
            self.sched.submitted(self._value, entries)
        try:
            self.link.send(base.Submit(self.epoch, base.Queue.COMPUTE, self._value, (), MODEL, ops))
        except LinkDown as down:
            return self._end_epoch(str(down))
        return []

    @property
    def idle(self) -> bool:
        """Nothing is in flight and nothing is due."""
        return not self._in_flight and not (self._pool and self._pool.has_dirty)

    def stop(self) -> None:
        """End the driver."""
        self.link.kill()
