"""Handler of snapshot: counters and tables for ps, free, top and config. Pure reading."""

import sys
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Any

from kernel.config import values
from kernel.handler import Caller, Done
from kernel.job import Work
from kernel.model import Model
from kernel.sys_ctx import ctx_row
from kernel.sys_task import VERSION, task_row
from kernel.system import System
from kernel.tally import tally
from syscalls.abi import ConfigRow, KernelRow, PoolRow, Snapshot, SnapshotResult
from syscalls.errors import EINVAL

PAGE = 256
"""Rows in one reply."""
Row = Generator[int, None, Any]
Table = tuple[Iterable[Any], Callable[[System, Any], Row]]
"""Objects, and what makes a row of one: only those of the page are looked at."""
CHUNK = 4096
"""Blocks of a pool that are looked at at a time."""


def sys_snapshot(k: System, caller: Caller, args: Snapshot) -> Work:
    """Return a page of rows."""
    tables = {
        "tasks": _tasks, "contexts": _contexts, "pools": _pools, "kernel": _kernel,
        "config": _config,
    }  # fmt: skip
    table = tables.get(args.what)
    if table is None:
        raise EINVAL(f"there is no snapshot of {args.what}; there are {', '.join(tables)}")
    objects, row = table(k)
    if args.cursor > sys.maxsize - PAGE:
        raise EINVAL(f"there is no row {args.cursor}", "cursors come from the reply before")
    rows = []
    for item in list(islice(objects, args.cursor, args.cursor + PAGE)):
        rows.append((yield from row(k, item)))
    cursor = args.cursor + PAGE if len(rows) == PAGE else 0
    return Done(SnapshotResult(k.counters.turns, rows, cursor))


def _tasks(k: System) -> Table:
    return k.tasks, task_row


def _contexts(k: System) -> Table:
    return k.contexts(), ctx_row


def _pools(k: System) -> Table:
    return [model for model in k.device.models if model.loaded], _pool_row


def _kernel(k: System) -> Table:
    return [k], _kernel_row


def _config(k: System) -> Table:
    return values(k.config), _config_row


def _config_row(k: System, item: tuple[str, Any]) -> Row:
    yield 1
    return ConfigRow(*item)


def _pool_row(k: System, model: Model) -> Row:
    blocks, size = list(model.pool.resident()), model.pool.block_size
    parts = [blocks[start : start + CHUNK] for start in range(0, len(blocks), CHUNK)]
    sums = yield from tally(parts, size)
    counts = model.pool.counts
    return PoolRow(
        model.device, model.name, "device", size, model.desc.block_bytes,
        counts.total, counts.free, counts.cached, counts.used, counts.limbo, counts.reserved,
        sums.shared, sums.saved, sums.waste,
    )  # fmt: skip


def _kernel_row(k: System, _: System) -> Row:
    c, totals = k.counters, k.device.models.totals
    infers = [request for request in k.device.requests if not request.background]
    running = sum(request.slot is not None for request in infers)
    yield len(infers)
    return KernelRow(
        k.kernel_pid, VERSION, k.clock() - k.born, c.turns, c.calls, c.protocol_errors,
        totals.steps, totals.wasted, totals.copied, totals.evicted,
        c.admitted, c.finished, c.failed, running, len(infers) - running,
    )  # fmt: skip
