"""Rates: what counters of two moments say about the time between them."""

from collections.abc import Iterable

from syscalls.abi import TaskRow


def per_second(now: float, before: float, seconds: float) -> float:
    """Return how fast a counter rose."""
    return (now - before) / seconds if seconds > 0 else 0.0


class TaskRates:
    """Tokens per second of each task, by the kernel's own clock."""

    def __init__(self) -> None:
        self._before: dict[int, TaskRow] = {}
        self._rates: dict[int, float] = {}

    def feed(self, rows: Iterable[TaskRow]) -> None:
        """Take the next table in."""
        now = {row.pid: row for row in rows}
        self._rates = {
            pid: per_second(row.output_tokens, old.output_tokens, row.age_s - old.age_s)
            for pid, row in now.items()
            if (old := self._before.get(pid)) is not None
        }
        self._before = now

    def of(self, pid: int) -> float | None:
        """Return a task's rate; None if it has been seen once only."""
        return self._rates.get(pid)
