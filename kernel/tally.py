"""Tally: what tables of blocks take, for ps, free and their kin. Pure counting, in slices."""

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

from kernel.block import NO_PLACE, NOT_RESIDENT, Block


class Tally(NamedTuple):
    """What the tables of a task, a context or a pool name."""

    blocks: int = 0  # resident
    share: float = 0.0  # of them, one that n tables name counted as 1/n
    shared: int = 0  # named by more than one table
    saved: int = 0  # that would be needed besides, if nothing was shared
    waste: int = 0  # empty positions
    host: int = 0  # in the host tier only
    host_share: float = 0.0
    disk: int = 0  # in the swap file only
    disk_share: float = 0.0


def tally(tables: Iterable[Sequence[Block]], block_size: int) -> Generator[int, None, Tally]:
    """Count the resident blocks of tables, a block as often as it is named."""
    count, share, shared, saved, waste = 0, 0.0, 0, 0, 0
    host, host_share, disk, disk_share = 0, 0.0, 0, 0.0
    for table in tables:
        for block in table:
            refs = block.refs
            if refs == 0:
                continue
            if block.id == NOT_RESIDENT:
                if block.kept:
                    host += 1
                    host_share += 1 / refs
                elif block.disk != NO_PLACE:
                    disk += 1
                    disk_share += 1 / refs
                continue
            count += 1
            share += 1 / refs
            shared += refs > 1
            saved += refs - 1
            waste += block_size - len(block.ids)
        yield 1 + len(table)  # a table costs something even when it is empty
    return Tally(count, share, shared, saved, waste, host, host_share, disk, disk_share)
