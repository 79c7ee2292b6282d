"""Lanes: the queues of a device that run beside each other, a thread each.

A Submit is taken at once and answered from the thread of its queue, in order there; what it waits
for holds up its own queue only. Whatever is wrong with it is told in its turn:

    submit --accept--> [ COMPUTE  ] -> run ---------> emit, passed
                       [ COPY_OUT ] -> wait .. run -> emit, passed
                       [ COPY_IN  ]

A thread starts with the first Submit of its queue and ends with the Lanes; idle, it never wakes.
While nothing is there that could run beside it, COMPUTE has none and is run by whoever submits: to
wake a thread takes some 70 us of every step.
Nothing waits for ever: a wait is for what was submitted before (`Fences`), and every Submit ends,
with DEVICE_LOST if the driver fails in a way that it does not know.
"""

import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from drivers import base
from drivers.base import DriverFault, FaultKind, Queue
from drivers.submit import Fences

log = logging.getLogger(__name__)

Work = Callable[[], None]
Run = Callable[[base.Submit], tuple[Any, ...]]
"""Runs the ops of a Submit and returns their results; DriverFault if it cannot."""


class Lanes:
    """The queues of one epoch; all methods are called from one thread."""

    def __init__(self, epoch: int, run: Run, emit: base.Emit) -> None:
        self.busy_us = 0  # of COMPUTE
        self.beside = False  # whether COMPUTE has a thread of its own; once it has, it keeps it
        self._epoch, self._run, self._emit = epoch, run, emit
        self._fences = Fences(epoch)
        self._passed = dict.fromkeys(Queue, 0)
        self._owed = Counter[int]()  # Submits that are not answered yet, by model
        self._moved = threading.Condition()  # guards the two above; told when they change
        self._lanes: dict[Queue, SimpleQueue[Work | None]] = {}
        weakref.finalize(self, _end, self._lanes)

    def submit(self, submit: base.Submit) -> None:
        """Take a Submit; one Complete or Fault is emitted for it, later."""
        refusal: DriverFault | None = None
        try:
            self._fences.accept(submit)
        except DriverFault as fault:
            refusal = fault
        with self._moved:
            self._owed[submit.model] += 1
        queue = Queue(submit.queue) if submit.queue in list(Queue) else Queue.COMPUTE
        answer = partial(self._answer, submit, refusal)
        if queue == Queue.COMPUTE and not self.beside:
            answer()
        else:
            self._lane(queue).put(answer)

    def drain(self, model: int | None = None) -> None:
        """Wait until all Submits are answered, or all of one model."""
        with self._moved:
            self._moved.wait_for(lambda: not (self._owed if model is None else self._owed[model]))

    def _lane(self, queue: Queue) -> "SimpleQueue[Work | None]":
        lane = self._lanes.get(queue)
        if lane is None:
            lane = self._lanes[queue] = SimpleQueue()
            name = queue.name.lower()
            threading.Thread(target=_serve, args=(lane,), name=name, daemon=True).start()
        return lane

    # --- in the threads -----------------------------------------------------------------------

    def _answer(self, submit: base.Submit, refusal: DriverFault | None) -> None:
        fence = submit.epoch, submit.queue, submit.value
        if refusal is None:
            self._wait(submit.waits)
        start = time.monotonic_ns() // 1000
        try:
            try:
                if refusal is not None:
                    raise refusal
                results = self._run(submit)
                answer: Any = base.Complete(*fence, start, time.monotonic_ns() // 1000, results)
            except DriverFault as fault:
                answer = base.Fault(*fence, fault.kind, fault.message, fault.items)
            self._emit(answer)
        except Exception as error:
            log.exception("the driver failed in a Submit on queue %d", submit.queue)
            answer = base.Fault(*fence, FaultKind.DEVICE_LOST, base.lost(error), ())
            self._emit(answer)
        self._pass(submit, answer)

    def _wait(self, waits: tuple[base.Fence, ...]) -> None:
        if waits:
            passed = self._passed
            with self._moved:
                self._moved.wait_for(lambda: all(passed[Queue(w.queue)] >= w.value for w in waits))

    def _pass(self, submit: base.Submit, answer: Any) -> None:
        """Let go on who has waited for this answer. A fence out of line is nobody's."""
        with self._moved:
            if isinstance(answer, base.Complete) and submit.queue == Queue.COMPUTE:
                self.busy_us += answer.end_us - answer.start_us
            if submit.epoch == self._epoch and submit.queue in list(Queue):
                queue = Queue(submit.queue)
                self._passed[queue] += submit.value == self._passed[queue] + 1
            self._owed[submit.model] -= 1
            if not self._owed[submit.model]:
                del self._owed[submit.model]
            self._moved.notify_all()


def _serve(lane: "SimpleQueue[Work | None]") -> None:
    """Do what comes. Idle, it holds nothing of the driver, so that this can be dropped."""
    while (work := lane.get()) is not None:
        work()
        del work


def _end(lanes: "dict[Queue, SimpleQueue[Work | None]]") -> None:
    for lane in lanes.values():
        lane.put(None)
