"""explain, of a task: what its contexts wait for, where their KV is, and what became of it."""

from collections.abc import Sequence
from typing import Any

from syscalls import ENOTSUP, KernelError
from syscalls.abi import CtxRow, ExplainResult, LossRow, TaskRow
from userland import view
from userland.bin.ps import waits_for
from userland.choosing import chosen, few, number_of
from userland.desk import Desk
from userland.exits import USAGE, Failure
from userland.view import count


def explain_task(desk: Desk, words: Sequence[str], as_json: bool) -> None:
    """Explain the contexts that words name."""
    if not words:
        raise Failure("-p takes a task", "llmos explain -p PID", USAGE)
    task = desk.task
    rows = few(chosen(task, "explain", words), "explain")
    found = [pair for row in rows if (pair := _ask(desk, row)) is not None]
    tasks = {row.pid: row for row in task.ps()}
    if as_json:
        desk.say_json("explain.task", [_document(row, facts) for row, facts in found])
        return
    pid = number_of(words[0])
    pids = [pid] if pid is not None else list(dict.fromkeys(row.pid for row, _ in found))
    for at, which in enumerate(pids):
        if which in tasks:
            _show_task(desk, tasks[which], at > 0)
        for row, facts in found:
            if row.pid == which:
                _show(desk, row, facts, tasks)
    if not found:
        desk.note("no contexts")


def _ask(desk: Desk, row: CtxRow) -> tuple[CtxRow, ExplainResult] | None:
    """Ask the kernel about a context; None if it has gone since the list was made."""
    try:
        return row, desk.task.explain(row.ctx, row.pid)
    except ENOTSUP:
        raise
    except KernelError:
        if desk.task.lost:
            raise
        return None


def _document(row: CtxRow, facts: ExplainResult) -> dict[str, Any]:
    losses = [loss._asdict() for loss in facts.losses]
    about = {"name": row.name, "model": row.model, "length": row.length}
    return facts._asdict() | about | {"losses": losses}


# --- for people -----------------------------------------------------------------------------------


def _show_task(desk: Desk, task: TaskRow, between: bool) -> None:
    reason = waits_for(task)
    waiting = f", waits for {reason}" if reason != "-" else ""
    desk.say(f"{chr(10) if between else ''}task {task.pid} {task.name}: {task.state}{waiting}")


def _show(desk: Desk, row: CtxRow, facts: ExplainResult, tasks: dict[int, TaskRow]) -> None:
    name = f" @{view.printable(row.name)}" if row.name else ""
    pinned = ", pinned" if row.pinned else ""
    desk.say(f"ctx {row.ctx}{name}: {count(row.length)} tokens of {row.model}{pinned}")
    desk.say(f"  waits  {_waits(facts)}")
    desk.say(f"  KV     {_places(row, facts)}")
    for at, loss in enumerate(facts.losses):
        when, why = _loss(loss, tasks)
        desk.say(f"  {'lost' if at == 0 else '':<6} {when}")
        desk.say(f"  {'':<6}   {why}")


def _waits(facts: ExplainResult) -> str:
    if facts.needed:
        return f"for {facts.waits_for}, of which {count(facts.available)} can be had"
    return f"for {facts.waits_for}" if facts.state else facts.waits_for or "for nothing"


def _places(row: CtxRow, facts: ExplainResult) -> str:
    """Say where the KV of the tokens is."""
    parts = [
        (facts.on_device, "on the device"),
        (facts.on_host, "in host memory"),
        (facts.on_disk, "on disk"),
    ]
    left = max(0, row.length - sum(tokens for tokens, _ in parts))
    parts.append((left, "to be computed"))
    return ", ".join(f"{count(tokens)} {where}" for tokens, where in parts if tokens) or "none"


def _loss(loss: LossRow, tasks: dict[int, TaskRow]) -> tuple[str, str]:
    """Say what was lost, when, and what it costs to have it again; and why, and for whom."""
    by = tasks.get(loss.by_pid)
    who = f" by task {loss.by_pid}" if loss.by_pid else ""
    who += f" ({by.name})" if by is not None else ""
    what = f"{count(loss.tokens)} tokens from {count(loss.start)} on"
    when = f"{view.age(loss.ago_s)} ago, {what}, {_cost(loss.cost_us)}"
    return when, f"{loss.what}: {loss.why}{who}"


def _cost(us: int) -> str:
    if us <= 0:
        return "at a cost that is not measured yet"
    time = f"{us / 1000:,.1f} ms" if us < 1e6 else f"{us / 1e6:,.1f} s"
    return f"{time} to have them again"
