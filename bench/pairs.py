"""Pairs: two engines measured in turns, so that what else the machine does meets both.

An engine is anything that prefills and decodes: the kernel through its system calls
(`bench.engine`), a driver host without kernel (`bench.driver`), linear layers and nothing else
(`bench.linear`). A result has the tokens per second of the best round, and the median of the
ratios of the pairs; all ratios are in the line.
"""

from collections.abc import Callable
from statistics import median
from typing import Protocol

from bench.record import Result

PROMPT = 2048
CTX = 128
"""Ids of a context before it decodes."""
BATCHES = (1, 8, 32, 64)
ROUNDS = 5
Pair = tuple[float, float]
"""Seconds of ours, seconds of the other."""


class Engine(Protocol):
    """What computes tokens."""

    def prefill(self, prompt: int) -> float:
        """Return the seconds from a new prompt to its first id."""
        ...

    def decode(self, batch: int, steps: int) -> float:
        """Return the seconds of a step in which `batch` sequences of CTX ids get an id each."""
        ...


def steps_of(batch: int) -> int:
    """Return how many steps a round has: rounds are short, so that the two meet the same."""
    return 16 if batch <= 8 else 8


def pairs_of(ours: Engine, other: Engine, batch: int, rounds: int = ROUNDS) -> list[Pair]:
    """Measure decode steps in turns."""
    steps = steps_of(batch)
    return in_turns(
        lambda: ours.decode(batch, steps), lambda: other.decode(batch, steps), rounds
    )  # fmt: skip


def in_turns(
    ours: Callable[[], float], other: Callable[[], float], rounds: int = ROUNDS
) -> list[Pair]:
    """Measure both `rounds` times, after one round that does not count."""
    ours(), other()
    return [(ours(), other()) for _ in range(rounds)]


def compare_prefill(bench: str, ours: Engine, other: Engine, against: str) -> Result:
    """Return the tokens per second of a prefill, and their ratio to the other's."""
    pairs = in_turns(lambda: ours.prefill(PROMPT), lambda: other.prefill(PROMPT))
    return speed(bench, f"{PROMPT} ids", pairs, PROMPT, against)


def compare(bench: str, ours: Engine, other: Engine, against: str, batch: int) -> Result:
    """Return the tokens per second of decoding, and their ratio to the other's."""
    return speed(bench, f"B={batch}", pairs_of(ours, other, batch), batch, against)


def speed(bench: str, case: str, pairs: list[Pair], tokens: int, against: str) -> Result:
    """Return pairs of times as a result."""
    ratios = [other / ours for ours, other in pairs]
    detail = {
        "other_tokens_s": round(tokens / min(other for _, other in pairs), 1),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    rate = tokens / min(ours for ours, _ in pairs)
    return Result(bench, case, rate, "tokens/s", median(ratios), against, detail)
