"""Clockwork: lets the time of a Sim pass, from event to event, and nothing happens in between.

An event is what comes next of three: something that a program does (`at`), the end of what the
driver works on (tests/helpers/latency.py), a deadline of the kernel. After each the kernel turns
until it would sleep, programs read what it has for them, and whoever watches looks at it all
(`watchers`). Thousands of events take a second; a pause costs nothing, whatever its length.
"""

import heapq
from collections.abc import Callable
from typing import Any

from tests.helpers.latency import TimedLink
from tests.helpers.sim import Sim

MOST_TURNS = 5_000
"""Turns of the kernel at one moment; it would turn for ever."""
TWICE = 16
"""After every so many events, a turn more than the kernel asks for must change nothing."""


class Clockwork:
    """The time of a Sim whose driver takes some."""

    def __init__(self, sim: Sim, link: TimedLink) -> None:
        self.sim = sim
        self.link = link
        self.events = 0
        self.turns = 0
        self.readers: dict[bytes, Callable[[], None]] = {}  # by route, reads what has come
        self.watchers: list[Callable[[], None]] = []
        self._due: list[tuple[float, int, Callable[[], Any]]] = []
        self._number = 0
        self._deadline: float | None = None  # of the kernel, when it was last at rest

    @property
    def now(self) -> float:
        return self.sim.clock.now

    def at(self, when: float, action: Callable[[], Any]) -> None:
        """Let something happen at a time; at the same time, in the order of these calls."""
        self._number += 1
        heapq.heappush(self._due, (max(when, self.now), self._number, action))

    def after(self, seconds: float, action: Callable[[], Any]) -> None:
        """Let something happen some time from now."""
        self.at(self.now + seconds, action)

    @property
    def idle(self) -> bool:
        """Whether nothing would ever happen but for deadlines of the kernel."""
        return not self._due and self.link.due is None

    def step(self) -> None:
        """Go on to the next event; at equal times the driver is first, then programs."""
        deadline = self._deadline
        mine = self._due[0][0] if self._due else None
        times = [when for when in (self.link.due, mine, deadline) if when is not None]
        assert times, "nothing is due"
        self.sim.clock.now = when = max(self.now, min(times))
        if self.link.due is not None and self.link.due <= when:
            self.link.pump(1)
        elif mine is not None and mine <= when:
            self._act(mine)
        self.events += 1
        self.rest()

    def _act(self, when: float) -> None:
        """Let everything happen that was to happen at one time."""
        while self._due and self._due[0][0] == when:
            heapq.heappop(self._due)[2]()

    def rest(self) -> None:
        """Turn the kernel until it would sleep; then everybody looks at what has come of it."""
        kernel = self.sim.kernel
        for _ in range(MOST_TURNS):
            self.turns += 1
            if self.turns % TWICE:
                kernel.turn()
            else:
                self.sim.kernel_turn()
            timeout = kernel.timeout()
            if timeout != 0.0:
                break
        else:
            raise AssertionError(f"the kernel turns {MOST_TURNS} times at one moment")
        self._deadline = None if timeout is None else self.now + timeout
        for route in list(self.sim.front.sent):
            self.readers[route]()
        for watcher in self.watchers:
            watcher()

    def run(self, seconds: float = float("inf"), events: int = 1 << 30) -> None:
        """Let some time pass, or so many events happen; less if nothing is left to happen."""
        end, most = self.now + seconds, self.events + events
        while not self.idle and self.events < most and self.now < end:
            self.step()
