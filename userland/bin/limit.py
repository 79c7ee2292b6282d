"""limit: what a task, a group or the user may use, and how much of it is used."""

import math

import click

from syscalls.abi import LimitRow, Resource
from userland import complete, view
from userland.bin.ps import user
from userland.desk import Desk, json_option, pass_desk
from userland.exits import Failure
from userland.view import Column

RESOURCES = [resource.value for resource in Resource]


def amount(value: float | None) -> str:
    """Return a limit or a usage as people read it."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"


COLUMNS = [
    Column("kind", "KIND", lambda row: row.kind, left=True),
    Column("pid", "PID", lambda row: str(row.pid or "-")),
    Column("name", "NAME", lambda row: user(row.uid) if row.kind == "owner" else row.name,
           left=True),
    Column("resource", "RESOURCE", lambda row: row.resource, left=True),
    Column("used", "USED", lambda row: amount(row.used)),
    Column("soft", "SOFT", lambda row: amount(row.soft)),
    Column("hard", "HARD", lambda row: amount(row.hard)),
]  # fmt: skip


def parse(word: str) -> float | None:
    """Return an amount; none: no limit."""
    if word.lower() in ("none", "-"):
        return None
    try:
        value = float(word.replace(",", "").replace("_", ""))
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e15:
        raise Failure(f"{word!r} is no amount", "a number from 0 on, or none", 2)
    return value


def _color(row: LimitRow) -> str:
    if row.hard is not None and row.used >= row.hard:
        return "red"
    return "yellow" if row.soft is not None and row.used >= row.soft else ""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--group", metavar="NAME", help="Of a group.")
@click.option("--mine", is_flag=True, help="Of all tasks of the user.")
@click.option("--soft", metavar="AMOUNT", help="Where tasks get the signal XCPU.")
@click.option("--no-headers", is_flag=True, help="Rows only.")
@json_option
@click.argument(
    "words", nargs=-1, metavar="[PID] RESOURCE HARD", shell_complete=complete.tasks
)  # fmt: skip
@pass_desk
def limit(
    desk: Desk, group: str | None, mine: bool, soft: str | None, no_headers: bool, as_json: bool,
    words: tuple[str, ...],
) -> None:  # fmt: skip
    """Limit what a task and all below it may use together; without words, list the limits.

    \b
    Examples:
      llmos limit
      llmos limit 7 output_ids 100000 --soft 90000
      llmos limit --group lab children 40
      llmos limit 7 output_ids none

    \b
    output_ids input_ids     ids generated, and handed in; a trim or a cancel gives none back
    device_s wall_s          seconds of steps; seconds since it began
    requests_per_min         infers and scores of the last 60 seconds
    device_blocks host_blocks disk_blocks pinned_blocks    KV in each tier, and pinned
    children depth contexts  tasks below it, levels of them, contexts

    At the soft limit the programs get the signal XCPU. At the hard one new calls end with EDQUOT,
    and what runs does when ids or seconds are used up. A task lowers its own limits; who is above
    it, or another program of the user, raises them.
    """
    if words or group or mine or soft:
        _set(desk, group, mine, soft, words)
        return
    rows = desk.task.limits()
    if as_json:
        desk.say_json("limit", [row._asdict() for row in rows])
        return
    view.draw(desk, COLUMNS, rows, not no_headers, _color)
    if not rows:
        desk.note("there are no limits; llmos limit PID RESOURCE HARD sets one")


def _set(
    desk: Desk, group: str | None, mine: bool, soft: str | None, words: tuple[str, ...]
) -> None:
    named = group is not None or mine
    if group is not None and mine:
        raise Failure("a limit is of a group or of the user, not of both", "give one of them", 2)
    if len(words) != (2 if named else 3):
        raise Failure("which limit?", "llmos limit PID RESOURCE HARD, or --help", 2)
    *pids, resource, hard = words
    if pids and not (pids[0].isascii() and pids[0].isdecimal() and 0 < len(pids[0]) < 16):
        raise Failure(f"{pids[0]!r} is not a pid", "ps lists them", 2)
    if resource not in RESOURCES:
        raise Failure(f"there is no resource {resource!r}", f"there are {', '.join(RESOURCES)}", 2)
    desk.task.set_limit(
        resource, parse(hard), soft=None if soft is None else parse(soft),
        pid=int(pids[0]) if pids else 0, group=group, owner=mine,
    )  # fmt: skip
