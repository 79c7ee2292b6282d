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


@dataclass(frozen=True, slots=True)
class Column:
    """One column: what `-o` calls it, what the header says, how a row's cell reads."""

    key: str
    title: str
    cell: Callable[[Any], str]
    left: bool = False
    sort: Callable[[Any], Any] | None = None


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
    cells = [[column.cell(row) for column in columns] for row in rows]
    if desk.out.isatty():
        _draw_rich(desk, columns, cells, [style(row) for row in rows], headers)
        return
    titles = [[column.title for column in columns]] if headers else []
    widths = [max(map(len, column)) for column in zip(*titles, *cells, strict=True)]
    for line in titles + cells:
        desk.say(" ".join(map(_pad, line, widths, columns)).rstrip())


def _pad(cell: str, width: int, column: Column) -> str:
    return cell.ljust(width) if column.left else cell.rjust(width)


def _draw_rich(
    desk: Desk,
    columns: Sequence[Column],
    cells: list[list[str]],
    styles: list[str],
    headers: bool,
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=headers, header_style="bold", pad_edge=False)
    for column in columns:
        wide = column.left
        table.add_column(
            column.title,
            justify="left" if wide else "right",
            no_wrap=True,
            overflow="ellipsis",
            min_width=None if wide else len(column.title),
        )
    for line, style in zip(cells, styles, strict=True):
        table.add_row(*map(Text, line), style=style)
    with desk.writing():
        Console(file=desk.out, highlight=False).print(table)


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
