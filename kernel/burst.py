"""Bursts: what can happen a thousand times a second, told in a few lines of the log.

The first few of a kind are told as they happen. Further ones are counted until a window has ended
that began with the first, and then told as one number. So nothing is lost from the log but detail,
and no client or driver can fill it. Kinds are texts of this kernel's own, never a client's: there
are only so many.
"""

import logging
from collections.abc import Callable

WINDOW_S = 5.0
WHOLE = 3
"""Of a kind that are told each, in a window."""


class _Window:
    """One kind, since its first."""

    def __init__(self, log: logging.Logger, level: int, ends: float) -> None:
        self.log, self.level, self.ends = log, level, ends
        self.told = 0
        self.more = 0


class Bursts:
    """The windows that are open."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._windows: dict[str, _Window] = {}  # by kind, in the order in which they end

    def tell(
        self,
        log: logging.Logger,
        level: int,
        kind: str,
        detail: str,
        amount: int = 1,
        whole: int = WHOLE,
    ) -> None:
        """Log `kind: detail`, or count `amount` of the kind for later."""
        window = self._windows.get(kind)
        if window is None:
            window = self._windows[kind] = _Window(log, level, self._clock() + WINDOW_S)
        if window.told < whole:
            window.told += 1
            log.log(level, "%s: %s", kind, detail)
        else:
            window.more += amount

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        return next((window.ends for window in self._windows.values()), None)

    def expire(self, now: float) -> None:
        """Close the windows that have ended, and tell what they have counted."""
        while (deadline := self.deadline) is not None and now >= deadline:
            self._close(next(iter(self._windows)))

    def close(self) -> None:
        """Tell what is counted so far: the kernel ends."""
        for kind in list(self._windows):
            self._close(kind)

    def _close(self, kind: str) -> None:
        window = self._windows.pop(kind)
        if window.more:
            window.log.log(window.level, "%s: %d more in %g s", kind, window.more, WINDOW_S)
