"""Limits: what the benches must reach, and who has not.

Most limits are on a ratio of two things measured alternately in one run, so that they hold on any
machine; idleness has absolute ones. A loaded machine only makes numbers worse: so a bench is
repeated, and the best of its runs counts. A limit whose bench gave no result is missed, too.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench.record import Result

RUNS = 5


class Limit(NamedTuple):
    """A bound on the value or the ratio of one result; at least it, or at most it."""

    bench: str  # as bench/run.py names it
    result: str
    figure: str  # value | ratio
    sign: str  # >= | <=
    bound: float

    def figure_of(self, result: Result) -> float | None:
        return result.ratio if self.figure == "ratio" else result.value

    def best(self, results: Iterable[Result]) -> float | None:
        """Return the best figure of this limit's result; None if there is none."""
        figures = [self.figure_of(r) for r in results if r.name == self.result]
        numbers = [figure for figure in figures if figure is not None]
        if not numbers:
            return None
        return max(numbers) if self.sign == ">=" else min(numbers)

    def met(self, figure: float | None) -> bool:
        """Whether a figure is within the limit."""
        if figure is None:
            return False
        return figure >= self.bound if self.sign == ">=" else figure <= self.bound


LIMITS = (
    Limit("calls", "null call", "ratio", "<=", 2.5),
    Limit("fork", "fork 80 ids", "value", "<=", 0),  # blocks copied
    Limit("fork", "fork 8000 ids", "value", "<=", 0),
    Limit("fork", "fork against prefill", "ratio", ">=", 10_000),
    Limit("pager", "pager host swap 2048 ids", "ratio", ">=", 50),
    Limit("pager", "pager disk swap 2048 ids", "ratio", ">=", 10),
    Limit("privacy", "privacy another owner's prompt", "value", "<=", 0.55),
    Limit("privacy", "privacy another owner's prompt", "ratio", ">=", 0.95),  # the control
    Limit("sharing", "sharing 8 and 80 requests", "value", ">=", 0.98),
    Limit("sharing", "sharing one beside 31, p95", "ratio", "<=", 1.1),
    Limit("sharing", "sharing a prompt beside 32, p95", "ratio", "<=", 3),
    Limit("sharing", "sharing ids after STOP", "value", "<=", 1),
    Limit("sharing", "sharing fair", "ratio", ">=", 0.97),
    Limit("engine", "prefill 2048 ids", "ratio", ">=", 0.6),
    Limit("engine", "decode B=32", "ratio", ">=", 0.5),
    Limit("cost", "kernel cost B=1", "ratio", "<=", 1.05),
    Limit("cost", "kernel cost B=64", "ratio", "<=", 1.03),
    Limit("scale", "scale 10000 tasks", "ratio", "<=", 1.2),
    Limit("idle", "idle kernel cpu", "value", "<=", 1.0),
    Limit("idle", "idle kernel wakeups", "value", "<=", 20),
    Limit("idle", "idle host cpu", "value", "<=", 1.0),
    Limit("idle", "idle host wakeups", "value", "<=", 20),
)


class Verdict(NamedTuple):
    """A limit and the best that was seen."""

    limit: Limit
    best: float | None

    @property
    def met(self) -> bool:
        return self.limit.met(self.best)


def judge(limits: Sequence[Limit], results: Sequence[Result]) -> list[Verdict]:
    """Return a verdict on each limit."""
    return [Verdict(limit, limit.best(results)) for limit in limits]


def table(verdicts: Sequence[Verdict]) -> str:
    """Return verdicts for people: a line each, what is missed marked."""
    width = max(len(verdict.limit.result) for verdict in verdicts)
    lines = []
    for limit, best in verdicts:
        seen = "no result" if best is None else f"{best:.4g}"
        mark = "ok" if limit.met(best) else "MISSED"
        bound = f"{limit.sign} {limit.bound:g}"
        lines.append(f"{mark:6}  {limit.result:{width}}  {limit.figure:5}  {bound:>9}  {seen:>9}")
    return "\n".join(lines)
