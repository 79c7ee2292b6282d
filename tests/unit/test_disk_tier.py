"""Disk tier: what a full swap file costs, and when there is room in it again."""

from array import array

import pytest

from kernel.block import NO_PLACE, Block
from kernel.disktier import NUM_EXTENTS, DiskTier, Extents

SLOTS = 4 * NUM_EXTENTS


def block() -> Block:
    return Block(array("i", range(4)), None)


def full_tier() -> tuple[DiskTier, list[Block]]:
    tier = DiskTier(Extents(SLOTS))
    blocks = [block() for _ in range(SLOTS)]
    assert all(tier.alloc(one) for one in blocks)
    return tier, blocks


def test_a_file_full_of_only_copies_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tier, blocks = full_tier()
    searched = []
    search = DiskTier._drop_duplicates

    def counted(self: DiskTier) -> None:
        searched.append(1)
        search(self)

    monkeypatch.setattr(DiskTier, "_drop_duplicates", counted)
    assert not any(tier.alloc(block()) for _ in range(50))
    assert len(searched) == 1
    tier.drop(blocks[0])
    tier.zeroed(tier.dirty)
    tier.dirty.clear()
    assert tier.alloc(block()) and not tier.alloc(block())
    assert len(searched) == 2, "something has changed"


def test_what_has_come_back_to_the_device_gives_its_slot_up() -> None:
    tier, blocks = full_tier()
    assert not tier.alloc(block())
    blocks[7].filled, tier.full = 4, False  # as an errand that brings it does
    assert not tier.alloc(block())
    assert blocks[7].disk == NO_PLACE and len(tier.dirty) == 1
