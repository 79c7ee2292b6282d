"""status: the kernel, its devices and its models in a few lines."""

from typing import Any

import click

import syscalls
from syscalls.abi import ModelRow, StoreRow
from userland import view
from userland.desk import Desk, json_option, pass_desk
from userland.running import store_of
from userland.view import count, printable, size


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@json_option
@pass_desk
def status(desk: Desk, as_json: bool) -> None:
    """Say what the kernel is doing, and on what.

    \b
    Examples:
      llmos status
      llmos status --json
    """
    task = desk.task
    if as_json:
        desk.say_json("status", facts(task))
        return
    row = task.kernel()
    desk.say(f"kernel   {row.version}, pid {row.pid}, up {view.age(row.uptime_s)}, {task.address}")
    if row.unrestored:
        desk.say(f"saved    {count(row.unrestored)} contexts are not back ({row.restore})")
    for device in task.devices():
        note = f", {device.note}" if device.note else ""
        host = f", host pid {device.host_pid}" if device.host_pid else ""
        restarts = f", started {device.epoch} times" if device.epoch > 1 else ""
        desk.say(f"device   {device.device} is {device.state}{host}{restarts}{note}")
    for model in task.models():
        desk.say(f"model    {model.name} on {model.device}{_about(model)}")
    for pool in task.pools():
        where = f"on {pool.device}" if pool.tier == "device" else f"in the {pool.tier} tier"
        desk.say(
            f"blocks   {count(pool.used)} of {count(pool.total)} used, "
            f"{size(pool.total * pool.block_bytes)} {where} for {pool.model}"
        )
    store = store_of(task)
    desk.say(f"store    {_kept(store) if store else 'none: nothing is kept on disk'}")
    desk.say(
        f"infers   {count(row.running)} running, {count(row.waiting)} waiting, "
        f"{count(row.finished)} finished, {count(row.failed)} failed"
    )


def _kept(store: StoreRow) -> str:
    host = f", host pid {store.host_pid}" if store.host_pid else ""
    restarts = f", started {store.epoch} times" if store.epoch > 1 else ""
    found = f", saves: {count(store.saves)}, {size(store.saves_bytes)}" if store.saves else ""
    damaged = f", {store.damaged} damaged" if store.damaged else ""
    swap = f", {size(store.swap_bytes)} for swap" if store.swap_bytes else ""
    why = "".join(f"; {printable(text)}" for text in (store.note, store.hint) if text)
    state = "has failed" if store.state == "failed" else f"is {store.state}"
    return f"{state}{host}{restarts}{found}{damaged}{swap}{why}"


def _about(model: ModelRow) -> str:
    if model.state != "up":
        return f" is {model.state}" + (f": {model.note}" if model.note else "")
    return (
        f": {model.arch} in {model.dtype}, {size(model.weights_bytes)} of weights, "
        f"contexts up to {count(model.max_ctx)} tokens"
    )


def facts(task: syscalls.Task) -> dict[str, Any]:
    """Return what `--json` writes."""
    return {
        "address": task.address,
        "kernel": task.kernel()._asdict(),
        "devices": [row._asdict() for row in task.devices()],
        "models": [row._asdict() for row in task.models()],
        "store": store._asdict() if (store := store_of(task)) else None,
        "pools": [row._asdict() for row in task.pools()],
    }
