"""Counters: facts about this kernel's life, for `snapshot`. They only rise."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """admitted = finished + failed + those still running or waiting."""

    turns: int = 0
    calls: int = 0
    protocol_errors: int = 0
    admitted: int = 0  # infers accepted
    finished: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """What a model's scheduler and pool have done."""

    steps: int = 0
    wasted: int = 0  # rows of a step that nobody wanted any more
    copied: int = 0  # blocks
    evicted: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            self.steps + other.steps,
            self.wasted + other.wasted,
            self.copied + other.copied,
            self.evicted + other.evicted,
        )
