"""free: the pools of KV blocks."""

from collections.abc import Callable

import click

from syscalls.abi import PoolRow
from userland import view
from userland.desk import Desk, json_option, pass_desk
from userland.view import Column, count
from userland.watch import repeat, watch_option

PLACES = ("total", "used", "cached", "free")


def _amount(key: str, in_bytes: bool) -> Callable[[PoolRow], str]:
    def cell(row: PoolRow) -> str:
        blocks: int = getattr(row, key)
        return view.size(blocks * row.block_bytes) if in_bytes else count(blocks)

    return cell


def _of_device(key: str, in_bytes: bool) -> Callable[[PoolRow], str]:
    """Return a cell of what is counted once, in the row of the device."""
    amount = _amount(key, in_bytes)
    return lambda row: amount(row) if row.tier == "device" else "-"


def _limit(in_bytes: bool) -> Callable[[PoolRow], str]:
    amount = _amount("promise_limit", in_bytes)
    return lambda row: amount(row) if row.promise_limit else "-"


def columns(in_bytes: bool) -> list[Column]:
    """Return the columns, amounts in blocks or in bytes."""

    def column(key: str, cell: Callable[[PoolRow], str], spare: bool = True) -> Column:
        return Column(key, key.upper(), cell, spare=spare)

    def block(row: PoolRow) -> str:
        return f"{row.block_size} tok = {view.size(row.block_bytes)}"

    return [
        Column("device", "DEVICE", lambda p: p.device, left=True),
        Column("model", "MODEL", lambda p: p.model, left=True),
        Column("tier", "TIER", lambda p: p.tier, left=True),
        *(column(key, _amount(key, in_bytes), spare=False) for key in PLACES),
        *(column(key, _of_device(key, in_bytes)) for key in ("pinned", "saved", "promised")),
        column("limit", _limit(in_bytes)),
        *(column(key, _amount(key, in_bytes)) for key in ("limbo", "reserved")),
        column("shared", _of_device("shared", in_bytes)),
        Column("block", "BLOCK", block, spare=True),
    ]


@click.command(context_settings={"help_option_names": ["--help"]})
@click.option("-h", "--human", is_flag=True, help="Sizes instead of blocks.")
@click.option("--no-headers", is_flag=True, help="Rows only.")
@watch_option
@json_option
@pass_desk
def free(desk: Desk, human: bool, no_headers: bool, watch: float | None, as_json: bool) -> None:
    """Show how the KV blocks of each device are used, and those of the tiers below it.

    \b
    Examples:
      free
      free -h
      free -h -w 5

    \b
    TOTAL = USED + CACHED + FREE + LIMBO + RESERVED
    TIER     device: where steps run; host: memory that blocks are swapped out to
    USED     contexts name them; CACHED: of contexts that are gone, kept for prompts that begin
             like them, and the first to go when room is needed
    LIMBO    freed, but a step or a copy that is running may still touch them
    PINNED   of pinned contexts; half of a pool may be
    SHARED   used by more than one context; SAVED: blocks that sharing saves
    PROMISED that contexts name, wherever their KV is; LIMIT: how many they may
    """

    def draw(desk: Desk) -> None:
        rows: list[PoolRow] = desk.task.pools()
        if as_json:
            desk.say_json("free", [row._asdict() for row in rows], stream=watch is not None)
        elif not rows:
            desk.note("no model is loaded yet; llmos status says how far it is")
        else:
            view.draw(desk, columns(human), rows, not no_headers, lambda p: "")

    if watch is None:
        draw(desk)
    else:
        repeat(desk, watch, draw)
