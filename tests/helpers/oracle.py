"""What the null driver must sample, from ids alone: written apart from its pool and its counts.

Of `drivers.null_model` it takes the digests, which are given: of a slot, of a history, and the
number that decides. What is done with them is written down here once more, the slow way: a row of
logits, adjusted id by id, and its distribution.
"""

from collections import Counter
from functools import lru_cache
from math import exp, log
from typing import NamedTuple

from drivers.null_model import SLOT, Draw, best_id, slot_digest, uniform

VOCAB = 251
"""Of the null model that the tests use."""


class Knobs(NamedTuple):
    """What an infer may say about sampling; `output_from` is where its output begins."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    output_from: int = 0


@lru_cache(maxsize=200_000)
def _history(ids: tuple[int, ...]) -> bytes:
    if not ids:
        return b""
    before = _history(ids[:-1]) if len(ids) % 16 else _fold(ids[:-1])
    return before + slot_digest(ids[-1], len(ids) - 1, before[-SLOT:] or bytes(SLOT))


def _fold(ids: tuple[int, ...]) -> bytes:
    """The same without deep recursion: sixteen positions at a time."""
    history = b""
    for position, token in enumerate(ids):
        history += slot_digest(token, position, history[-SLOT:] or bytes(SLOT))
    return history


def logits(ids: list[int], vocab: int = VOCAB) -> list[float]:
    """Return the model's logits after `ids`; they are log-probabilities but for 2**-vocab."""
    best = best_id(_history(tuple(ids)), vocab)
    return [-(1 + (token - best) % vocab) * log(2) for token in range(vocab)]


def adjusted(ids: list[int], knobs: Knobs, row: list[float]) -> list[float]:
    """Return logits after the bias and the penalties, in the order that docs/syscalls.md has."""
    bias, output = dict(knobs.bias), Counter(ids[knobs.output_from :])
    seen = set(ids)
    result = []
    for token, logit in enumerate(row):
        logit += bias.get(token, 0.0)
        if token in seen and knobs.repetition != 1:
            logit = logit / knobs.repetition if logit > 0 else logit * knobs.repetition
        if output[token]:
            logit -= knobs.presence + knobs.frequency * output[token]
        result.append(logit)
    return result


def distribution(row: list[float], knobs: Knobs) -> list[float]:
    """Return the probability of each id, temperature above 0."""
    best = max(row)
    odds = [exp((logit - best) / knobs.temperature) for logit in row]
    ranked = sorted(odds, reverse=True)
    floor = ranked[min(knobs.top_k or len(row), len(row)) - 1]
    if knobs.top_p < 1:
        left = [value for value in ranked if value >= floor]
        total, mass = sum(left), 0.0
        for value in left:
            mass += value
            if mass >= knobs.top_p * total:
                floor = value
                break
    floor = max(floor, knobs.min_p * ranked[0])
    kept = [value if value >= floor else 0.0 for value in odds]
    return [value / sum(kept) for value in kept]


def next_id(ids: list[int], knobs: Knobs = Knobs(), vocab: int = VOCAB) -> int:  # noqa: B008
    """Return the id that follows `ids`."""
    return next_row_id(ids, adjusted(ids, knobs, logits(ids, vocab)), knobs)


def next_row_id(ids: list[int], row: list[float], knobs: Knobs) -> int:
    """Return the id that follows `ids`, if these are the logits; -inf is for what may not come."""
    if knobs.temperature == 0:
        return row.index(max(row))
    shares = distribution(row, knobs)
    how = Draw(knobs.temperature, knobs.seed, len(ids))
    wanted, mass = uniform(_history(tuple(ids)), how), 0.0
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    for token in order:
        mass += shares[token]
        if mass > wanted:
            return token
    return max(token for token in order if shares[token])


def expected(ids: list[int], count: int, knobs: Knobs = Knobs()) -> list[int]:  # noqa: B008
    """Return the `count` ids that follow `ids`, which are the prompt."""
    knobs = knobs._replace(output_from=len(ids))
    ids = list(ids)
    for _ in range(count):
        ids.append(next_id(ids, knobs))
    return ids[len(ids) - count :]


def scores(ids: list[int], start: int) -> list[float]:
    """Return the log-probabilities of the ids from `start` on."""
    return [logits(ids[:place])[ids[place]] for place in range(start, len(ids))]
