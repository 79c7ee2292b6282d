"""Watch: how long a driver may take, and how often it may die.

Three deadlines, of which the first one counts. A driver that owes something must give a sign of
life every `hang_s`; a step must end within `step_s` and a load within `load_s` of their begin,
whatever signs of life there are: a thread that sends heartbeats can live on beside one that hangs.
A driver that owes nothing may be silent for ever.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple


class Patience(NamedTuple):
    """With a driver."""

    hang_s: float
    step_s: float
    load_s: float
    max_restarts: int
    restart_window_s: float


class Watch:
    """The times of one driver."""

    def __init__(self, patience: Patience, clock: Callable[[], float]) -> None:
        self.patience = patience
        self._clock = clock
        self._heard = 0.0  # the last sign of life
        self._due: tuple[float, str] | None = None  # when what it works on must be done
        self._deaths: deque[float] = deque()

    def loading(self) -> None:
        """Note that a new driver starts, and loads."""
        self._begin(self.patience.load_s, "loading took")

    def stepping(self) -> None:
        """Note that the driver got a step."""
        self._begin(self.patience.step_s, "a step took")

    def _begin(self, within_s: float, what: str) -> None:
        self._heard = self._clock()
        self._due = self._heard + within_s, f"{what} {within_s:g} s"

    def heard(self) -> None:
        """Note a sign of life."""
        self._heard = self._clock()

    def done(self) -> None:
        """Note that the driver owes nothing any more."""
        self._due = None

    @property
    def deadline(self) -> float | None:
        """When `overdue` has something to say, if nothing is heard before."""
        return None if self._due is None else min(self._due[0], self._heard + self.patience.hang_s)

    def overdue(self, now: float) -> str:
        """Say why the driver is to be given up now; empty: it is not."""
        if self._due is None:
            return ""
        if now >= self._heard + self.patience.hang_s:
            return f"no sign of life for {self.patience.hang_s:g} s"
        return self._due[1] if now >= self._due[0] else ""

    def died(self) -> bool:
        """Note a death; see whether the driver may be started again."""
        now = self._clock()
        self._deaths.append(now)
        while self._deaths[0] < now - self.patience.restart_window_s:
            self._deaths.popleft()
        return len(self._deaths) <= self.patience.max_restarts
