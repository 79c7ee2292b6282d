"""usage: what users, groups and tasks have used."""

from collections.abc import Callable

import click

from syscalls.abi import UsageRow
from userland import view
from userland.bin.ps import user
from userland.desk import Desk, json_option, pass_desk
from userland.view import Column, count
from userland.watch import repeat, watch_option

LEVELS = {
    "owner": ("owner", "system", "root"),
    "group": ("group",),
    "task": ("task", "system"),
}
SECOND = 1_000_000


def seconds(us: int) -> str:
    """Return microseconds as people read them."""
    return f"{us / SECOND:,.2f}"


def _ids(key: str) -> Callable[[UsageRow], str]:
    return lambda row: count(getattr(row, key))


def _block_seconds(key: str) -> Callable[[UsageRow], str]:
    return lambda row: f"{getattr(row, key) / SECOND:,.0f}"


def whose(row: UsageRow) -> str:
    """Return how a row is named."""
    names = {"owner": user(row.uid), "root": "all"}
    return names.get(row.kind, view.printable(row.name))


def columns() -> list[Column]:
    """Return the columns."""

    def column(
        key: str, title: str, cell: Callable[[UsageRow], str], spare: bool = False
    ) -> Column:
        return Column(key, title, cell, spare=spare)

    return [
        Column("kind", "KIND", lambda row: row.kind, left=True),
        Column("pid", "PID", lambda row: str(row.pid or "-")),
        Column("name", "NAME", whose, left=True),
        column("tasks", "TASKS", _ids("tasks")),
        column("requests", "REQ", _ids("requests")),
        column("input", "IN", _ids("input_ids")),
        column("cached", "CACHED", _ids("cached_ids"), True),
        column("output", "OUT", _ids("output_ids")),
        column("prefill", "PREFILL", _ids("prefill_ids"), True),
        column("decode", "DECODE", _ids("decode_ids"), True),
        column("again", "AGAIN", _ids("recomputed_ids"), True),
        column("device", "DEV_S", lambda row: seconds(row.device_us)),
        column("blocks", "BLK_S", _block_seconds("device_block_us")),
        column("host", "HOST_S", _block_seconds("host_block_us"), True),
        column("disk", "DISK_S", _block_seconds("disk_block_us"), True),
        column("swap", "SWAPS", lambda row: count(row.out_blocks + row.in_blocks), True),
        column("energy", "ENERGY", energy, True),
    ]


def energy(row: UsageRow) -> str:
    """Return joules, if the device's driver measures them."""
    return "not measured" if row.energy_uj is None else f"{row.energy_uj / SECOND:,.1f} J"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--by", type=click.Choice(list(LEVELS)), default="owner", show_default=True,
    help="What a row is.",
)  # fmt: skip
@click.option("--no-headers", is_flag=True, help="Rows only.")
@watch_option
@json_option
@pass_desk
def usage(desk: Desk, by: str, no_headers: bool, watch: float | None, as_json: bool) -> None:
    """Show what users, groups or tasks have used, those below them included.

    \b
    Examples:
      llmos usage
      llmos usage --by task --json

    \b
    IN, OUT  ids that programs handed in, and ids generated; nothing gives them back
    CACHED   ids of prompts that were found computed; PREFILL, DECODE: ids computed in steps
    AGAIN    ids computed again because the kernel had let their KV go: charged to `system`
    DEV_S    seconds of steps, each step's by its part of the step's ids
    BLK_S    blocks on the device times seconds; HOST_S, DISK_S: in the lower tiers only. A block
             that contexts share is charged once, to the task that made it
    ENERGY   not measured: no driver does it yet
    """

    def draw(desk: Desk) -> None:
        rows = [row for row in desk.task.usage() if row.kind in LEVELS[by]]
        if as_json:
            desk.say_json("usage", [row._asdict() for row in rows], stream=watch is not None)
            return
        view.draw(desk, columns(), rows, not no_headers, lambda row: "")
        if not rows:
            desk.note("there is no group; llmos usage --by task lists tasks")

    if watch is None:
        draw(desk)
    else:
        repeat(desk, watch, draw)
