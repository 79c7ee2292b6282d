"""Usage: what an account has been charged. Counters only rise; levels are what it has now.

Ids are counted where they happen: `input_ids` when a program hands them in, `prompt_ids` and
`requests` when an infer or a score is accepted, `cached_ids` when it ends, `output_ids` when one is
sampled, the rest when a step is done. So nothing that a program takes back later (a trim, a cancel
that keeps nothing) is given back.

    device_us    its part of each step's time, by its part of the step's tokens, cut to whole
                 microseconds so that the parts of a step add up to the step
    block_us     blocks times microseconds, by tier. A block is in the highest tier that has it,
                 and is charged to the account of the context that made it, once, however many share
                 it, for as long as any of them names it: forks cost nothing, a tree pays what it
                 holds. Cached blocks (no table names them) are charged to nobody
    energy       is not here: no driver measures it yet
"""

from enum import IntEnum
from operator import add
from typing import NamedTuple


class Tier(IntEnum):
    """Where a block is charged."""

    NONE = 0  # nowhere, or nobody names it
    DEVICE = 1
    HOST = 2  # only there, and perhaps on the disk
    DISK = 3  # only there


class Counters(NamedTuple):
    """What has been counted, as the ledger keeps it. New ones go last."""

    input_ids: int = 0  # that programs have handed in
    prompt_ids: int = 0  # of the requests accepted
    cached_ids: int = 0  # of these, found computed
    output_ids: int = 0  # sampled and part of a context
    prefill_ids: int = 0  # computed in steps
    decode_ids: int = 0
    recomputed_ids: int = 0  # whose KV the kernel had let go: of the account `system` only
    entries: int = 0  # in steps: one for each of its contexts in each step
    device_us: int = 0
    device_block_us: int = 0
    host_block_us: int = 0
    disk_block_us: int = 0
    out_blocks: int = 0  # copied from the device to a lower tier
    in_blocks: int = 0  # and back
    requests: int = 0  # infers and scores accepted
    born: int = 0  # tasks

    def plus(self, other: "Counters") -> "Counters":
        """Return the sums."""
        return Counters(*map(add, self, other))


class Usage:
    """Of one account and all below it."""

    __slots__ = (
        "_at_us",
        "_block_us",
        "blocks",
        "born",
        "cached_ids",
        "contexts",
        "decode_ids",
        "device_us",
        "entries",
        "in_blocks",
        "input_ids",
        "out_blocks",
        "output_ids",
        "prefill_ids",
        "prompt_ids",
        "recomputed_ids",
        "requests",
        "tasks",
    )  # fmt: skip

    def __init__(self) -> None:
        self.input_ids = self.prompt_ids = self.cached_ids = self.output_ids = 0
        self.prefill_ids = self.decode_ids = self.recomputed_ids = 0
        self.entries = self.device_us = 0
        self.out_blocks = self.in_blocks = self.requests = self.born = 0
        self.blocks = [0, 0, 0, 0]  # by Tier, now
        self.tasks = 0  # now
        self.contexts = 0  # now
        self._block_us = [0, 0, 0, 0]
        self._at_us = 0  # as of when

    def hold(self, tier: int, more: int, now_us: int) -> None:
        """Note that there are `more` blocks in a tier from now on."""
        self._settle(now_us)
        self.blocks[tier] += more

    def _settle(self, now_us: int) -> None:
        past = now_us - self._at_us
        self._at_us = now_us
        if past:
            times, blocks = self._block_us, self.blocks
            times[1] += past * blocks[1]
            times[2] += past * blocks[2]
            times[3] += past * blocks[3]

    def counters(self, now_us: int) -> Counters:
        """Return all counters as of now."""
        self._settle(now_us)
        _, device, host, disk = self._block_us
        return Counters(
            self.input_ids, self.prompt_ids, self.cached_ids, self.output_ids,
            self.prefill_ids, self.decode_ids, self.recomputed_ids, self.entries, self.device_us,
            device, host, disk, self.out_blocks, self.in_blocks, self.requests, self.born,
        )  # fmt: skip
