"""Null model: the arithmetic of the null driver, from slots to ids. No pool, no tables.

A slot is a digest of (token, position, slot before). What may follow a history of slots has a
geometric distribution: the best id is a digest of the history, the k-th after it, modulo vocab, has
the logit -(k + 1) ln 2. Ids are drawn from it by inverting its sums at a number that is a digest of
(history, seed, position), so temperature, top_k, top_p and min_p do to it what they should, without
a row of logits. There is one only for a sequence whose logits are adjusted.

For grammars, the first 256 ids stand for a byte each, and the next 256 for two letters that are
frequent in JSON; the others, and the one that ends a text, for nothing.
"""

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from math import ceil, exp, inf, log, log2
from struct import Struct
from typing import NamedTuple

from drivers.base import DriverFault, FaultKind, ints, reals
from drivers.grammar import Vocabulary
from drivers.slots import Adjust

SLOT = 8
"""Bytes of a slot."""
ZERO = bytes(SLOT)
LN_2 = log(2)
PAIRED = b'{}[]":, 012abent'
"""The letters of ids 256 to 511: every pair of them, in order."""
_TOKEN = Struct(f"<{SLOT}sii")


def slot_digest(token: int, position: int, prev: bytes) -> bytes:
    """Return what the slot of a token holds; `prev` is zeros before the first."""
    return hashlib.blake2b(_TOKEN.pack(prev, token, position), digest_size=SLOT).digest()


class Draw(NamedTuple):
    """How an id is drawn."""

    temperature: float
    seed: int
    position: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def best_id(history: bytes, vocab: int) -> int:
    """Return the most likely id after a history of slots."""
    return int.from_bytes(hashlib.blake2b(history, digest_size=8).digest(), "little") % vocab


def draw(history: bytes, how: Draw, vocab: int) -> int:
    """Return the id that follows a history of slots."""
    best = best_id(history, vocab)
    if how.temperature <= 0:
        return best
    fall = -1 / how.temperature  # log2 of the odds of an id against the one before it
    width = draw_width(how, fall, vocab)
    rest = 1 - uniform(history, how) * (1 - 2 ** (fall * width))
    return (best + min(width - 1, int(log2(rest) / fall))) % vocab


def draw_width(how: Draw, fall: float, vocab: int) -> int:
    """Return how many of the best ids may be drawn; the best j of k have (1-r**j) / (1-r**k)."""
    width = min(how.top_k or vocab, vocab)
    if how.top_p < 1:
        beyond = 1 - how.top_p * (1 - 2 ** (fall * width))
        width = min(width, max(1, ceil(log2(beyond) / fall)))
    if how.min_p > 0:
        width = min(width, 1 + int(log2(how.min_p) / fall))
    return width


def uniform(history: bytes, how: Draw) -> float:
    """Return the number in [0, 1) that decides."""
    noise = hashlib.blake2b(history, digest_size=8)
    noise.update(how.seed.to_bytes(8, "little") + how.position.to_bytes(4, "little"))
    return (int.from_bytes(noise.digest(), "little") >> 11) * 0.5**53


def vocabulary(options: "Options") -> Vocabulary:
    """Return what the ids stand for."""
    tokens = [bytes((value,)) for value in range(256)]
    tokens += [bytes((first, second)) for first in PAIRED for second in PAIRED]
    tokens = (tokens + [b""] * options.vocab)[: options.vocab]
    if options.eos < 0:
        return Vocabulary(tokens, ())
    tokens[options.eos] = b""
    return Vocabulary(tokens, (options.eos,))


def adjusted_draw(
    history: bytes, how: Draw, adjust: Adjust, vocab: int, mask: bytes | None = None
) -> int:
    """Return the id that follows a history, its logits adjusted; the first of equal ones.

    `mask`: see `drivers.slots.Masks`.
    """
    logits = adjusted_logits(best_id(history, vocab), adjust, vocab)
    if mask is not None:
        allowed = int.from_bytes(mask, "little")
        logits = [logit if allowed >> n & 1 else -inf for n, logit in enumerate(logits)]
    order = sorted(range(vocab), key=lambda token: -logits[token])
    if how.temperature <= 0:
        return order[0]
    most = logits[order[0]]
    odds = [exp((logits[token] - most) / how.temperature) for token in order]
    floor = odds[min(how.top_k or vocab, vocab) - 1]
    if how.top_p < 1:
        sums = list(accumulate(value for value in odds if value >= floor))
        floor = odds[next(i for i, total in enumerate(sums) if total >= how.top_p * sums[-1])]
    kept = list(accumulate(value for value in odds if value >= max(floor, how.min_p)))
    wanted = uniform(history, how) * kept[-1]
    return order[next(i for i, total in enumerate(kept) if total > wanted)]


def adjusted_logits(best: int, adjust: Adjust, vocab: int) -> Sequence[float]:
    """Return the logits of all ids, as `drivers.base.Reset` says."""
    logits = [-((token - best) % vocab + 1) * LN_2 for token in range(vocab)]
    for token, bias in zip(adjust.bias_ids, adjust.bias, strict=True):
        logits[token] += bias
    counts = adjust.counts
    for token, count in zip(counts.ids, counts.output, strict=True) if counts else ():
        logit = logits[token]
        logit = logit / adjust.repetition if logit > 0 else logit * adjust.repetition
        logits[token] = logit - (adjust.presence + count * adjust.frequency if count else 0)
    return logits


def logprob(rank: int) -> float:
    """Return the log-probability of the id that is `rank` places behind the best."""
    return -(rank + 1) * LN_2


class Best:
    """The log-probabilities of rows: the n best of each, in row order."""

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._ids: list[int] = []
        self._logprobs: list[float] = []

    def add(self, history: bytes, token: int, count: int) -> float:
        """Add the `count` best of a row; return the log-probability of `token`. -1: neither."""
        if count < 0:
            return 0.0
        best = best_id(history, self._vocab)
        self._ids += [(best + rank) % self._vocab for rank in range(count)]
        self._logprobs += map(logprob, range(count))
        return logprob((token - best) % self._vocab)

    def raw(self) -> tuple[bytes, bytes]:
        return ints(self._ids), reals(self._logprobs)


class Options(NamedTuple):
    """Of the builtin model."""

    vocab: int = 512
    step_us: int = 0
    token_us: int = 0
    eos: int = -1
    max_ctx: int = 8192


def parse_options(path: str) -> Options:
    """Read `null:name=value,...`; MODEL_LOAD if it is anything else."""
    name, _, rest = path.partition(":")
    if name != "null":
        raise DriverFault(FaultKind.MODEL_LOAD, f"the null driver has no model {path}, only null")
    given: dict[str, int] = {}
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        if key not in Options._fields or not value.removeprefix("-").isdecimal():
            known = ", ".join(Options._fields)
            raise DriverFault(FaultKind.MODEL_LOAD, f"{item}: the options of null are {known}")
        given[key] = int(value)
    options = Options(**given)
    lowest = Options(vocab=1, max_ctx=1)
    if any(not low <= value < 1 << 31 for low, value in zip(lowest, options, strict=True)):
        raise DriverFault(FaultKind.MODEL_LOAD, f"{path}: out of range")
    return options
