"""dmesg: the kernel's log."""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

import syscalls
from syscalls.abi import LogLevel, LogRow
from userland.daemon import kernel_log
from userland.desk import Desk, json_option, pass_desk
from userland.exits import USAGE, Failure

POLL_S = 0.25
"""How often -w asks. A call that stays open would be answered sooner, and the kernel would have a
list of watchers to keep, bound and end; four calls a second are a thousandth of a core."""
LEVELS = {level.name.lower(): level for level in LogLevel}
FACILITIES = ("mm", "sched", "drv", "ctx", "ipc", "model", "kern")
STYLES = {LogLevel.CRIT: "bold red", LogLevel.ERR: "red", LogLevel.WARN: "yellow"}
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def level_name(level: int) -> str:
    """Return a level's name, a number for one that this program does not know."""
    return next((name for name, known in LEVELS.items() if known == level), str(level))


def parse_levels(text: str) -> frozenset[int]:
    """Return the levels of `err,warn` or `warn+` (and graver)."""
    chosen: set[int] = set()
    for word in text.lower().split(","):
        name = word.strip().removesuffix("+")
        if name not in LEVELS:
            raise Failure(f"there is no level {word!r}", f"levels are {','.join(LEVELS)}", USAGE)
        least = LEVELS[name]
        chosen |= {
            lv for lv in LEVELS.values() if lv == least or (word.endswith("+") and lv < least)
        }
    return frozenset(chosen)


def parse_facilities(text: str) -> frozenset[str]:
    """Return the facilities of a comma-separated list."""
    words = [word.strip() for word in text.lower().split(",")]
    for word in words:
        if word not in FACILITIES:
            hint = f"facilities are {','.join(FACILITIES)}"
            raise Failure(f"there is no facility {word!r}", hint, USAGE)
    return frozenset(words)


def parse_since(text: str, now: float) -> float:
    """Return the moment, since 1970, of `5m` (ago), `12:30` (today) or `2026-11-24 12:30`."""
    ago = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhd])", text.strip(), re.ASCII)
    if ago:
        return now - float(ago[1]) * _UNITS[ago[2]]
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text.strip(), re.ASCII):
            text = f"{datetime.fromtimestamp(now):%Y-%m-%d} {text.strip():0>5}"
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        hint = "like 30s, 5m, 2h, 12:30, 2026-11-24, 2026-11-24T12:30"
        raise Failure(f"{text!r} is no time", hint, USAGE) from None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which records are wanted."""

    levels: frozenset[int] | None
    facilities: frozenset[str] | None
    since: float | None

    def takes(self, row: LogRow) -> bool:
        """See whether a record is one of them."""
        return (
            (self.levels is None or row.level in self.levels)
            and (self.facilities is None or row.facility in self.facilities)
            and (self.since is None or row.wall_s >= self.since)
        )


def line_of(row: LogRow, wall: bool) -> str:
    """Return a record as it is printed."""
    if wall:
        when = datetime.fromtimestamp(row.wall_s).isoformat(" ", "seconds")
    else:
        when = f"{row.uptime_s:12.6f}"
    return f"[{when}] {row.facility:<5} {level_name(row.level):<4} {row.text}"


def _document(row: LogRow) -> dict[str, Any]:
    return row._asdict() | {"level": level_name(row.level)}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-w", "--follow", is_flag=True, help="Go on with new records until Ctrl-C.")
@click.option("-T", "--ctime", is_flag=True, help="Dates and times instead of seconds.")
@click.option("-l", "--level", metavar="LEVELS", help="Only these, as err,warn or warn+.")
@click.option("-f", "--facility", metavar="NAMES", help="Only these, as drv,mm.")
@click.option("--since", metavar="TIME", help="Only younger ones, as 5m or 12:30.")
@click.option("-n", "--lines", type=click.IntRange(0), metavar="N", help="Only the last N.")
@json_option
@pass_desk
def dmesg(
    desk: Desk,
    follow: bool,
    ctime: bool,
    level: str | None,
    facility: str | None,
    since: str | None,
    lines: int | None,
    as_json: bool,
) -> None:
    """Print the kernel's log.

    \b
    Examples:
      dmesg
      dmesg -T -l warn+
      dmesg -w -f drv,model
      dmesg --since 5m --json

    \b
    Seconds are since the kernel began. Levels: crit, err, warn, info, debug.
    Facilities: mm (blocks), sched, drv (drivers), ctx (contexts), ipc (clients), model,
    kern (tasks and the rest). The kernel keeps the last 4,096 records, 1 MiB of them at most;
    what happens often is counted, and told once in 5 s. No prompt is ever in it.
    With -w, --json is one record a line.
    """
    choice = Choice(
        None if level is None else parse_levels(level),
        None if facility is None else parse_facilities(facility),
        None if since is None else parse_since(since, time.time()),
    )
    task = _task(desk)
    rows = task.log()
    cursor = rows[-1].number + 1 if rows else 1
    wanted = [row for row in rows if choice.takes(row)]
    if lines is not None:
        wanted = wanted[-lines:] if lines else []
    if as_json and not follow:
        desk.say_json("dmesg", [_document(row) for row in wanted])
        return
    printer = _Printer(desk, ctime, as_json)
    printer.write(wanted)
    if follow:
        for row in _new(desk, task, cursor):
            if choice.takes(row):
                printer.write([row])


def _task(desk: Desk) -> syscalls.Task:
    """Return the desk's task; without a kernel, say where the log of the last one is."""
    try:
        return desk.task
    except syscalls.ECONNRESET as error:
        if kernel_log().exists():
            raise syscalls.ECONNRESET(error.message, f"llmos up; cat {kernel_log()}") from None
        raise


def _new(desk: Desk, task: syscalls.Task, cursor: int) -> Iterator[LogRow]:
    """Yield records from a number on, for ever; say if some had gone before they were read."""
    while True:
        rows = task.log(cursor)
        if rows and rows[0].number > cursor:
            desk.note(f"{rows[0].number - cursor} records were gone before they could be read")
        yield from rows
        if rows:
            cursor = rows[-1].number + 1
        time.sleep(POLL_S)


class _Printer:
    """Writes records: coloured on a terminal, plain elsewhere, NDJSON if asked for."""

    def __init__(self, desk: Desk, wall: bool, as_json: bool) -> None:
        self._desk = desk
        self._wall = wall
        self._json = as_json
        self._console: Any = None
        if (desk.out.isatty() or desk.color == "always") and not as_json:
            self._console = desk.console()

    def write(self, rows: Iterable[LogRow]) -> None:
        for row in rows:
            if self._json:
                self._desk.say_json("dmesg.record", _document(row), stream=True)
            elif self._console is None:
                self._desk.say(line_of(row, self._wall))
            else:
                self._color(row)
        self._desk.flush()

    def _color(self, row: LogRow) -> None:
        from rich.text import Text

        style = next((style for level, style in STYLES.items() if level == row.level), "")
        with self._desk.writing():
            self._console.print(Text(line_of(row, self._wall), style), soft_wrap=True)
