"""Device: one driver with its loaded model, its block pool and its scheduler.

    STARTING --Ready--> LOADING --Loaded--> UP          FAILED: out of restarts, or cannot load
        ^----- driver died, faulted or hung: new epoch -----|

One Submit is in flight at a time; its fence is (epoch, COMPUTE, value). When an epoch ends, the
process is reaped first; then what was in flight is undone, every block loses its KV, and the same
requests run again in the next epoch, computed from ids. A request that was in flight in three
deaths is failed with EIO, so that one bad request cannot take the device down for ever.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from drivers import base, wire
from kernel.answer import MODEL, Lie, ModelSpec, check_fence, check_loaded, read_samples
from kernel.block import BlockPool
from kernel.context import Context
from kernel.link import Link, LinkDown
from kernel.policy import Policy
from kernel.request import Request, Token
from kernel.sched import Scheduler
from kernel.step import Entry, step_limits, step_ops
from kernel.watch import Patience, Watch
from syscalls.errors import EAGAIN, EIO, ENODEV, KernelError

log = logging.getLogger(__name__)

MAX_NOTE = 1000
"""Characters kept of a reason in which a driver has its say."""
MAX_MESSAGES = 64
"""Of a driver in one turn of the loop."""
Outcome = tuple[Request, Token | KernelError]
"""What a step gave a request: an id, or the error that ends it."""


class DeviceState(Enum):
    STARTING = "starting"
    LOADING = "loading"
    UP = "up"
    FAILED = "failed"


class Limits(NamedTuple):
    """Of a device."""

    prefill_chunk: int
    target_us: int
    patience: Patience
    max_request_deaths: int = 3  # epochs that end while it is in flight


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
        self._policy = policy
        self._contexts = contexts
        self._pool: BlockPool | None = None
        self._sched: Scheduler | None = None
        self._value = 0
        self._in_flight = 0  # fence value, 0: none
        self._watch = Watch(limits.patience, clock)

    @property
    def name(self) -> str:
        return self.link.device

    @property
    def pool(self) -> BlockPool:
        """The block pool; EAGAIN, ENODEV before the model was loaded for the first time."""
        if self._pool is None:
            raise self._unavailable()
        return self._pool

    @property
    def sched(self) -> Scheduler:
        """The scheduler; likewise."""
        if self._sched is None:
            raise self._unavailable()
        return self._sched

    @property
    def desc(self) -> base.Loaded:
        """The loaded model; likewise."""
        if self.loaded is None:
            raise self._unavailable()
        return self.loaded

    @property
    def requests(self) -> list[Request]:
        return list(self._sched.requests.values()) if self._sched else []

    def _unavailable(self) -> KernelError:
        why = f": {self.note}" if self.note else ""
        error = ENODEV if self.state is DeviceState.FAILED else EAGAIN
        return error(f"device {self.name} is {self.state.value}{why}", "llmos status shows it")

    def require(self) -> None:
        """Raise ENODEV if the device will not serve requests, EAGAIN if not yet."""
        if self.state is DeviceState.FAILED or self.loaded is None:
            raise self._unavailable()

    # --- epochs -------------------------------------------------------------------------------

    def start(self) -> list[Outcome]:
        """Begin an epoch: start the driver and greet it."""
        self.epoch += 1
        self._value = 0
        self.state = DeviceState.STARTING
        self._watch.loading()
        try:
            self.link.start()
            self.link.send(base.Hello(*base.ABI, wire.schema(), self.epoch, self.name))
        except LinkDown as down:
            return self._end_epoch(str(down))
        return []

    def deadline(self) -> float | None:
        """When to look at `expire` again; None while the driver owes nothing."""
        return self._watch.deadline

    def expire(self, now: float) -> list[Outcome]:
        """Replace a driver that is past a deadline."""
        why = self._watch.overdue(now)
        return self._replace(why) if why else []

    def _replace(self, why: str) -> list[Outcome]:
        """End the driver, then its epoch."""
        self.link.kill()
        return self._end_epoch(why)

    def _end_epoch(self, why: str) -> list[Outcome]:
        """Undo what was in flight, forget all KV, start over or give up."""
        why = why[:MAX_NOTE]
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
        if not self._watch.died():
            restarts = self.limits.patience.max_restarts
            return failed + self._give_up(f"{why}; {restarts} restarts did not help")
        return failed + self.start()

    def _give_up(self, why: str) -> list[Outcome]:
        self.link.kill()
        self._watch.done()
        why = why[:MAX_NOTE]
        self.state, self.note = DeviceState.FAILED, why
        log.error("device %s failed: %s", self.name, why)
        return [(request, self._unavailable()) for request in self.requests if request.infer]

    # --- messages of the driver ---------------------------------------------------------------

    def collect(self) -> Iterator[Outcome]:
        """Handle what the driver has sent; the rest of a flood waits for the next turn."""
        for _ in range(MAX_MESSAGES):
            if self.state is DeviceState.FAILED:
                return
            try:
                message = self.link.receive()
                if message is None:
                    return
                self._watch.heard()
                outcomes = self._handle(message)
            except LinkDown as down:
                outcomes = self._end_epoch(str(down))
            except Lie as lie:
                outcomes = self._replace(f"the driver {lie}, which the ABI does not allow")
            yield from outcomes

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
            case base.Estimate() | base.Progress() | base.Heartbeat() | base.StatsReply():
                pass
            case _:
                raise Lie(f"sent {type(message).__name__}")
        return ()

    def _on_ready(self, ready: base.Ready) -> list[Outcome]:
        if ready.epoch != self.epoch or self.state is not DeviceState.STARTING:
            raise Lie("greeted out of turn")
        if (ready.major, ready.schema) != (base.ABI[0], wire.schema()):
            return self._give_up("the driver speaks another ABI; reinstall llmos-kernel")
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
            raise Lie("loaded out of turn")
        check_loaded(loaded, self.spec, self.loaded)
        if len(loaded.kv_groups) != 1:
            return self._give_up(f"the model has {len(loaded.kv_groups)} KV groups (ENOTSUP)")
        limits = step_limits(loaded, self.limits.prefill_chunk, self.limits.target_us)
        needed = -(-loaded.max_ctx // loaded.block_size)
        if needed > limits.max_block_refs:
            return self._give_up(
                f"a full context has {needed} blocks, a step may name {limits.max_block_refs}; "
                "lower --max-ctx or raise --block-size"
            )
        if self.loaded is None:
            self._pool = BlockPool(loaded.num_blocks, loaded.block_size)
            self._sched = Scheduler(self._pool, self._policy, limits, self._contexts)
        self.loaded, self.state = loaded, DeviceState.UP
        self._watch.done()
        log.info("device %s: %s up in epoch %d", self.name, self.spec.name, self.epoch)
        return []

    def _on_complete(self, complete: base.Complete) -> Iterable[Outcome]:
        check_fence(complete, self.epoch, self._in_flight)
        sampled = read_samples(complete, self.sched.samplers, self.desc.vocab)
        self._in_flight = 0
        self._watch.done()
        self.pool.fence_passed(complete.value)
        took_us = complete.end_us - complete.start_us
        return self.sched.commit(sampled, took_us) if self.sched.step else ()

    def _on_fault(self, fault: base.Fault) -> list[Outcome]:
        if fault.kind not in list(base.FaultKind):
            raise Lie(f"sent a fault of kind {fault.kind}")
        kind = base.FaultKind(fault.kind).name
        if fault.value == 0:
            if self.state in (DeviceState.STARTING, DeviceState.LOADING):
                return self._give_up(f"{fault.message} ({kind})")
            raise Lie(f"faulted with {kind}: {fault.message}")
        check_fence(fault, self.epoch, self._in_flight)
        return self._replace(f"{kind}: {fault.message}")

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
        self._in_flight = self._value
        self._watch.stepping()
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
