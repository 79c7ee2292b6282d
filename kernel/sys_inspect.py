"""Handler of snapshot: counters and tables for ps, free and top. Pure reading."""

import sys
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from kernel.block import NOT_RESIDENT
from kernel.device import Device
from kernel.handler import Caller, Done
from kernel.sys_ctx import ctx_row
from kernel.sys_task import VERSION, task_row
from kernel.system import System
from syscalls.abi import KernelRow, PoolRow, Snapshot, SnapshotResult
from syscalls.errors import EINVAL

PAGE = 256
"""Rows in one reply."""
Table = tuple[Iterable[Any], Callable[[System, Any], Any]]
"""Objects, and what makes a row of one: only those of the page are looked at."""


def sys_snapshot(k: System, caller: Caller, args: Snapshot) -> Done:
    """Return a page of rows."""
    tables = {"tasks": _tasks, "contexts": _contexts, "pools": _pools, "kernel": _kernel}
    table = tables.get(args.what)
    if table is None:
        raise EINVAL(f"there is no snapshot of {args.what}; there are {', '.join(tables)}")
    objects, row = table(k)
    if args.cursor > sys.maxsize - PAGE:
        raise EINVAL(f"there is no row {args.cursor}", "cursors come from the reply before")
    rows = [row(k, item) for item in islice(objects, args.cursor, args.cursor + PAGE)]
    cursor = args.cursor + PAGE if len(rows) == PAGE else 0
    return Done(SnapshotResult(k.counters.turns, rows, cursor))


def _tasks(k: System) -> Table:
    return k.tasks, task_row


def _contexts(k: System) -> Table:
    return k.contexts(), ctx_row


def _pools(k: System) -> Table:
    return ([k.device] if k.device.loaded else []), _pool_row


def _kernel(k: System) -> Table:
    return [k], _kernel_row


def _pool_row(k: System, device: Device) -> PoolRow:
    assert device.loaded is not None
    counts = device.pool.counts
    blocks = [block for block in device.pool.resident() if block.refs > 0]
    size = device.pool.block_size
    return PoolRow(
        device.name, device.spec.name, "device", size, device.loaded.block_bytes,
        counts.total, counts.free, counts.cached, counts.used, counts.limbo, counts.reserved,
        sum(block.refs > 1 for block in blocks),
        sum(block.refs - 1 for block in blocks),
        sum(size - len(block.ids) for block in blocks if block.id != NOT_RESIDENT),
    )  # fmt: skip


def _kernel_row(k: System, _: System) -> KernelRow:
    c, device = k.counters, k.device
    sched = device.sched if device.loaded else None
    infers = [request for request in device.requests if request.infer]
    running = sum(request.slot is not None for request in infers)
    return KernelRow(
        k.kernel_pid, VERSION, k.clock() - k.born, c.turns, c.calls, c.protocol_errors,
        sched.steps if sched else 0, sched.wasted if sched else 0,
        device.pool.copied if sched else 0, device.pool.evicted if sched else 0,
        c.admitted, c.finished, c.failed, running, len(infers) - running,
    )  # fmt: skip
