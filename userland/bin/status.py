"""status: the kernel, its devices and its models in a few lines."""

from typing import Any

import click

import syscalls
from syscalls.abi import ModelRow
from userland import view
from userland.desk import Desk, json_option, pass_desk
from userland.view import count, size


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
        desk.say(
            f"blocks   {count(pool.used)} of {count(pool.total)} used, "
            f"{size(pool.total * pool.block_bytes)} on {pool.device} for {pool.model}"
        )
    desk.say(
        f"infers   {count(row.running)} running, {count(row.waiting)} waiting, "
        f"{count(row.finished)} finished, {count(row.failed)} failed"
    )


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
        "pools": [row._asdict() for row in task.pools()],
    }
