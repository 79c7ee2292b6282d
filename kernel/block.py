"""Block: the unit in which KV is kept, shared and counted; and the states of its places.

A `Block` is `block_size` token positions of a context: their ids and, where it has them, the places
that hold their KV: a block of the device, one of the host tier, a slot of the swap file. Forks
share Blocks by reference, computed or not, so a fork copies nothing. Four facts move apart and are
kept apart:

    ids      what the positions are; only grows while more than one table names the block
    planned  leading positions whose KV a submitted step writes; planned >= filled
    filled   leading positions whose KV is on the device (the fence of their step has passed)
    kept     leading positions whose KV is in the host tier (the fence of their copy has passed)

A block whose positions all have ids and KV is *sealed* and never changes. Ids are added by the
block's `writer`, or by its only user. Anybody else continues in a new Block whose `origin` is the
old one: at its first step the device copies the origin's positions, and drops the claim on it.

Every place of the device and of the host tier is in one state, and goes along `EDGES` only:

    FREE    zero, and nobody's
    USED    a table names its Block
    CACHED  no table does, but the prefix index finds it; its owner's, and charged to nobody
    LIMBO   something submitted may touch it, or it is to be zeroed: nobody's until that is done
    RESERVED  the null block, for ever
"""

from array import array
from enum import IntEnum
from typing import Any, NamedTuple

from drivers.base import NULL_BLOCK

NOT_RESIDENT = NULL_BLOCK
"""As a Block's `id`: its KV is not on the device."""
NO_PLACE = -1
"""As a Block's `host` or `disk`: it has no place in that tier."""


class BlockState(IntEnum):
    """Of a place."""

    FREE = 0
    USED = 1
    LIMBO = 2
    RESERVED = 3
    CACHED = 4


EDGES = {
    (BlockState.FREE, BlockState.USED): "allocated for a step",
    (BlockState.FREE, BlockState.LIMBO): "the target of a copy",
    (BlockState.LIMBO, BlockState.USED): "its copy has come",
    (BlockState.LIMBO, BlockState.CACHED): "its copy has come, its last table has gone meanwhile",
    (BlockState.USED, BlockState.LIMBO): "freed, evicted, or its copy lies elsewhere",
    (BlockState.USED, BlockState.CACHED): "its last table has gone, the index finds it",
    (BlockState.CACHED, BlockState.USED): "found; or taken for another Block, and zeroed first",
    (BlockState.CACHED, BlockState.LIMBO): "room was needed, or it was erased",
    (BlockState.LIMBO, BlockState.FREE): "zeroed, and every fence has passed",
}
"""All moves of a place. The end of an epoch makes all device places FREE: they are gone."""


class Counts(NamedTuple):
    """Places of a tier by state; they add up to the total."""

    total: int
    free: int
    cached: int
    used: int
    limbo: int
    reserved: int


class Move(IntEnum):
    """A copy of a Block between the tiers, asked for and not done."""

    NONE = 0
    OUT = 1  # to the host tier
    IN = 2  # to the device
    DOWN = 3  # to the disk
    UP = 4  # from the disk to the device


class Block:
    """Ids and, where it has places, the KV of up to `block_size` positions."""

    __slots__ = (
        "chain", "disk", "filled", "heirs", "host", "id", "ids", "kept", "lost", "moving", "origin",
        "origin_len", "owner", "payer", "planned", "readers", "refs", "salt", "target", "tier",
        "writer",
    )  # fmt: skip

    def __init__(
        self, ids: "array[int]", writer: object, owner: int = 0, payer: Any = None
    ) -> None:
        self.ids = ids
        self.writer: object = writer  # a Context; None: nobody
        self.refs = 1  # tables that name it
        self.heirs: set[Block] | None = None  # Blocks that have it as origin
        self.id = NOT_RESIDENT
        self.filled = 0
        self.planned = 0
        self.host = NO_PLACE
        self.kept = 0
        self.disk = NO_PLACE  # of sealed blocks only
        self.moving = Move.NONE
        self.readers = 0  # saves that read its places
        self.target = NOT_RESIDENT  # the device place that a copy brings it to
        self.origin: Block | None = None
        self.origin_len = 0  # positions to take over from the origin
        self.chain = b""  # hash of its ids and of all before (kernel/prefix.py); empty: unknown
        self.owner = owner  # the user whose ids they are, whoever computes them
        self.payer = payer  # the Account that it is charged to while tables name it
        self.tier = 0  # where it is charged now (kernel/ledger.py)
        self.lost = 0  # leading positions whose KV was there, and was taken by the kernel
        self.salt = b""  # of the chain, if ids of somebody else's go before the owner's in it

    @property
    def reach(self) -> int:
        """Leading positions that need neither computing nor a copy between tiers first."""
        origin = self.origin
        if origin is None or origin.id == NOT_RESIDENT or self.moving is not Move.NONE:
            return self.planned  # of an origin that has come back, the copy may be on its way still
        return max(self.planned, self.inherits)

    @property
    def inherits(self) -> int:
        """Positions that a copy of its origin gives it: that one may have lost some meanwhile."""
        origin = self.origin
        return min(self.origin_len, origin.planned) if origin is not None else 0

    @property
    def have(self) -> int:
        """Leading positions whose KV is in some tier."""
        return len(self.ids) if self.disk != NO_PLACE else max(self.filled, self.kept)

    @property
    def nowhere(self) -> bool:
        """Whether it has a place in no tier."""
        return (self.id, self.host, self.disk) == (NOT_RESIDENT, NO_PLACE, NO_PLACE)

    @property
    def away(self) -> bool:
        """Whether what it has, or begins with, lies in a lower tier or is on its way from there."""
        if self.id != NOT_RESIDENT:
            return False
        return bool(self.moving) or self.disk != NO_PLACE or self.source is not None

    @property
    def source(self) -> "Block | None":
        """The Block whose host copy this one can begin with; None: it needs none, or has none."""
        if self.id != NOT_RESIDENT:
            return None
        if self.kept:
            return self
        origin = self.origin
        return origin if origin and origin.id == NOT_RESIDENT and origin.kept else None

    @property
    def held(self) -> bool:
        """Whether a copy or a save needs its places as they are."""
        return bool(self.moving or self.heirs or self.readers)
