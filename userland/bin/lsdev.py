"""lsdev: the devices of the kernel, and what is on them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import click

from syscalls import Task
from syscalls.abi import DeviceRow, ModelRow, PoolRow
from userland import view
from userland.desk import Desk, json_option, pass_desk
from userland.running import store_of
from userland.view import Column, count
from userland.watch import repeat, watch_option

COLORS = {"up": "green", "failed": "red", "starting": "yellow", "loading": "yellow"}


@dataclass(frozen=True, slots=True)
class Line:
    """A device with one of its models; without, if it has none."""

    device: DeviceRow
    model: ModelRow | None
    pool: PoolRow | None

    @property
    def state(self) -> str:
        """The model's where it is the one that is not up."""
        if self.device.state == "up" and self.model is not None:
            return self.model.state
        return self.device.state

    @property
    def note(self) -> str:
        """Why it is not up, else what the device is."""
        model_note = self.model.note if self.model is not None else ""
        return view.printable(model_note or self.device.note)


COLUMNS = [
    Column("dev", "DEV", lambda r: r.device.device, left=True),
    Column("driver", "DRIVER", lambda r: r.device.driver or "-", left=True),
    Column("model", "MODEL", lambda r: r.model.name if r.model else "-", left=True),
    Column("mem", "MEM", lambda r: view.size(r.device.mem_total) if r.device.mem_total else "-"),
    Column("free", "FREE", lambda r: view.size(r.device.mem_free) if r.device.mem_total else "-",
           spare=True),
    Column("blocks", "BLOCKS", lambda r: count(r.pool.total) if r.pool else "-"),
    Column("dtype", "DTYPE", lambda r: (r.model and r.model.dtype) or "-", left=True),
    Column("epoch", "EPOCH", lambda r: str(r.device.epoch), spare=True),
    Column("hpid", "HPID", lambda r: str(r.device.host_pid or "-"), spare=True),
    Column("state", "STATE", lambda r: r.state, left=True),
    Column("note", "NOTE", lambda r: r.note or "-", left=True),
]  # fmt: skip
_TABLE = [column for column in COLUMNS if column.key not in ("free", "epoch", "hpid")]


def lines(
    devices: Iterable[DeviceRow], models: Iterable[ModelRow], pools: Iterable[PoolRow]
) -> list[Line]:
    """Join what three calls have said."""
    pool_of = {(pool.device, pool.model): pool for pool in pools if pool.tier == "device"}
    models = list(models)
    found = []
    for device in devices:
        mine: list[ModelRow | None] = [m for m in models if m.device == device.device]
        for model in mine or [None]:
            pool = pool_of.get((device.device, model.name)) if model else None
            found.append(Line(device, model, pool))
    return found


def _disk(task: Task) -> list[DeviceRow]:
    """Return the store as a device, if the kernel has one."""
    store = store_of(task)
    if store is None:
        return []
    swap = f", swap: {view.size(store.swap_bytes)}" if store.swap_bytes else ""
    kept = f"saves: {count(store.saves)}, {view.size(store.saves_bytes)}{swap}"
    why = "; ".join(filter(None, (store.note, store.hint)))
    note = kept if store.state == "up" else why
    return [DeviceRow("disk", "store", store.state, store.epoch, store.host_pid, 0, 0, note)]


def _document(device: DeviceRow, rows: list[Line]) -> dict[str, Any]:
    models = [
        {
            "name": row.model.name, "state": row.model.state, "note": row.model.note,
            "dtype": row.model.dtype, "weights_bytes": row.model.weights_bytes,
            "blocks": row.pool.total if row.pool else None,
            "block_bytes": row.pool.block_bytes if row.pool else None,
        }
        for row in rows
        if row.model is not None and row.device is device
    ]  # fmt: skip
    return device._asdict() | {"models": models}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-f", "--full", is_flag=True, help="Free memory, epoch and host pid, too.")
@click.option("--no-headers", is_flag=True, help="Rows only.")
@watch_option
@json_option
@pass_desk
def lsdev(desk: Desk, full: bool, no_headers: bool, watch: float | None, as_json: bool) -> None:
    """List the devices, the models on them, and why one is down.

    \b
    Examples:
      lsdev
      lsdev --full
      lsdev --json

    \b
    STATE  starting, loading, up, failed: the model's where its device is up
    DEV    disk is where saves and the swap file are
    NOTE   why it failed, or ended the last time; else what the device is
    EPOCH  how often its driver was started; HPID: the driver's pid on the host
    """

    def draw(desk: Desk) -> None:
        task = desk.task
        devices = [*task.devices(), *_disk(task)]
        rows = lines(devices, task.models(), task.pools())
        if as_json:
            data = [_document(device, rows) for device in devices]
            desk.say_json("lsdev", data, stream=watch is not None)
            return
        columns = COLUMNS if full else _TABLE
        view.draw(desk, columns, rows, not no_headers, lambda row: COLORS.get(row.state, ""))
        if desk.out.isatty():
            for row in rows:
                if row.state in ("failed", "starting") and row.note:  # the table may have cut it
                    desk.note(f"{row.device.device}: {row.note}")

    if watch is None:
        draw(desk)
    else:
        repeat(desk, watch, draw)
