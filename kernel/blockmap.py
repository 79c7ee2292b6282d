"""Block map: a context's table as runs of blocks that are alike, and who shares it. In slices.

    blocks    0 ........ 179 | 180 ....... 223 | 224      of a table of 225
    runs      SHARED, refs 3 | PRIVATE, refs 1 | FILLING

So a context of a million ids is a few rows, unless its device blocks lie scattered: a run is of
neighbours on the device, too.

Tables may share anywhere: a fork begins with the same blocks, and a block that is found in the
prefix index takes the place of one in the middle of a table.
"""

from collections.abc import Generator, Iterable, Sequence
from operator import is_

from kernel.block import NO_PLACE, NOT_RESIDENT, Block
from kernel.context import Context
from syscalls.abi import BlockRun, Use

CHUNK = 1024
"""Blocks that are looked at at a time."""
COST = 4
"""A block of a map costs as much as so many of a tally (kernel/job.py)."""


def use_of(block: Block, block_size: int) -> Use:
    """Say what a block of a table is."""
    if block.refs == 0:  # given back since this began
        return Use.ABSENT
    if block.id == NOT_RESIDENT:
        if block.kept:
            return Use.HOST
        return Use.DISK if block.disk != NO_PLACE else Use.ABSENT
    if block.filled < block_size:
        return Use.FILLING
    return Use.SHARED if block.refs > 1 else Use.PRIVATE


def runs(
    table: Sequence[Block], first: int, length: int, block_size: int, limit: int
) -> Generator[int, None, tuple[list[BlockRun], int]]:
    """Return up to `limit` runs of `table`, and how many blocks they cover.

    `first` is the place of the table's first block in its context, `length` the context's: its last
    block may have more ids, of a context that shares it.
    """
    found: list[BlockRun] = []
    start = ids = filled = 0
    alike: tuple[Use, int, int] | None = None  # use, refs, device block less place
    for at, block in enumerate(table):
        use = use_of(block, block_size)
        place = {Use.HOST: block.host, Use.DISK: block.disk}.get(use, block.id)
        this = (use, 0, 0) if use is Use.ABSENT else (use, block.refs, place - first - at)
        if this != alike:
            if alike is not None:
                found.append(_run(alike, first + start, at - start, block_size, ids, filled))
                if len(found) == limit:
                    return found, at
            alike, start, ids, filled = this, at, 0, 0
        ids += len(block.ids)
        filled += block.have
        if at % CHUNK == CHUNK - 1:
            yield CHUNK * COST
    yield 1 + len(table) % CHUNK * COST
    if alike is not None:
        last = _run(alike, first + start, len(table) - start, block_size, ids, filled)
        ids = min(last.ids, length - last.start)
        found.append(last._replace(ids=ids, filled=min(last.filled, ids)))
    return found, len(table)


def _run(
    alike: tuple[Use, int, int], place: int, count: int, size: int, ids: int, filled: int
) -> BlockRun:
    use, refs, offset = alike
    block, filled = (0, 0) if use is Use.ABSENT else (offset + place, filled)
    return BlockRun(place * size, count, int(use), refs, block, ids, filled)


def sharers(
    ctx: Context, others: Iterable[Context]
) -> Generator[int, None, list[tuple[Context, int]]]:
    """Return the contexts that share blocks with this one, and how many; most first."""
    table = ctx.blocks
    if not any(block.refs > 1 for block in table):
        return []
    found = []
    for other in others:
        common = sum(map(is_, table, other.blocks)) if other is not ctx else 0
        if common:
            found.append((other, common))
        yield 4 + min(len(table), len(other.blocks)) // 16
    found.sort(key=lambda pair: -pair[1])
    return found
