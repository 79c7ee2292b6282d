"""Flights: what is in flight on the queues of a device: one Submit, on COMPUTE more behind it.

The fence of a Submit is (epoch, queue, value), and values of a queue rise by one. A driver must end
a step, and a copy, in time (kernel/watch.py).
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from drivers import base
from kernel.answer import check_fence
from kernel.model import Model
from kernel.watch import Patience, Watch


class Flight(NamedTuple):
    """What is in flight on a queue."""

    value: int
    model: Model


class Flights:
    """The Submits of one device that are not answered."""

    def __init__(self, patience: Patience, clock: Callable[[], float]) -> None:
        self.values = dict.fromkeys(base.Queue, 0)
        self._flights: dict[base.Queue, deque[Flight]] = {}  # the oldest first, none is empty
        self._steps = Watch(patience, clock)
        self._copies = Watch(patience, clock)

    @property
    def watches(self) -> tuple[Watch, ...]:
        return self._steps, self._copies

    def __contains__(self, queue: base.Queue) -> bool:
        return queue in self._flights

    def __bool__(self) -> bool:
        return bool(self._flights)

    @property
    def models(self) -> list[Model]:
        """The models that something in flight is of."""
        return [flight.model for flights in self._flights.values() for flight in flights]

    def count(self, queue: base.Queue) -> int:
        """Return how many Submits of a queue are not answered."""
        return len(self._flights.get(queue, ()))

    @property
    def running(self) -> Model | None:
        """The model whose Submit the driver is at on COMPUTE, if it is at any."""
        flights = self._flights.get(base.Queue.COMPUTE)
        return flights[0].model if flights else None

    @property
    def last(self) -> Model:
        """The model of the last Submit on COMPUTE; there is one."""
        return self._flights[base.Queue.COMPUTE][-1].model

    def begin(self) -> None:
        """Begin an epoch: nothing is in flight."""
        self.values = dict.fromkeys(base.Queue, 0)
        self._flights.clear()
        for watch in self.watches:
            watch.done()

    def take_off(self, queue: base.Queue, model: Model) -> int:
        """Note a Submit; return the value of its fence."""
        self.values[queue] += 1
        flights = self._flights.setdefault(queue, deque())
        flights.append(Flight(self.values[queue], model))
        if len(flights) == 1:
            (self._steps if queue is base.Queue.COMPUTE else self._copies).stepping()
        return self.values[queue]

    def of(self, answer: base.Complete | base.Fault, epoch: int) -> Model:
        """Return the model of the Submit that is answered; Lie if none is."""
        flights = {int(queue): flights[0] for queue, flights in self._flights.items()}
        flight = flights.get(answer.queue)
        check_fence(answer, epoch, flight.value if flight else 0)
        assert flight is not None
        return flight.model

    def land(self, queue: int) -> None:
        """Note that the oldest Submit of a queue is answered."""
        flights = self._flights[base.Queue(queue)]
        flights.popleft()
        if flights:
            self._steps.stepping()  # the next one begins now
            return
        del self._flights[base.Queue(queue)]
        if queue == base.Queue.COMPUTE:
            self._steps.done()
        elif len(self._flights) == (base.Queue.COMPUTE in self._flights):
            self._copies.done()

    def so_far(self, epoch: int) -> tuple[base.Fence, ...]:
        """Return the fence to wait for to see all that was submitted on COMPUTE."""
        value = self.values[base.Queue.COMPUTE]
        return (base.Fence(epoch, base.Queue.COMPUTE, value),) if value else ()
