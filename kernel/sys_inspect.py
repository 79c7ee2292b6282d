"""Handler of snapshot: counters and tables for ps, free and top. Pure reading."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from kernel.block import NOT_RESIDENT
from kernel.handler import Caller, Done
from kernel.sys_ctx import ctx_row
from kernel.sys_task import VERSION, task_row
from kernel.system import System
from syscalls.abi import KernelRow, PoolRow, Snapshot, SnapshotResult
from syscalls.errors import EINVAL

PAGE = 256
"""Rows in one reply."""


def sys_snapshot(k: System, caller: Caller, args: Snapshot) -> Done:
    """Return a page of rows."""
    tables = {"tasks": _tasks, "contexts": _contexts, "pools": _pools, "kernel": _kernel}
    table = tables.get(args.what)
    if table is None:
        raise EINVAL(f"there is no snapshot of {args.what}; there are {', '.join(tables)}")
    rows = list(islice(table(k), args.cursor, args.cursor + PAGE))
    cursor = args.cursor + PAGE if len(rows) == PAGE else 0
    return Done(SnapshotResult(k.counters.turns, rows, cursor))


def _tasks(k: System) -> Iterator[Any]:
    return (task_row(k, task) for task in k.tasks)


def _contexts(k: System) -> Iterator[Any]:
    return (ctx_row(k, ctx) for ctx in k.contexts())


def _pools(k: System) -> Iterator[Any]:
    device = k.device
    if device.loaded is None:
        return
    counts = device.pool.counts
    blocks = [block for block in device.pool.resident() if block.refs > 0]
    size = device.pool.block_size
    yield PoolRow(
        device.name, device.spec.name, "device", size, device.loaded.block_bytes,
        counts.total, counts.free, counts.cached, counts.used, counts.limbo, counts.reserved,
        sum(block.refs > 1 for block in blocks),
        sum(block.refs - 1 for block in blocks),
        sum(size - len(block.ids) for block in blocks if block.id != NOT_RESIDENT),
    )  # fmt: skip


def _kernel(k: System) -> Iterator[Any]:
    c, device = k.counters, k.device
    sched = device.sched if device.loaded else None
    infers = [request for request in device.requests if request.infer]
    running = sum(request.slot is not None for request in infers)
    yield KernelRow(
        k.kernel_pid, VERSION, k.clock() - k.born, c.turns, c.calls, c.protocol_errors,
        sched.steps if sched else 0, sched.wasted if sched else 0,
        device.pool.copied if sched else 0, device.pool.evicted if sched else 0,
        c.admitted, c.finished, c.failed, running, len(infers) - running,
    )  # fmt: skip
