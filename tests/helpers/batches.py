"""Batches: which stream runs in which step, read from what the driver is told, and nothing else.

The driver knows a request by its slot and generation. Whose it is shows the seed of its first
sample, which no other infer has; before that, its tokens: those of one context at these positions.
While several contexts have the same ids there, it may be any of them (`Seq.stream` is None).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from drivers import base
from tests.helpers.latency import Flight
from tests.helpers.streams import Owned, Stream
from tests.helpers.world import World


class Seq:
    """One sequence of a step."""

    def __init__(self, key: tuple[int, int], start: int, tokens: list[int], seed: int) -> None:
        self.key = key  # slot, generation
        self.start = start
        self.tokens = tokens
        self.seed = seed  # 0: it does not sample
        self.owned: Owned | None = None  # once it is known
        self.stream: Stream | None = None  # None: a prefill that nobody waits for, or not known
        self.decodes = False

    @property
    def samples(self) -> bool:
        return self.seed != 0

    @property
    def running(self) -> bool:
        """Whether ps has R for it: it computes one position, and samples."""
        return self.samples and len(self.tokens) == 1

    @property
    def lives(self) -> bool:
        """Whether what it computes is still asked for: its infer may have ended, an infer may have
        come for what was computed in the background."""
        if self.owned is None or self.owned.handle not in self.owned.program.contexts:
            return False
        if self.stream is None:
            return self.owned in self.owned.program.world.appended
        return not self.stream.reply.done


class Batch(NamedTuple):
    """A step that the driver has got."""

    flight: Flight
    seqs: list[Seq]
    event: int  # of the clockwork, when it was sent

    @property
    def num_tokens(self) -> int:
        return sum(len(seq.tokens) for seq in self.seqs)


class Batches:
    """The steps in flight."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.flying: list[Batch] = []
        self.computing: list[tuple[Flight, int]] = []  # steps and scrubs, each with its event
        self.sent = self.steps = 0  # steps that have begun, and ended
        self.on_sent: list[Callable[[Batch], None]] = []  # once it is known whose it is
        self.on_end: list[Callable[[Batch], None]] = []
        self._known: dict[tuple[int, int], Owned] = {}
        self._fresh: list[Batch] = []
        link = world.work.link
        link.on_begin, link.on_end, link.on_death = self._begin, self._end, self._death

    def _begin(self, flight: Flight) -> None:
        if isinstance(flight.message, base.Submit):
            if flight.message.queue == base.Queue.COMPUTE:
                self.computing.append((flight, self.world.work.events))
            executes = [op for op in flight.message.ops if isinstance(op, base.Execute)]
            if executes:
                seqs = _seqs(flight.message, executes[0])
                batch = Batch(flight, seqs, self.world.work.events)
                self.flying.append(batch)
                self.sent += 1
                self._fresh.append(batch)

    def _end(self, flight: Flight) -> None:
        self.computing = [each for each in self.computing if each[0] is not flight]
        if self.flying and self.flying[0].flight is flight:
            batch = self.flying.pop(0)
            self.steps += 1
            for told in self.on_end:
                told(batch)

    def _death(self) -> None:
        self.computing.clear()
        self.flying.clear()
        self._fresh.clear()
        self._known.clear()

    def identify(self) -> None:
        """Find out whose the sequences of new batches are, once programs know what has come."""
        for batch in self._fresh:
            for seq in batch.seqs:
                self._identify(seq, batch)
                if seq.stream is not None:
                    seq.stream.served = self.world.work.now
            for told in self.on_sent:
                told(batch)
        self._fresh.clear()

    def _identify(self, seq: Seq, batch: Batch) -> None:
        stream = self.world.streams.get(seq.seed)
        owned = stream.owned if stream is not None else self._known.get(seq.key)
        if owned is None and not seq.samples:
            owned = self._by_tokens(seq, batch)
        if owned is None:
            return  # its infer has ended already, or it is not known yet
        self._known[seq.key] = owned
        seq.owned, seq.stream = owned, stream or owned.stream
        seq.decodes = seq.running and seq.stream is not None and bool(seq.stream.times)

    def _by_tokens(self, seq: Seq, batch: Batch) -> Owned | None:
        end, first = seq.start + len(seq.tokens), seq.tokens[0]
        others = {id(other.owned) for other in batch.seqs}
        found = [
            owned
            for owned in self.world.uncomputed()
            if len(owned.ids) >= end and owned.ids[seq.start] == first
            and id(owned) not in others and owned.ids[seq.start : end] == seq.tokens
        ]  # fmt: skip
        return found[0] if len(found) == 1 else None


def _seqs(submit: base.Submit, execute: base.Execute) -> "list[Seq]":
    """Return the sequences of a step."""
    tokens, ends = base.read_ints(execute.tokens), base.read_ints(execute.qo_indptr)
    positions = base.read_ints(execute.positions)
    keys = zip(base.read_ints(execute.slots), base.read_ints(execute.generations), strict=True)
    seeds: dict[int, int] = {}
    for op in submit.ops:
        if isinstance(op, base.Sample):
            seeds = dict(zip(base.read_ints(op.rows), base.read_seeds(op.seed), strict=True))
    return [
        Seq(key, positions[first], list(tokens[first:last]), seeds.get(s, 0))
        for s, (key, (first, last)) in enumerate(zip(keys, pairwise(ends), strict=True))
    ]
