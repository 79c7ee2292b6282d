"""Families: which contexts share KV blocks, as a tree. No drawing in here.

The kernel does not keep who was forked from whom. It tells which contexts have blocks in common,
and how many (pmap), so the tree says that: below a context stand those that were made later and
have more blocks in common with it than with any other one made before. That is the tree of forks as
long as nobody trims; contexts that found the same prefix in the cache stand in it like forks.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from syscalls.abi import CtxRow, SharerRow

MAX_PAIRS = 1_000_000
"""Contexts asked about, times all there are: the kernel goes through all of them for each."""
MAX_DEPTH = 24
"""Levels of the tree. What lies deeper stands on the last one: nobody could read it further right,
and a context that forks at every turn has thousands."""
Key = tuple[int, int]
"""Task and number of a context. Numbers rise, so that an older context comes first."""


class Relative(NamedTuple):
    """A context, and the one that it shares most with of those before it."""

    row: CtxRow
    parent: Key | None
    common: int  # blocks


def key_of(row: CtxRow) -> Key:
    """Return what a context is known by."""
    return row.pid, row.ctx


def relatives(
    rows: Iterable[CtxRow], ask: Callable[[CtxRow], Iterable[SharerRow]]
) -> tuple[list[Relative], int]:
    """Return the contexts with their parents, the oldest first, and how many were not asked about.

    `ask` tells who shares blocks with a context. One that was not asked about is still found by
    those that were.
    """
    ordered = sorted(rows, key=key_of)
    sharing = [row for row in ordered if row.shared or row.host_blocks or row.disk_blocks]
    common: dict[Key, dict[Key, int]] = {}
    looks = MAX_PAIRS // max(1, len(ordered))
    for row in sharing[:looks]:
        for other in ask(row):
            there = other.pid, other.ctx
            common.setdefault(key_of(row), {})[there] = other.blocks
            common.setdefault(there, {})[key_of(row)] = other.blocks
    found = []
    for row in ordered:
        before = {
            other: blocks
            for other, blocks in common.get(key_of(row), {}).items()
            if other < key_of(row)
        }
        # The oldest of those that share most; one of the same task before others.
        near = sorted(before, key=lambda other: (-before[other], other[0] != row.pid, other))
        parent = near[0] if near else None
        found.append(Relative(row, parent, before[parent] if parent else 0))
    return found, len(sharing[looks:])


class Branch(NamedTuple):
    """A line of the tree: how deep it is, and on which levels above it others follow."""

    of: Relative
    depth: int
    last: tuple[bool, ...]  # by level: no other one follows there


def branches(relatives: Iterable[Relative]) -> list[Branch]:
    """Return relatives as a tree in order; one whose parent is not among them begins a tree."""
    relatives = list(relatives)
    there = {key_of(relative.row) for relative in relatives}
    below: dict[Key | None, list[Relative]] = {}
    for relative in relatives:
        below.setdefault(relative.parent if relative.parent in there else None, []).append(relative)
    found: list[Branch] = []
    waiting = _siblings(below.get(None, []), ())
    while waiting:
        branch = waiting.pop()
        found.append(branch)
        waiting += _siblings(below.get(key_of(branch.of.row), []), branch.last)
    return found


def _siblings(relatives: list[Relative], above: tuple[bool, ...]) -> list[Branch]:
    """Return branches of one level, the first one last."""
    above, ends = above[: MAX_DEPTH - 1], len(relatives) - 1
    made = [
        Branch(relative, len(above), (*above, at == ends)) for at, relative in enumerate(relatives)
    ]
    return made[::-1]
