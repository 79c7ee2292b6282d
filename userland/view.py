"""Drawing rows: a table for people on a terminal, plain columns in a pipe. Pure functions of rows.

A pipe gets the same columns, one record a line, nothing cut and nothing coloured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from userland.desk import Desk
from userland.exits import Failure

Style = Callable[[Any], str]
"""A row's colour on a terminal, as rich names it."""
_SHORTEST = 6
"""What a word is cut to at most."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: what `-o` calls it, what the header says, how a row's cell reads."""

    key: str
    title: str
    cell: Callable[[Any], str]
    left: bool = False
    sort: Callable[[Any], Any] | None = None
    spare: bool = False
    """Left out where a terminal is too narrow."""


def choose(columns: Sequence[Column], keys: str) -> list[Column]:
    """Return the columns of a comma-separated list."""
    known = {column.key: column for column in columns}
    wanted = [key.strip() for key in keys.split(",")]
    for key in wanted:
        if key not in known:
            raise Failure(f"there is no column {key!r}", f"columns are {','.join(known)}", 2)
    return [known[key] for key in wanted]


def ordered(columns: Sequence[Column], rows: Sequence[Any], key: str) -> list[Any]:
    """Sort rows by a column; `-key` is descending."""
    column = choose(columns, key.removeprefix("-"))[0]
    return sorted(rows, key=column.sort or column.cell, reverse=key.startswith("-"))


def draw(
    desk: Desk, columns: Sequence[Column], rows: Sequence[Any], headers: bool, style: Style
) -> None:
    """Write rows to the desk."""
    lines = [[column.cell(row) for column in columns] for row in rows]
    styles = [style(row) for row in rows]
    if headers:
        lines.insert(0, [column.title for column in columns])
        styles.insert(0, "bold")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if desk.out.isatty() or desk.color == "always":
        _draw_rich(desk, columns, lines, widths, styles)
        return
    for line in lines:
        desk.say(_join(columns, line, widths))


def lines_of(columns: Sequence[Column], rows: Sequence[Any], room: int) -> list[str]:
    """Return the header and the rows of a table, as they fit into `room` columns."""
    lines = [[column.title for column in columns]]
    lines += [[column.cell(row) for column in columns] for row in rows]
    widths = fit(columns, [max(map(len, column)) for column in zip(*lines, strict=True)], room)
    return [_join(columns, line, widths) for line in lines]


def shorten(text: str, room: int) -> str:
    """Cut a text that is too long, and show that it was."""
    return text if len(text) <= room else f"{text[: max(0, room - 1)]}…"


def printable(text: str) -> str:
    """Return a text that others have chosen as one line that a terminal shows and does not obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def fit(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """Return the widths for a terminal, 0 for what is left out: spare columns, from the right.

    After them words are cut. Numbers never are: a line that is still too long runs over.
    """
    fitted = list(widths)

    def excess() -> int:
        return sum(width + 1 for width in fitted if width) - 1 - room

    for at in reversed(range(len(columns))):
        if columns[at].spare and excess() > 0:
            fitted[at] = 0
    words = [at for at, column in enumerate(columns) if column.left and fitted[at] > _SHORTEST]
    while words and excess() > 0:
        widest = max(words, key=fitted.__getitem__)
        fitted[widest] -= 1
        words = [at for at in words if fitted[at] > _SHORTEST]
    return fitted


def _draw_rich(
    desk: Desk,
    columns: Sequence[Column],
    lines: list[list[str]],
    widths: list[int],
    styles: list[str],
) -> None:
    from rich.text import Text

    console = desk.console()
    fitted = fit(columns, widths, console.width) if desk.out.isatty() else widths
    with desk.writing():
        for line, style in zip(lines, styles, strict=True):
            console.print(Text(_join(columns, line, fitted), style), soft_wrap=True)
    absent = [column.title for column, width in zip(columns, fitted, strict=True) if not width]
    if absent:
        desk.note(f"{console.width} columns are too few for {', '.join(absent)}; | cat has all")


def _join(columns: Sequence[Column], line: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(columns, line, widths, strict=True)
    return " ".join(_pad(column, cell, width) for column, cell, width in cells if width).rstrip()


def _pad(column: Column, cell: str, width: int) -> str:
    if len(cell) > width:
        cell = f"{cell[: width - 1]}…"
    return cell.ljust(width) if column.left else cell.rjust(width)


def count(number: float) -> str:
    """1234567 -> 1,234,567."""
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes in B, KiB, MiB, GiB with three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1000 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"


def age(seconds: float) -> str:
    """Seconds as 0:07, 1:02:03 or 2d03h."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
