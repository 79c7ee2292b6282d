"""ctx saves and ctx rm: contexts that are kept on the disk."""

from collections.abc import Sequence
from datetime import datetime

import click

from syscalls import Task
from syscalls.abi import SaveRow
from userland import complete, view
from userland.desk import Desk, json_option, pass_desk
from userland.exits import Failure
from userland.view import Column, count, size

_HELP = {"help_option_names": ["-h", "--help"]}
COLORS = {"damaged": "red", "stale": "yellow"}


def when(row: SaveRow) -> str:
    """Return when a save was made, in local time."""
    return datetime.fromtimestamp(row.saved_wall_s).isoformat(" ", "minutes")


COLUMNS = [
    Column("name", "NAME", lambda row: view.printable(row.name), left=True),
    Column("model", "MODEL", lambda row: row.model or "-", left=True),
    Column("tok", "TOK", lambda row: count(row.length) if row.length else "-"),
    Column("kv", "KV", lambda row: f"{count(row.kv_blocks)} blk" if row.length else "-",
           spare=True),
    Column("size", "SIZE", lambda row: size(row.file_bytes)),
    Column("when", "WHEN", lambda row: when(row) if row.saved_wall_s else "-", left=True),
    Column("state", "STATE", lambda row: row.state, left=True),
]  # fmt: skip


@click.command(context_settings=_HELP)
@click.option("--no-headers", is_flag=True, help="Rows only.")
@json_option
@pass_desk
def saves(desk: Desk, no_headers: bool, as_json: bool) -> None:
    """List the contexts that you have saved.

    \b
    Examples:
      llmos ctx saves
      llmos ctx saves --json

    \b
    KV     full blocks whose KV is in the save; what lacks is computed again after a load
    STATE  current: the last one of its name. stale: an older one, the last one is lost; its ids
           can be loaded. damaged: it cannot be opened
    """
    if as_json:
        desk.say_json("saves", [row._asdict() for row in desk.task.saves()])
    else:
        show(desk, not no_headers)


def show(desk: Desk, headers: bool) -> None:
    """Write the list."""
    rows = desk.task.saves()
    view.draw(desk, COLUMNS, rows, headers, lambda row: COLORS.get(row.state, ""))
    if not rows:
        desk.note("no saves: in llmsh ctx save NAME makes one, in Python Context.save")


@click.command(context_settings=_HELP)
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete.saves)
@pass_desk
def rm(desk: Desk, names: tuple[str, ...]) -> None:
    """Delete saves for good.

    \b
    Examples:
      llmos ctx rm notes
      llmos ctx rm "draft 1" "draft 2"

    Contexts that were loaded from them go on.
    """
    delete(desk.task, names)


def delete(task: Task, names: Sequence[str]) -> None:
    """Delete saves; none if one of them is not there."""
    there = {row.name for row in task.saves()}
    for name in names:
        if name not in there:
            raise Failure(f"there is no save {name!r}", "llmos ctx saves", code="ENOENT")
    for name in dict.fromkeys(names):
        task.drop_save(name)
