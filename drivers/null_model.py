"""Null model: the arithmetic of the null driver, from slots to ids. No pool, no tables.

A slot is a digest of (token, position, slot before). The id after a history of slots is a digest of
that history; above temperature 0 also of (seed, position). Logprobs are those of a geometric
distribution: the k-th best id is (greedy id + k) modulo vocab, at -(k + 1) ln 2; top_k, top_p and
min_p cut it.
"""

import hashlib
from math import ceil, log, log2
from struct import Struct
from typing import NamedTuple

from drivers.base import DriverFault, FaultKind

SLOT = 8
"""Bytes of a slot."""
ZERO = bytes(SLOT)
LN_2 = log(2)
_TOKEN = Struct(f"<{SLOT}sii")


def slot_digest(token: int, position: int, prev: bytes) -> bytes:
    """Return what the slot of a token holds; `prev` is zeros before the first."""
    return hashlib.blake2b(_TOKEN.pack(prev, token, position), digest_size=SLOT).digest()


def draw(
    history: bytes, temperature: float, seed: int, position: int, vocab: int, width: int = 0
) -> int:
    """Return the id that follows a history of slots, among the `width` best (0: all)."""
    digest = hashlib.blake2b(history, digest_size=8)
    greedy = int.from_bytes(digest.digest(), "little") % vocab
    if temperature <= 0:
        return greedy
    digest.update(seed.to_bytes(8, "little") + position.to_bytes(4, "little"))
    noise = int.from_bytes(digest.digest(), "little")
    return noise % vocab if width in (0, vocab) else (greedy + noise % width) % vocab


def draw_width(top_k: int, top_p: float, min_p: float, vocab: int) -> int:
    """Return how many of the best ids may be drawn."""
    width = min(top_k or vocab, vocab)
    if top_p < 1:
        width = min(width, max(1, ceil(-log2(1 - top_p))))  # the best k have 1 - 2**-k
    if min_p > 0:
        width = min(width, 1 + int(-log2(min_p)))  # the k-th has 2**-k of the best
    return width


def logprob(rank: int) -> float:
    """Return the log-probability of the id that is `rank` places behind the best."""
    return -(rank + 1) * LN_2


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
