"""Caps: hard limits as a scenario knows them (tests/helpers/limited.py)."""

from collections import deque

from kernel.account import Account, Kind
from kernel.usage import Tier
from syscalls.abi import Resource
from tests.helpers.forest import Node

STOPPING = Resource.OUTPUT_IDS, Resource.DEVICE_S


class Cap:
    """One hard limit."""

    def __init__(self, node: Node, account: Account, label: str, resource: Resource) -> None:
        self.node = node
        self.account = account
        self.label = label
        self.resource = resource
        self.hard = self.most = 0.0  # what was used already when it was set is not exceeded
        self.over = 0  # step since which more blocks are here than may be
        self.times: deque[float] = deque()  # of requests, since there is a limit of these
        self.last_us = 0  # of device time, at the event before
        self.took_us: deque[int] = deque(maxlen=2)  # steps that somebody below was in
        self.grown: deque[int] = deque(maxlen=2)  # blocks that steps may have added
        self.brought = deque([account.usage.in_blocks], maxlen=2)  # by copies, before these steps

    @property
    def charged(self) -> float:
        """What the kernel says that is used, in the unit of the limit."""
        usage = self.account.usage
        match self.resource:
            case Resource.OUTPUT_IDS:
                return usage.output_ids
            case Resource.INPUT_IDS:
                return usage.input_ids
            case Resource.DEVICE_S:
                return usage.device_us / 1e6
            case Resource.DEVICE_BLOCKS:
                return usage.blocks[Tier.DEVICE]
            case Resource.CHILDREN:
                own = self.account.kind is Kind.TASK and not self.account.closed
                return usage.tasks - own
        return len(self.times)

    @property
    def reached(self) -> bool:
        """Whether nothing may be computed at its cost any more."""
        return self.resource in STOPPING and self.charged >= self.hard

    def set(self, hard: float) -> None:
        """Take another limit."""
        self.hard, self.most = hard, max(hard, self.charged)
