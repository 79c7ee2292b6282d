"""The picture of a context: its blocks as cells, 64 a row. Pure functions of runs.

 0 ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓
64 ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓████████▌
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from syscalls.abi import BlockRun, PmapResult, Use
from userland import view
from userland.view import count, size

WIDTH = 64
"""Cells in a row."""


class Kind(NamedTuple):
    """How one use of a block is shown."""

    word: str
    glyph: str
    letter: str
    style: str


KINDS = {
    Use.SHARED: Kind("shared", "▓", "S", "cyan"),
    Use.PRIVATE: Kind("private", "█", "P", "green"),
    Use.FILLING: Kind("filling", "▌", ">", "yellow"),
    Use.ABSENT: Kind("absent", "·", ".", "dim"),
}

Segment = tuple[str, str]
"""Text, and its style as rich names it."""


def word_of(run: BlockRun) -> str:
    """Return a run's use as a word."""
    return KINDS[Use(run.use)].word


def title(found: PmapResult, room: int, fancy: bool) -> str:
    """Say whose context it is, and how large."""
    facts = [
        f"pid {found.pid}",
        f"{count(found.length)} tok",
        f"{count(found.blocks)} blocks",
        size(sum(run.blocks for run in found.runs if run.block) * found.block_bytes),
        found.model,
        found.device,
    ]
    tail = (" · " if fancy else " | ").join(["", *facts])
    head = f"ctx {found.ctx}" + (f" {view.printable(found.name)}" if found.name else "")
    return view.shorten(head, max(12, room - len(tail))) + tail


def cells(found: PmapResult, fancy: bool) -> Iterator[list[Segment]]:
    """Return the rows of the picture; rows that repeat the one before are counted instead."""
    every = [Use(run.use) for run in found.runs for _ in range(run.blocks)]
    rows = [(at, every[at : at + WIDTH]) for at in range(0, len(every), WIDTH)]
    for _, alike in groupby(rows, key=lambda row: row[1]):
        same = list(alike)
        first, uses = same[0]
        yield [(f"{first:>7} ", ""), *_segments(uses, fancy)]
        if len(same) == 2:
            yield [(f"{same[1][0]:>7} ", ""), *_segments(uses, fancy)]
        elif len(same) > 2:
            yield [(f"{'*':>7} {count(len(same) - 1)} more rows like this one", "dim")]


def _segments(uses: list[Use], fancy: bool) -> Iterator[Segment]:
    for use, same in groupby(uses):
        kind = KINDS[use]
        yield (kind.glyph if fancy else kind.letter) * len(list(same)), kind.style


def legend(found: PmapResult, fancy: bool) -> list[Segment]:
    """Say what the cells mean, and how many there are of each."""
    counts = dict.fromkeys(KINDS, 0)
    for run in found.runs:
        counts[Use(run.use)] += run.blocks
    parts: list[Segment] = []
    for use, kind in KINDS.items():
        if counts[use]:
            parts.append((f"  {kind.glyph if fancy else kind.letter}", kind.style))
            parts.append((f" {kind.word} {count(counts[use])}", ""))
    tail = found.runs[-1] if found.runs else None
    if tail is not None and tail.ids % found.block_size:
        parts.append((f"  last block {tail.ids % found.block_size}/{found.block_size}", ""))
    return parts


def shared_with(found: PmapResult, room: int) -> str:
    """Name the contexts that share blocks, as many as fit; empty if there are none."""
    if not found.sharers:
        return ""
    line, named = "  shared with: ", 0
    for row in found.sharers:
        who = f"@{view.printable(row.name)}" if row.name else f"{row.pid}/{row.ctx}"
        who = f"{', ' if named else ''}{view.shorten(who, 24)} {count(row.blocks)}"
        if named and len(line) + len(who) + 12 > room:
            break
        line, named = line + who, named + 1
    more = found.num_sharers - named
    return line + (f", {count(more)} more" if more else "")
