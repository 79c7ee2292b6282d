"""Errands: saves and loads, which go back and forth between the kernel, the device and the store.

An errand is a generator. It yields what it asks for, a message to the store or an op for a device,
and is resumed with the answer; a fault is raised in it as a KernelError. Errands of contexts take
turns, for they share the bulk window; what asks the store only (a list, a drop) goes beside.

An errand that nobody waits for any more goes on to its end: it was promised when it was accepted.
One of the kernel's own has no call at all, and ends without an error. Either yields PAUSE where it
would hold the loop for too long: it goes on in the next turn.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator
from enum import Enum
from typing import Any, NamedTuple

from drivers.store import base
from kernel.block import Move
from kernel.handler import Done
from kernel.panic import check
from kernel.session import Session
from kernel.storehost import StoreHost, StoreState, error_of
from syscalls.errors import EIO, KernelError

log = logging.getLogger(__name__)


class DeviceOp(NamedTuple):
    """An op on blocks of a model, for the queue that copies that way."""

    model: Any  # a Model (kernel/model.py)
    op: Any  # Export | Import
    move: Move

    @property
    def end(self) -> int:
        """Where its blocks end in the bulk window."""
        count = len(memoryview(self.op.blocks).cast("i"))
        return int(self.op.offset + count * self.model.desc.block_bytes)


BULK, HOST = 0, 1
"""Windows of the store, in the order in which they are given to it."""


class Filling(NamedTuple):
    """A message on which the store fills the bulk window up to byte `end`."""

    message: Any
    end: int


class Lost(EIO):
    """The device died, and the op with it."""


class Pause(Enum):
    """What an errand yields to go on in the next turn."""

    PAUSE = 0


PAUSE = Pause.PAUSE
Errand = Generator[Any, Any, Any]
"""Ends with the Done of its call, or with anything if it has none."""


class Job(NamedTuple):
    """An errand, and the call that it is of."""

    errand: Errand
    session: Session | None  # None: it is the kernel's own
    call: int


class Errands:
    """What is being saved and loaded."""

    def __init__(
        self,
        store: StoreHost,
        wipe: Callable[[int], None] = lambda end: None,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        """`wipe` zeroes their part of the bulk window up to a byte: it is called after each errand
        that has used it, `idle` after the last one."""
        self._store = store
        self._wipe = wipe
        self._idle = idle
        self._used = 0  # where what is in the window ends
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._paused: list[Job] = []

    @property
    def busy(self) -> bool:
        """Whether any errand that uses the window is not done."""
        return self._running is not None

    @property
    def paused(self) -> bool:
        """Whether one goes on in the next turn."""
        return bool(self._paused)

    def go_on(self) -> None:
        """Resume those that have paused."""
        paused, self._paused = self._paused, []
        for job in paused:
            self._resume(job, None)

    def start(self, errand: Errand, session: Session | None = None, call: int = 0) -> None:
        """Begin an errand when those before it are done."""
        self._waiting.append(Job(errand, session, call))
        if self._running is None:
            self._next()

    def run(self, errand: "Generator[Any, Any, Any]") -> None:
        """Begin an errand of the kernel's own; none may be running."""
        check(self._running is None, "an errand runs")
        self._running = Job(errand, None, 0)
        self._resume(self._running, None)

    def beside(self, errand: Errand, session: Session | None = None, call: int = 0) -> None:
        """Begin an errand that asks the store only."""
        self._resume(Job(errand, session, call), None)

    def _next(self) -> None:
        while self._waiting and self._running is None:
            self._running = self._waiting.popleft()
            self._resume(self._running, None)

    def _resume(self, job: Job, answer: Any) -> None:
        """Let an errand go on with an answer, which may be the error that it gets."""
        try:
            if isinstance(answer, KernelError):
                asked = job.errand.throw(answer)
            else:
                asked = job.errand.send(answer)
        except StopIteration as end:
            self._end(job, end.value)
        except KernelError as error:
            self._end(job, error)
        else:
            self._ask(job, asked)

    def _ask(self, job: Job, asked: Any) -> None:
        if asked is PAUSE:
            self._paused.append(job)
            return
        if isinstance(asked, DeviceOp):
            if not asked.model.serves:
                self._resume(job, asked.model.unavailable())
                return
            self._used = max(self._used, asked.end)
            asked.model.swap.run(asked.move, asked.op, self._on_device(job))
            return

        if self._store.state is StoreState.FAILED:
            self._resume(job, self._store.failure())
            return
        if isinstance(asked, Filling):
            self._used = max(self._used, asked.end)
            asked = asked.message

        def answered(message: Any) -> None:
            fault = isinstance(message, base.Fault)
            self._resume(job, error_of(message) if fault else message)

        self._store.ask(asked, answered)

    def _on_device(self, job: Job) -> Callable[[bool], None]:
        def done(well: bool) -> None:
            self._resume(job, True if well else Lost("the device died in the middle of a copy"))

        return done

    def _end(self, job: Job, result: Done | KernelError) -> None:
        session = job.session
        if session is None:
            check(not isinstance(result, KernelError), f"an errand of the kernel's own: {result}")
        elif job.call in session.open:
            if isinstance(result, KernelError):
                session.fail(job.call, result)
            else:
                session.finish(job.call, result.result, result.ids)
        if self._running is job:
            if self._used:
                end, self._used = self._used, 0
                self._wipe(end)
            self._running = None
            self._next()
            if self._running is None:
                self._idle()

    def check(self) -> None:
        """Panic if something waits for nothing."""
        check(self._running is not None or not self._waiting, "errands wait, and none runs")
