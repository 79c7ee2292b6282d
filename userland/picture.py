"""The picture of a context: its blocks as cells, 64 a row if there is room. Pure functions of runs.

 0 ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓
64 ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓████████▌
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from syscalls.abi import BlockRun, PmapResult, Use
from userland import view
from userland.view import count, size

WIDTHS = (64, 32, 16)
"""Cells in a row, as many as the terminal has room for."""
MARGIN = 8


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
    Use.HOST: Kind("host", "▒", "h", "magenta"),
    Use.DISK: Kind("disk", "░", "d", "blue"),
    Use.ABSENT: Kind("absent", "·", ".", "dim"),
}

Segment = tuple[str, str]
"""Text, and its style as rich names it."""


def word_of(run: BlockRun) -> str:
    """Return a run's use as a word."""
    return KINDS[Use(run.use)].word


LOWER = (Use.HOST, Use.DISK)
"""In a tier below the device only."""


def place_of(run: BlockRun) -> str:
    """Return the number of a run's first block, in the tier where it is."""
    return "-" if run.use == Use.ABSENT else str(run.block)


def on_device(found: PmapResult) -> int:
    """Return how many blocks are on the device."""
    away = (*LOWER, Use.ABSENT)
    return sum(run.blocks for run in found.runs if run.use not in away)


def title(found: PmapResult, room: int, fancy: bool) -> list[list[Segment]]:
    """Say whose context it is, and how large; bytes are of what is on the device."""
    facts = [
        f"pid {found.pid}",
        f"{count(found.length)} tok",
        f"{count(found.blocks)} blocks",
        size(on_device(found) * found.block_bytes),
        found.model,
        found.device,
    ]
    between = " · " if fancy else " | "
    tail = sum(len(between + fact) for fact in facts)
    head = f"ctx {found.ctx}" + (f" {view.printable(found.name)}" if found.name else "")
    head = view.shorten(head, max(12, room - tail))
    lines = _packed([[(head, "")], *([(between + fact, "")] for fact in facts)], room)
    return [[("".join(text for text, _ in line), "bold")] for line in lines]


def _packed(parts: Iterable[list[Segment]], room: int) -> list[list[Segment]]:
    """Return parts as lines, none of them broken, as many in a line as fit."""
    lines: list[list[Segment]] = []
    left = 0
    for part in parts:
        width = sum(len(text) for text, _ in part)
        if not lines or width > left:
            lines.append([])
            left = room
        lines[-1] += part
        left -= width
    return lines


def cells(found: PmapResult, room: int, fancy: bool) -> Iterator[list[Segment]]:
    """Return the rows of the picture; rows that repeat the one before are counted instead."""
    every = [Use(run.use) for run in found.runs for _ in range(run.blocks)]
    width = next((wide for wide in WIDTHS if MARGIN + wide <= room), WIDTHS[-1])
    rows = [(at, every[at : at + width]) for at in range(0, len(every), width)]
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


def legend(found: PmapResult, pinned: bool, room: int, fancy: bool) -> list[list[Segment]]:
    """Say what the cells mean, and how many there are of each."""
    counts = dict.fromkeys(KINDS, 0)
    for run in found.runs:
        counts[Use(run.use)] += run.blocks
    parts: list[list[Segment]] = [
        [(f"  {kind.glyph if fancy else kind.letter}", kind.style),
         (f" {kind.word} {count(counts[use])}", "")]
        for use, kind in KINDS.items()
        if counts[use]
    ]  # fmt: skip
    if pinned:
        parts.append([("  ◆" if fancy else "  *", "bold"), (" pinned", "")])
    tail = found.runs[-1] if found.runs else None
    if tail is not None and tail.ids % found.block_size:
        parts.append([(f"  last block {tail.ids % found.block_size}/{found.block_size}", "")])
    return _packed(parts, room)


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
