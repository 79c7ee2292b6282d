"""Slots: what a driver remembers of sequences between Submits, each for one generation of a slot.

That is the id sampled last, and how the logits of the sequence are adjusted before an id is drawn:
a bias per id, penalties on ids that are there already, and a grammar, for which the ids are counted
(and those from some position on followed in the grammar, see drivers/grammar.py):

    ids       3   7   3   9 | 7   7   2         num_prompt = 4
    seen      2, 3, 7, 9                        repetition: prompt and output
    output    2: 1, 7: 2                        presence, frequency: output only

A Reset rebuilds all of it from the ids of the sequence, each draw adds one id. Nothing is guessed:
`Known.fits` compares a row with what is here, and what does not fit is SLOT_LOST. A slot takes at
most `COUNT_BYTES` per id of the vocabulary, and per position of a context, whichever are fewer.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from drivers import base
from drivers.base import RowFlag
from drivers.grammar import Grammar, Match, NoMatch
from drivers.plan import Draws, Plan

COUNT_BYTES = 8
NO_GRAMMARS: Mapping[int, Grammar] = {}


class Counts:
    """Which ids are in a sequence, and how often each is in its output."""

    def __init__(self, num_prompt: int) -> None:
        self.num_prompt = num_prompt
        self.length = 0  # ids counted
        self.ids = array("i")  # that were seen, sorted
        self.output = array("i")  # for each, how often it is in the output

    def add(self, ids: Sequence[int]) -> None:
        """Count the ids that come next in the sequence."""
        if len(ids) == 1:
            self._add_one(ids[0])
            return
        prompt = max(0, min(len(ids), self.num_prompt - self.length))
        counts = dict(zip(self.ids, self.output, strict=True))
        for token in set(ids[:prompt]):
            counts.setdefault(token, 0)
        for token, count in Counter(ids[prompt:]).items():
            counts[token] = counts.get(token, 0) + count
        self.ids = array("i", sorted(counts))
        self.output = array("i", [counts[token] for token in self.ids])
        self.length += len(ids)

    def _add_one(self, token: int) -> None:
        place = bisect_left(self.ids, token)
        if place == len(self.ids) or self.ids[place] != token:
            self.ids.insert(place, token)
            self.output.insert(place, 0)
        self.output[place] += self.length >= self.num_prompt
        self.length += 1

    def copy(self) -> "Counts":
        other = Counts(self.num_prompt)
        other.length, other.ids, other.output = self.length, self.ids[:], self.output[:]
        return other


class Adjust(NamedTuple):
    """How the logits of a sequence are adjusted; `drivers.base.Reset` says in which order."""

    repetition: float
    presence: float
    frequency: float
    bias_ids: "array[int]"
    bias: "array[float]"
    counts: Counts | None  # None: without penalties and grammar
    match: Match | None = None

    @property
    def penalizes(self) -> bool:
        return (self.repetition, self.presence, self.frequency) != (1, 0, 0)

    def add(self, ids: Sequence[int]) -> None:
        """Count the ids that come next."""
        if self.match is not None and self.counts is not None:
            self.match.add(ids, self.counts.length)
        if self.counts is not None:
            self.counts.add(ids)

    def copy(self) -> "Adjust":
        counts = self.counts and self.counts.copy()
        return self._replace(counts=counts, match=self.match and self.match.copy())


class Slot(NamedTuple):
    """Of one sequence."""

    generation: int
    last: int
    adjust: Adjust | None = None

    @property
    def length(self) -> int | None:
        """Ids counted, None if they are not."""
        return self.adjust.counts.length if self.adjust and self.adjust.counts else None


class Known(NamedTuple):
    """What will be known of a slot at some op of a Submit that is being checked."""

    generation: int | None
    adjusted: bool
    length: int | None

    def fits(self, generation: int, position: int) -> bool:
        """Whether a row that draws the id at `position` can be adjusted."""
        right = self.adjusted and self.generation == generation
        return right and self.length in (None, position)

    def drew(self, generation: int, position: int) -> "Known":
        """Return what is known after a draw."""
        if not self.fits(generation, position):
            return Known(generation, False, None)
        return self._replace(length=None if self.length is None else position + 1)


UNKNOWN = Known(None, False, None)
"""Of a slot that holds nothing."""


class Ahead(dict[int, Known]):
    """What will be known of the slots at the next op; what no op has changed is as it is now."""

    def __init__(self, slots: Mapping[int, Slot]) -> None:
        super().__init__()
        self._slots = slots

    def __missing__(self, number: int) -> Known:
        slot = self._slots.get(number)
        if slot is None:
            return UNKNOWN
        return Known(slot.generation, slot.adjust is not None, slot.length)


def adjusts(op: base.Reset) -> bool:
    """Whether rows can be adjusted after this Reset."""
    return op.start > 0 or op.num_prompt >= 0 or bool(op.bias)


def reset(
    slots: dict[int, Slot],
    op: base.Reset,
    ids: "array[int]",
    grammars: Mapping[int, Grammar] = NO_GRAMMARS,
) -> None:
    """Run a Reset that has been checked; `ids` are its ids, `grammars` those of its model."""
    if op.start:
        adjust = slots[op.slot].adjust
        assert adjust is not None
    else:
        adjust = Adjust(
            op.repetition, op.presence, op.frequency,
            base.read_ints(op.bias_ids), base.read_reals(op.bias),
            Counts(op.num_prompt) if op.num_prompt >= 0 else None,
            Match(grammars[op.grammar], op.grammar_from) if op.grammar else None,
        ) if adjusts(op) else None  # fmt: skip
    if adjust is not None:
        adjust.add(ids)
    slots[op.slot] = Slot(op.generation, ids[-1], adjust)


def drew(slots: dict[int, Slot], number: int, generation: int, position: int, token: int) -> None:
    """Note the id that a sequence has drawn for `position`; 0 if its row was flagged.

    That has no meaning, but steps may have been submitted already that feed it, and those of the
    others in them are sound. In a grammar no later row has an id either, until a Reset.
    """
    slot = slots.get(number)
    if slot is None or slot.adjust is None:
        slots[number] = Slot(generation, token)
        return
    fits = slot.generation == generation and slot.length in (None, position)
    adjust = slot.adjust if fits else None
    if adjust is not None:
        adjust.add((token,))
    slots[number] = Slot(generation, token, adjust)


class Masks(NamedTuple):
    """What grammars allow, for each row of a Sample."""

    masks: list[bytes | None]  # of `drivers.grammar.Match.mask`; None: all ids
    flags: list[int]  # of RowFlag; 0: the row can be drawn


def masks(slots: Mapping[int, Slot], draws: Draws, plan: Plan) -> Masks:
    """Return what may be drawn in rows that have been checked; it takes up to milliseconds a row.

    That depends on the ids before, and not on the logits.
    """
    found = Masks([None] * len(draws.rows), [0] * len(draws.rows))
    for row, (s, adjusted) in enumerate(zip(draws.rows, draws.adjust, strict=False)):
        adjust = slots[plan.slots[s]].adjust if adjusted else None
        if adjust is not None and adjust.match is not None:
            try:
                found.masks[row] = adjust.match.mask()
            except NoMatch as none:
                found.flags[row] = none.flag
    return found


def completes(slots: Mapping[int, Slot], number: int) -> int:
    """Return the flag of a row whose id, which its slot has drawn, is the last of its grammar."""
    slot = slots.get(number)
    match = slot.adjust.match if slot is not None and slot.adjust is not None else None
    return RowFlag.COMPLETE if match is not None and match.complete else 0


def copy(slots: Mapping[int, Slot]) -> dict[int, Slot]:
    """Return the slots as they are now, whatever becomes of these."""
    fresh = dict(slots)
    for number, slot in slots.items():
        if slot.adjust is not None and slot.adjust.counts is not None:
            fresh[number] = slot._replace(adjust=slot.adjust.copy())
    return fresh
