"""Latency: how long the null driver takes, on a fake clock.

A message begins when its queue is free and what it waits for is over, and takes what `Latency`
says. The driver does its work, and answers, when the clock has come to its end; `start_us` and
`end_us` of the answer are those of the fake clock. Queues run beside one another; each in order.
"""

from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from drivers import base
from kernel.loopback import LoopbackLink
from tests.helpers.sim import Clock


class Latency(NamedTuple):
    """Microseconds, and bytes per microsecond."""

    step_us: float = 0.0  # of any Execute
    prefill_us: float = 0.0  # per token of a sequence that has several
    decode_us: float = 0.0  # per sequence that has one
    read_us: float = 0.0  # per position of KV that a sequence reads
    bytes_per_us: float = float("inf")  # of copies between the tiers
    load_us: float = 0.0

    def of(self, message: Any, block_bytes: int) -> float:
        """Return how long a message takes, in microseconds."""
        if isinstance(message, base.Load):
            return self.load_us
        if not isinstance(message, base.Submit):
            return 0.0
        return sum(self._op(op, block_bytes) for op in message.ops)

    def _op(self, op: Any, block_bytes: int) -> float:
        if isinstance(op, base.Copy):
            return len(op.src) // 4 * block_bytes / self.bytes_per_us
        if not isinstance(op, base.Execute):
            return 0.0
        us = self.step_us + self.read_us * sum(base.read_ints(op.kv_len))
        ends = base.read_ints(op.qo_indptr)
        for first, last in pairwise(ends):
            us += self.decode_us if last - first == 1 else self.prefill_us * (last - first)
        return us


CPU = Latency(3000.0, 120.0, 400.0, 0.05, 4000.0, 1000.0)
"""About a small model on two cores: a decode of one sequence 3.4 ms, of 32 of them 16 ms."""
AT_ONCE = Latency()


class Flight(NamedTuple):
    """A message that the driver works on, or will."""

    begin: float  # seconds of the fake clock
    end: float
    message: Any

    @property
    def fence(self) -> base.Fence | None:
        """What is passed with it, if it is a Submit."""
        if not isinstance(self.message, base.Submit):
            return None
        return base.Fence(self.message.epoch, self.message.queue, self.message.value)


class Budgets(NamedTuple):
    """What the driver says that it takes, instead of its own."""

    max_tokens: int = 2048
    max_seqs: int = 256


OWN = Budgets()


class TimedLink(LoopbackLink):
    """A driver in this process whose answers come when the clock gets there."""

    def __init__(
        self,
        clock: Clock,
        latency: Latency = CPU,
        budgets: Budgets = OWN,
        host_bytes: int = 0,
        device: str = "null0",
    ) -> None:
        super().__init__(device, host_bytes=host_bytes, beside=Random(0))
        self.clock = clock
        self.latency = latency
        self.flights: list[Flight] = []  # not done, in the order of their ends
        self.on_begin: Callable[[Flight], None] = lambda flight: None
        self.on_end: Callable[[Flight], None] = lambda flight: None
        self.on_death: Callable[[], None] = lambda: None
        self._budgets = budgets
        self._free: dict[int, float] = {}  # by queue, when it has done all
        self._block_bytes = 0
        self._span = 0.0, 0.0

    def start(self) -> None:
        super().start()
        self._forget()

    def die(self) -> None:
        super().die()
        self._forget()
        self.on_death()

    def _forget(self) -> None:
        self.flights.clear()
        self._free.clear()

    @property
    def loading(self) -> bool:
        """Whether there is no driver that serves: it greets, or loads its model."""
        return self._dead != "" or any(
            isinstance(flight.message, base.Hello | base.Load) for flight in self.flights
        )

    @property
    def due(self) -> float | None:
        """When the driver answers next; None: it has nothing to do."""
        return self.flights[0].end if self.flights else None

    def send(self, message: Any) -> None:
        super().send(message)
        message = self.inbox.pop()  # as the driver reads it
        queue = getattr(message, "queue", base.Queue.COMPUTE)
        waits = set(getattr(message, "waits", ()))
        begin = max(
            self.clock(), self._free.get(queue, 0.0),
            *(other.end for other in self.flights if other.fence in waits),
        )  # fmt: skip
        end = begin + self.latency.of(message, self._block_bytes) / 1e6
        self._free[queue] = end
        flight = Flight(begin, end, message)
        self.flights.append(flight)
        self.flights.sort(key=lambda each: each.end)  # stable: equal ends as they were sent
        self.on_begin(flight)

    def pump(self, count: int = 1 << 30) -> int:
        """Let the driver do up to `count` messages whose time has come; return how many it did."""
        done = 0
        while done < count and self.flights and self.flights[0].end <= self.clock():
            flight = self.flights.pop(0)
            self._span = flight.begin, flight.end
            self._handle(flight.message)
            self.on_end(flight)
            done += 1
        return done

    def _emit(self, message: Any) -> None:
        if isinstance(message, base.Complete):
            start, end = self._span
            message = message._replace(start_us=round(start * 1e6), end_us=round(end * 1e6))
        elif isinstance(message, base.Loaded):
            self._block_bytes = message.block_bytes
            message = message._replace(**self._budgets._asdict())
        super()._emit(message)
