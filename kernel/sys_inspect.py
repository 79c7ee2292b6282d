"""Handlers of snapshot, pmap and log: what ps, free, top and others show. Pure reading."""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Any

from kernel import blockmap, sys_limit
from kernel.config import values
from kernel.context import Context
from kernel.handler import Caller, Done
from kernel.job import Work
from kernel.model import Model
from kernel.port import Port
from kernel.storehost import StoreHost
from kernel.sys_ctx import ctx_row
from kernel.sys_task import VERSION, task_row
from kernel.system import System
from kernel.tally import tally
from kernel.topic import Feed, Subscription
from syscalls.abi import (
    ConfigRow,
    KernelRow,
    Log,
    Pmap,
    PmapResult,
    PoolRow,
    PortRow,
    SharerRow,
    Snapshot,
    SnapshotResult,
    StoreRow,
)  # fmt: skip
from syscalls.errors import EINVAL, EPERM, ESRCH

PAGE = 256
"""Rows in one reply."""
Row = Generator[int, None, Any]
Table = tuple[Iterable[Any], Callable[[System, Any], Row]]
"""Objects, and what makes a row of one: only those of the page are looked at."""
CHUNK = 4096
"""Blocks of a pool that are looked at at a time."""
RUNS = 512
"""Of a pmap, in one reply."""
MAX_TABLE = 1 << 17
"""Blocks of a pmap, in one reply."""
MAX_SHARERS = 64


def sys_snapshot(k: System, caller: Caller, args: Snapshot) -> Work:
    """Return a page of rows."""
    tables = {
        "tasks": _tasks, "contexts": _contexts, "pools": _pools, "kernel": _kernel,
        "config": _config, "store": _store, "ports": _ports,
    } | sys_limit.tables()  # fmt: skip
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
    """Return the tiers of each model; the disk's, once the model has something of the swap file."""
    rows = []
    for model in k.device.models:
        if model.loaded:
            pool = model.pool
            places = {"device": 1, "host": pool.host.num_blocks, "disk": pool.disk.num_slots}
            rows += [(model, tier) for tier, count in places.items() if count]
    return rows, _pool_row


def _kernel(k: System) -> Table:
    return [k], _kernel_row


def _config(k: System) -> Table:
    return values(k.config), _config_row


def _config_row(k: System, item: tuple[str, Any]) -> Row:
    yield 1
    return ConfigRow(*item)


def _store(k: System) -> Table:
    return [k.store], _store_row


def _store_row(k: System, store: StoreHost) -> Row:
    yield 1
    opened = store.opened
    return StoreRow(
        store.state.value, store.host_pid, store.note, store.hint, store.num_saves,
        opened.num_damaged if opened else 0, store.saves_bytes,
        opened.swap_bytes if opened else 0, store.epoch,
    )  # fmt: skip


def _ports(k: System) -> Table:
    return [*k.ports, *k.topics], _port_row


def _port_row(k: System, one: Port | Subscription | Feed) -> Row:
    yield 1
    if isinstance(one, Port):
        server, waiting, taken = one.server, len(one.waiting), len(one.taken)
        return PortRow(
            "port", one.name, server.uid, server.pid, server.name, waiting, one.depth, taken,
            one.done, one.usual_s,
        )  # fmt: skip
    task, missing, ctx = one.task, 0, 0
    if isinstance(one, Feed):
        kind, waiting, ctx = "feed", one.backlog, one.ctx.handle
    else:
        kind, waiting, missing = "topic", len(one.items), one.missing
    return PortRow(
        kind, one.topic, task.uid, task.pid, task.name, waiting, one.depth, 0, one.done, 0.0,
        missing, ctx,
    )  # fmt: skip


def _pool_row(k: System, pair: tuple[Model, str]) -> Row:
    model, tier = pair
    pool, size = model.pool, model.pool.block_size
    if tier != "device":
        counts = pool.host.counts if tier == "host" else pool.disk.counts
        yield counts.total // CHUNK + 1
        return PoolRow(
            model.device, model.name, tier, size, model.desc.block_bytes, *counts, 0, 0, 0
        )
    blocks = list(pool.resident())
    parts = [blocks[start : start + CHUNK] for start in range(0, len(blocks), CHUNK)]
    sums = yield from tally(parts, size)
    return PoolRow(
        model.device, model.name, tier, size, model.desc.block_bytes, *pool.counts,
        sums.shared, sums.saved, sums.waste, pool.named, model.promise_limit,
        model.sched.pager.pinned,
    )  # fmt: skip


def _kernel_row(k: System, _: System) -> Row:
    c, totals, now = k.counters, k.device.models.totals, k.clock()
    infers = [request for request in k.device.requests if not request.background]
    waiting = [request for request in infers if request.slot is None]
    since = min((request.since for request in waiting if not request.held), default=now)
    yield len(infers)
    return KernelRow(
        k.kernel_pid, VERSION, now - k.born, c.turns, c.calls, c.protocol_errors,
        totals.steps, totals.wasted, totals.copied, totals.evicted,
        c.admitted, c.finished, c.failed, len(infers) - len(waiting), len(waiting),
        totals.prefill_tokens, totals.decode_tokens, totals.seqs, totals.step_us,
        c.prompt_tokens, c.cached_tokens, c.output_tokens, c.first_tokens, c.first_token_s,
        now - since, k.log.end - 1, len(k.sessions), *totals[8:],
        k.comeback.state.value, k.comeback.num_back, k.comeback.unrestored,
    )  # fmt: skip


def sys_pmap(k: System, caller: Caller, args: Pmap) -> Work:
    """Describe the blocks of a context; of another task's, too, if it is the caller's uid's."""
    task = k.tasks.find(args.pid) if args.pid else caller.task
    if caller.session.uid not in (k.uid, task.uid):
        raise ESRCH(f"there is no task {args.pid}", "llmos ps lists them")
    ctx, cursor = k.context(task, args.ctx), args.cursor
    count, length, computed = len(ctx.blocks), ctx.length, ctx.computed  # as of the call
    if cursor > count:
        raise EINVAL(f"the context has {count} blocks, no block {cursor}")
    size, desc = ctx.pool.block_size, ctx.model.desc
    runs, covered = yield from blockmap.runs(
        ctx.blocks[cursor : cursor + MAX_TABLE], cursor, length, size, RUNS
    )
    sharers: list[tuple[Context, int]] = []
    if cursor == 0:
        sharers = yield from blockmap.sharers(ctx, _visible(k, caller))
    rest = cursor + covered
    rows = [SharerRow(o.pid, o.handle, o.name, shared) for o, shared in sharers[:MAX_SHARERS]]
    return Done(
        PmapResult(
            ctx.pid, ctx.handle, ctx.name, ctx.model.name, ctx.model.device, length, computed,
            size, desc.block_bytes, count, list(runs), list(rows), len(sharers),
            rest if rest < count else 0,
        )
    )  # fmt: skip


def _visible(k: System, caller: Caller) -> Iterator[Context]:
    """Return the contexts that the caller may know of, as they are when it comes to them."""
    for task in k.tasks:
        if caller.session.uid in (k.uid, task.uid):
            yield from list(task.contexts.values())


def sys_log(k: System, caller: Caller, args: Log) -> Done:
    """Return log records from a number on."""
    if caller.session.uid != k.uid:
        raise EPERM("only the uid that the kernel runs as may read its log")
    return Done(k.log.read(args.cursor))
