"""Device: one driver and the models that it has loaded.

    STARTING --Ready--> LOADING --all that were asked for--> UP      FAILED: out of restarts
        ^------- driver died, faulted or hung: new epoch -------|

One Submit of one model is in flight at a time on each queue; its fence is (epoch, queue, value).
On COMPUTE another one may wait behind it, so that the device need not wait for the kernel; and some
more while they are short and nothing else is to be done (`Limits.overlap`). Models that have
something to run take turns on COMPUTE; copies between the tiers (kernel/swap.py) go beside, on
queues of their own.

A driver that cannot load beside its steps (feature "load_beside") does one or the other: loads go
first, but after each of them every model that is up has a step, so that loads without end stop
nobody. One that can serves, from its first model on, while it loads the next.

When an epoch ends, the process is reaped first; then what was in flight is undone, every block
loses what it had on the device, and in the next epoch the same models are loaded and the same
requests run again: copied back from the host tier, which outlives the driver, or computed from ids.
A request that was in flight in three deaths is failed with EIO, so that one bad request cannot take
the device down for ever. A model that its driver refuses fails alone, if others are there.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from drivers import base, wire
from kernel.answer import Lie, check_copied, read_results
from kernel.block import Move
from kernel.diskswap import SwapFile
from kernel.flights import Flights
from kernel.grammars import Grammars
from kernel.link import Link, LinkDown
from kernel.loading import MAX_NOTE, REFUSALS, Loading, News, Outcome
from kernel.model import Means, Model, ModelState, ModelTable
from kernel.policy import Policy
from kernel.request import Request
from kernel.step import Entry, step_ops
from kernel.watch import Patience, Watch
from syscalls.errors import EIO, ENODEV, ENOTSUP, KernelError

log = logging.getLogger(__name__)

MAX_MESSAGES = 64
"""Of a driver in one turn of the loop."""


class DeviceState(Enum):
    STARTING = "starting"
    LOADING = "loading"
    UP = "up"
    FAILED = "failed"


class Limits(NamedTuple):
    """Of a device."""

    step: tuple[int, int, int]  # prefill_chunk, target_us, max_seqs
    patience: Patience
    overlap: int = 0  # steps that may wait behind the one that computes
    max_request_deaths: int = 3  # epochs that end while it is in flight


COPIES = {base.Queue.COPY_OUT: Move.OUT, base.Queue.COPY_IN: Move.IN}


class Device:
    """One device of the kernel."""

    def __init__(
        self,
        link: Link,
        limits: Limits,
        policy: Policy,
        clock: Callable[[], float],
        secret: bytes,
        burying: Callable[[], bool],
        swap_file: SwapFile | None = None,
    ) -> None:
        self.link = link
        self.limits = limits
        self.state = DeviceState.STARTING
        self.epoch = 0
        self.note = ""
        self.ready: base.Ready | None = None
        self.models = ModelTable(link.device)
        self._means = Means(
            policy, limits.step, burying, clock, secret,
            link.zero_host, swap_file,
        )  # fmt: skip
        self._loading = Loading(self.models, link.device)
        self.grammars = Grammars(limits.patience, clock)
        self._flights = Flights(limits.patience, clock)
        self._steps_due = 0  # before the next load
        self.again = False  # the next turn has something to do, whatever comes in between
        self._stuck: list[Outcome | News] = []  # requests that would wait for ever
        self._watch = Watch(limits.patience, clock)
        self._load_watch = Watch(limits.patience, clock)

    @property
    def name(self) -> str:
        return self.link.device

    @property
    def requests(self) -> list[Request]:
        """The requests of all models."""
        return [request for model in self.models for request in model.requests]

    def remove(self, model: Model, note: str) -> list[tuple[Request, KernelError]]:
        """Let a model go: what runs on it fails, its contexts keep their ids."""
        log.info("%s: leaves %s, %s", model.name, self.name, note)
        self.models.remove(model)
        self.models.leaving.append(model)
        self.grammars.remove_model(model)
        ended = model.end(ModelState.GONE, note)
        return [(request, model.unavailable()) for request in ended]

    def unavailable(self) -> KernelError:
        """Return the error for whoever needs the device."""
        why = f": {self.note}" if self.note else ""
        return ENODEV(f"device {self.name} is {self.state.value}{why}", "llmos status shows it")

    # --- epochs -------------------------------------------------------------------------------

    def start(self) -> list[Outcome | News]:
        """Begin an epoch: start the driver and greet it."""
        self.epoch += 1
        self._flights.begin()
        self.state = DeviceState.STARTING
        self._watch.loading()
        try:
            self.link.start()
            self.link.send(base.Hello(*base.ABI, wire.schema(), self.epoch, self.name))
        except LinkDown as down:
            return self._end_epoch(str(down))
        host = self.link.host_pid
        log.info("device %s: epoch %d begins, driver host %d", self.name, self.epoch, host)
        return []

    def deadline(self) -> float | None:
        """When to look at `expire` again; None while the driver owes nothing."""
        deadlines = [watch.deadline for watch in self._watches]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @property
    def _watches(self) -> tuple[Watch, ...]:
        return self._watch, self._load_watch, self.grammars.watch, *self._flights.watches

    def expire(self, now: float) -> list[Outcome | News]:
        """Replace a driver that is past a deadline."""
        why = next(filter(None, (watch.overdue(now) for watch in self._watches)), "")
        return self._replace(why) if why else []

    def _replace(self, why: str) -> list[Outcome | News]:
        """End the driver, then its epoch."""
        self.link.kill()
        return self._end_epoch(why)

    def _end_epoch(self, why: str) -> list[Outcome | News]:
        """Undo what was in flight, forget all KV, start over or give up."""
        why = why[:MAX_NOTE]
        log.error("device %s: epoch %d ended: %s", self.name, self.epoch, why)
        self.note, self._steps_due = why, 0
        running = self._flights.running
        self._flights.begin()
        self._load_watch.done()
        for gone in self.models.leaving:  # zeroed in the next epoch: the store may be at it still
            gone.lose_ops()
        loading = self._loading.model is not None  # then it is to blame, if anything is
        failed = [*self._loading.blame(why), *self.grammars.lose()]
        for model in self.models:
            for request in model.lose_device():
                request.deaths += model is running and not loading
                if request.deaths >= self.limits.max_request_deaths:
                    story = f"device {self.name} ended {request.deaths} times while running this"
                    failed.append((request, EIO(f"{story}; the last time: {why}")))
        if not self._watch.died():
            restarts = self.limits.patience.max_restarts
            return failed + self._give_up(f"{why}; {restarts} restarts did not help")
        return failed + self.start()

    def _give_up(self, why: str) -> list[Outcome | News]:
        self.link.kill()
        for watch in self._watches:
            watch.done()
        why = why[:MAX_NOTE]
        self.state, self.note, self._loading.model = DeviceState.FAILED, why, None
        log.error("device %s failed: %s", self.name, why)
        failed: list[Outcome | News] = []
        for model in self.models:
            failed += self._loading.fail(model, why, self.unavailable())
        return failed

    # --- messages of the driver ---------------------------------------------------------------

    def collect(self) -> Iterator[Outcome | News]:
        """Handle what the driver has sent; the rest of a flood waits for the next turn."""
        for _ in range(MAX_MESSAGES):
            if self.state is DeviceState.FAILED:
                return
            try:
                message = self.link.receive()
                if message is None:
                    return
                for watch in self._watches:
                    watch.heard()
                outcomes = self._handle(message)
            except LinkDown as down:
                outcomes = self._end_epoch(str(down))
            except Lie as lie:
                outcomes = self._replace(f"the driver {lie}, which the ABI does not allow")
            yield from outcomes

    def _handle(self, message: object) -> Iterable[Outcome | News]:
        match message:
            case base.Ready():
                return self._on_ready(message)
            case base.Loaded():
                return self._on_loaded(message)
            case base.Complete():
                return self._on_complete(message)
            case base.Fault():
                return self._on_fault(message)
            case base.Compiled():
                return self.grammars.compiled(message)
            case base.Progress():
                return self._loading.progress(message)
            case base.Estimate():
                self._loading.estimate(message)
            case base.Heartbeat() | base.StatsReply():
                pass
            case _:
                raise Lie(f"sent {type(message).__name__}")
        return ()

    def _on_ready(self, ready: base.Ready) -> list[Outcome | News]:
        if ready.epoch != self.epoch or self.state is not DeviceState.STARTING:
            raise Lie("greeted out of turn")
        if (ready.major, ready.schema) != (base.ABI[0], wire.schema()):
            return self._give_up("the driver speaks another ABI; reinstall llmos-kernel")
        self.ready, self.state = ready, DeviceState.LOADING
        self._watch.done()
        return []

    def _on_loaded(self, loaded: base.Loaded) -> list[Outcome | News]:
        model = self._loading.current("loaded out of turn")
        why = model.take(loaded, self._means)  # a Lie is a death in loading this model
        if why:
            self.link.send(base.Unload(model.number))
        self._loading.over()
        self._load_watch.done()
        if why:
            return self._refused(model, why, ENOTSUP)
        return self._loading.up(model, loaded, self.epoch)

    def _refused(self, model: Model, why: str, error: type[KernelError]) -> list[Outcome | News]:
        """Go on without a model; a device that has no other, and was asked for none, fails."""
        why = why[:MAX_NOTE]
        log.error("device %s cannot load %s: %s", self.name, model.name, why)
        alone = self._loading.alone(model)
        return self._give_up(why) if alone else self._loading.refused(model, why, error)

    def _on_complete(self, complete: base.Complete) -> Iterable[Outcome]:
        model = self._flown(complete)
        if model is None:
            return ()
        took_us = complete.end_us - complete.start_us
        if complete.queue != base.Queue.COMPUTE:
            check_copied(complete)
            self._flights.land(complete.queue)
            model.swap.landed(COPIES[base.Queue(complete.queue)], took_us)
            return ()
        sched = model.sched
        results = read_results(complete, sched.samplers, sched.scorers, model.desc.vocab)
        self._flights.land(complete.queue)
        model.pool.fence_passed(complete.value)
        return sched.commit(results, took_us)

    def _flown(self, answer: base.Complete | base.Fault) -> Model | None:
        """Return the model of the Submit that is answered; None if it has gone since."""
        model = self._flights.of(answer, self.epoch)
        if model.state is not ModelState.GONE:
            return model
        self._flights.land(answer.queue)
        if answer.queue != base.Queue.COMPUTE:
            model.lose_op(COPIES[base.Queue(answer.queue)])
        return None

    def _on_fault(self, fault: base.Fault) -> Iterable[Outcome | News]:
        if fault.kind not in list(base.FaultKind):
            raise Lie(f"sent a fault of kind {fault.kind}")
        kind = base.FaultKind(fault.kind)
        why = f"{fault.message} ({kind.name})"
        if fault.value == 0:
            if self.state is DeviceState.STARTING:
                return self._give_up(why)
            model = self._loading.current(f"faulted with {kind.name}: {fault.message}")
            self._loading.over()
            self._load_watch.done()
            return self._refused(model, fault.message, REFUSALS.get(kind, EIO))
        self._flown(fault)
        return self._replace(f"{kind.name}: {fault.message}")

    # --- steps --------------------------------------------------------------------------------

    def step(self) -> list[Outcome | News]:
        """Give the driver what it has time for: a load, a step, scrubs and copies that are due."""
        if self.state not in (DeviceState.LOADING, DeviceState.UP):
            return []
        self._stuck, self.again = [], False
        try:
            self.grammars.send(self.link, self.models.in_turn())
            if base.Queue.COMPUTE not in self._flights:
                self._next()
            while self._goes_ahead and self._step_in_turn():
                pass
            if self._loading.model is None or self._serves_beside:
                self._copy()
            for model in self.models:
                if model.loaded and model.pool.host.has_dirty:
                    model.pool.host.flush()
                    self.again |= model.pool.host.has_dirty
        except LinkDown as down:
            return self._stuck + self._end_epoch(str(down))
        return self._stuck

    def _next(self) -> None:
        """Begin a load or submit a step, if that may be now."""
        if self._loading.model is not None and not self._serves_beside:
            return
        self._send_away()
        if self._steps_due and self._step_in_turn():
            self._steps_due -= 1
        elif not self._load() or self._serves_beside:
            self.state = DeviceState.UP
            self._step_in_turn()

    @property
    def _goes_ahead(self) -> bool:
        """Whether one step more may wait behind what is in flight on COMPUTE."""
        count = self._flights.count(base.Queue.COMPUTE)
        if not 0 < count <= self.limits.overlap or not self.link.has_room:
            return False
        assert self.ready is not None
        waits = self._loading.model is not None or self.models.waiting() is not None
        if "steps_ahead" not in self.ready.features or (waits and not self._serves_beside):
            return False
        return count == 1 or self._flights.last.sched.may_queue(self.requests)

    def _send_away(self) -> None:
        """Tell the driver of models that have gone, once nothing of theirs is in flight."""
        flying = self._flights.models
        for model in list(self.models.leaving):
            if model not in flying and not model.loads and not model.disk_swap.busy:
                self.link.send(base.Unload(model.number))
                model.zero_host(self._means)
                self.models.leaving.remove(model)

    @property
    def _serves_beside(self) -> bool:
        """Whether steps go on while a model is being loaded."""
        assert self.ready is not None
        return "load_beside" in self.ready.features and bool(self.models.in_turn())

    def _load(self) -> bool:
        """Load the next model that waits, if none is being loaded; False if there is none."""
        if self._loading.model is not None:
            return True
        load = self._loading.begin()
        if load is None:
            return False
        self._steps_due = 0 if self._serves_beside else len(self.models.in_turn())
        self._load_watch.loading()
        self.link.send(load)
        return True

    def _step_in_turn(self) -> bool:
        """Submit something of the model whose turn it is; False if none has anything to do."""
        for model in self.models.in_turn():
            if self._step(model):
                self.models.served(model)
                return True
        return False

    def _step(self, model: Model) -> bool:
        """Submit a model's next step, or what goes before it; False if there is nothing to do."""
        sched, before = model.sched, self._flights.count(base.Queue.COMPUTE)
        resets = sched.resets()
        if resets:
            self._submit(model, [], [], resets)
            return True
        given_up = sched.pager.given_up
        entries, copies = sched.plan()
        if entries:
            self._submit(model, entries, copies)
        elif resets := sched.resets():
            self._submit(model, [], [], resets)
        self._stuck += sched.make_room()
        # what some have given up may be what others were waiting for
        self.again |= sched.places.has_room or (not entries and sched.pager.given_up != given_up)
        if base.Queue.COMPUTE not in self._flights and model.pool.has_dirty:
            self._submit(model, [], [])
        return self._flights.count(base.Queue.COMPUTE) > before

    def _submit(
        self,
        model: Model,
        entries: list[Entry],
        copies: list[tuple[int, int]],
        resets: Sequence[base.Reset] = (),
    ) -> None:
        value, number = self._flights.take_off(base.Queue.COMPUTE, model), model.number
        recycled, dirty = model.pool.take_scrubs(value)
        ops = step_ops(number, value, entries, copies, dirty, recycled)
        model.sched.submitted(value, entries)
        ops = (*resets, *ops)
        self.link.send(base.Submit(self.epoch, base.Queue.COMPUTE, value, (), number, ops))

    def _copy(self) -> None:
        """Submit copies between the tiers, on queues that have none in flight."""
        for queue, move in COPIES.items():
            for model in self.models.in_turn():
                if queue in self._flights:
                    break
                copy = model.swap.take(move)
                if copy is not None:
                    self._submit_copy(queue, model, copy)

    def _submit_copy(self, queue: base.Queue, model: Model, copy: base.Copy) -> None:
        """Submit a copy that sees what is submitted on COMPUTE so far."""
        waits, value = self._flights.so_far(self.epoch), self._flights.take_off(queue, model)
        self.link.send(base.Submit(self.epoch, queue, value, waits, model.number, (copy,)))

    @property
    def busy(self) -> bool:
        """Whether the driver works on something."""
        return bool(self._flights) or self._loading.model is not None or self.grammars.waiting

    @property
    def idle(self) -> bool:
        """Nothing is in flight and nothing is due."""
        if self.busy or self.models.leaving or self.models.waiting():
            return False
        return not any(model.loaded and model.pool.has_dirty for model in self.models)
