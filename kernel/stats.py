"""Counters: facts about this kernel's life, for `snapshot`. They only rise."""

from dataclasses import dataclass
from operator import add
from typing import NamedTuple


@dataclass(slots=True)
class Counters:
    """admitted = finished + failed + those still running or waiting."""

    turns: int = 0
    calls: int = 0
    protocol_errors: int = 0
    admitted: int = 0  # infers accepted
    finished: int = 0
    failed: int = 0
    prompt_tokens: int = 0  # of these infers
    cached_tokens: int = 0  # of those tokens, computed before
    output_tokens: int = 0
    first_tokens: int = 0  # infers that got one
    first_token_s: float = 0.0  # how long they waited, together


class Totals(NamedTuple):
    """What a model's scheduler and pool have done."""

    steps: int = 0
    wasted: int = 0  # rows of a step that nobody wanted any more
    copied: int = 0  # blocks
    evicted: int = 0
    prefill_tokens: int = 0  # of steps
    decode_tokens: int = 0
    seqs: int = 0
    step_us: int = 0
    out_blocks: int = 0  # copied to the host tier
    in_blocks: int = 0  # and back
    out_bytes: int = 0
    in_bytes: int = 0
    copy_us: int = 0
    hit_tokens: int = 0  # found in the prefix index
    lost_tokens: int = 0  # dropped
    disk_out_blocks: int = 0  # written to the swap file
    disk_in_blocks: int = 0  # and read

    def plus(self, other: "Totals") -> "Totals":
        """Return the sums."""
        return Totals(*map(add, self, other))
