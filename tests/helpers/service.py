"""Service: what each account has got of the steps, and whether those that wait get the same of it.

Counted from what the driver is told, as VTC counts (Sheng et al., OSDI'24): a position that is
computed for the first time is 1, an id that is sampled 2 more. An account is a user or a task; it
is backlogged in a step if it has an infer that could run and is not in it.

While two siblings are both backlogged, the difference of what they have got, each by its weight,
moves by at most `bound`: 2 * (L + 2 * M) / the smaller weight, with L tokens and M sequences in a
step (kernel/policies/fair.py). Every stretch of such a time is looked at, not only all of it: the
highest and the lowest that the difference has been are compared. That is so as long as the same
things are scarce for both. Where a step has less room for prefill than for all, whoever decodes may
have what is left beside, and gets ahead of who could not have used it.
"""

from collections import Counter
from itertools import combinations
from typing import NamedTuple

from kernel.account import LEAST_NICE, WEIGHTS
from tests.helpers.batches import Batch, Batches, Seq
from tests.helpers.latency import Budgets
from tests.helpers.programs import Program
from tests.helpers.streams import Stream
from tests.helpers.world import World

NORMAL = WEIGHTS[-LEAST_NICE]
Name = tuple[str, int]
"""Of an account: ("uid", 1000), ("pid", 7)."""


class Spread(NamedTuple):
    """How far a difference has gone since both were backlogged."""

    low: float
    high: float
    steps: int

    @property
    def width(self) -> float:
        return self.high - self.low


class Service:
    """The books of all accounts of a world."""

    def __init__(self, world: World, batches: Batches, budgets: Budgets) -> None:
        self.world = world
        self.step = budgets.max_tokens + 2 * budgets.max_seqs
        self.got: Counter[Name] = Counter()
        self.waited: Counter[Name] = Counter()  # steps in which an account was backlogged
        self.widest: dict[tuple[Name, Name], Spread] = {}
        self.excess = 0.0  # the widest spread, as a part of its bound
        self._open: dict[tuple[Name, Name], Spread] = {}
        batches.on_sent.append(self._book)

    def _book(self, batch: Batch) -> None:
        """Charge a step that was sent, and look at those that are not in it."""
        waiting = self._left_out(batch)
        pairs = [
            (a, b)
            for level in ("uid", "pid")
            for a, b in combinations(sorted(name for name in waiting if name[0] == level), 2)
            if level == "uid" or waiting[a].client.uid == waiting[b].client.uid
        ]
        before = {pair: self._difference(*pair, waiting) for pair in pairs}
        for seq in batch.seqs:
            self._charge(seq)
        for name in waiting:
            self.waited[name] += 1
        spreads = {}
        for pair in pairs:
            was, now = before[pair], self._difference(*pair, waiting)
            old = self._open.get(pair, Spread(was, was, 0))
            spread = Spread(min(old.low, now), max(old.high, now), old.steps + 1)
            spreads[pair] = spread
            self.excess = max(self.excess, spread.width / self.bound(*pair, waiting))
            if spread.width > self.widest.get(pair, Spread(0, 0, 0)).width:
                self.widest[pair] = spread
        self._open = spreads

    def _left_out(self, batch: Batch) -> dict[Name, Program]:
        """Return the accounts with an infer that could have been in a step and is not, each with
        a program of it."""
        inside = {seq.stream for seq in batch.seqs}
        found: dict[Name, Program] = {}
        for stream in self.world.streams.values():
            if stream not in inside and self._could_run(stream, batch):
                for name in names(stream.owned.program):
                    found[name] = stream.owned.program
        return found

    def _could_run(self, stream: Stream, batch: Batch) -> bool:
        program = stream.owned.program
        held = program.stopped or program.deaf or program.gone
        return stream.accepted and not held and stream.event < batch.event

    def _charge(self, seq: Seq) -> None:
        owned = seq.owned
        assert owned is not None, "a sequence of nobody"
        end = seq.start + len(seq.tokens)
        service = max(0, end - max(seq.start, owned.paid)) + 2 * seq.samples
        owned.paid = max(owned.paid, end)
        for name in names(owned.program):
            self.got[name] += service

    def _difference(self, a: Name, b: Name, waiting: dict[Name, Program]) -> float:
        return self.got[a] / _weight(a, waiting) - self.got[b] / _weight(b, waiting)

    def bound(self, a: Name, b: Name, waiting: dict[Name, Program]) -> float:
        """Return how far the difference of two accounts may move, in service of nice 0."""
        return 2 * self.step / min(_weight(a, waiting), _weight(b, waiting))

    def check(self) -> None:
        """Compare every spread that there was with its bound."""
        assert self.excess <= 1, f"{self.excess:.2f} times the bound: {self.widest}"


def names(program: Program) -> tuple[Name, Name]:
    """Return the accounts of a program."""
    return ("uid", program.client.uid), ("pid", program.pid)


def _weight(name: Name, waiting: dict[Name, Program]) -> float:
    if name[0] == "uid":
        return 1.0
    return WEIGHTS[waiting[name].nice - LEAST_NICE] / NORMAL


# --- what people feel ---------------------------------------------------------------------------


def percentile(values: list[float], part: float) -> float:
    """Return the value that `part` of all are not above; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def first_id_s(streams: list[Stream]) -> list[float]:
    """Return how long each infer took to its first id (TTFT)."""
    return [stream.times[0] - stream.since for stream in streams if stream.times]


def next_id_s(streams: list[Stream]) -> list[float]:
    """Return the times between ids, all in one list (TPOT)."""
    return [b - a for s in streams for a, b in zip(s.times, s.times[1:], strict=False)]
