"""Handlers of the context calls. They change ids; KV follows when the scheduler runs."""

from collections.abc import Generator

from kernel import limits, quota
from kernel.context import Context
from kernel.grant import require
from kernel.handler import Caller, Done
from kernel.job import Work
from kernel.ledger import charge, holds
from kernel.pool import CHUNK, DROP_COST
from kernel.request import Request, RequestState
from kernel.sys_infer import check_ids, check_room, drop_request, refuse_busy
from kernel.system import System
from kernel.tally import tally
from kernel.task import Task, TaskState
from syscalls import abi
from syscalls.abi import (
    Access,
    AllocCtx,
    AllocCtxResult,
    Append,
    CtxRow,
    ForkCtx,
    ForkCtxResult,
    FreeCtx,
    LengthResult,
    Nothing,
    ReadCtx,
    ReadCtxResult,
    Resource,
    StatCtx,
    TrimCtx,
)  # fmt: skip
from syscalls.errors import E2BIG, EAGAIN, EEXIST, EINVAL, ENOTSUP


def sys_alloc_ctx(k: System, caller: Caller, args: AllocCtx) -> Done:
    """Make an empty context."""
    if args.durable:
        raise ENOTSUP("durable contexts are reserved, and not built in this kernel")
    model = k.model(args.model)
    take_handle(k, caller, args.ctx)
    name = args.name or ""
    ctx = Context(args.ctx, caller.task.pid, name, model, model.pool, caller.task.uid)
    add_context(k, caller, ctx)
    desc = model.desc
    return Done(AllocCtxResult(model.name, desc.max_ctx, desc.block_size, model.number))


def sys_fork_ctx(k: System, caller: Caller, args: ForkCtx) -> Done:
    """Make a context with the same ids; no KV is copied, whatever the length."""
    ctx = k.context(caller.task, args.ctx)
    require(ctx, Access.FORK, "fork_ctx")
    take_handle(k, caller, args.child)
    child = ctx.fork(args.child, caller.task.pid, args.name or "")
    add_context(k, caller, child)
    return Done(ForkCtxResult(child.length, len(child.blocks)))


def take_handle(k: System, caller: Caller, handle: int) -> None:
    """Check a handle that the client chose, and that one more context may exist."""
    session = caller.session
    if handle >> 24 != session.connection:
        raise EINVAL(f"handle {handle} is not of connection {session.connection}")
    if handle in caller.task.contexts:
        raise EEXIST(f"handle {handle} is in use")
    if handle <= session.last_handle:
        raise EINVAL(f"handle {handle} does not rise: the last was {session.last_handle}")
    check_count(k)
    limits.admit(caller.task.account, Resource.CONTEXTS, 1)


def check_count(k: System, more: int = 1) -> None:
    """Raise EAGAIN unless so many more contexts may exist.

    One counts until its blocks are given back, and while it is being saved.
    """
    exist = k.num_contexts + len(k.graves) + len(k.floating)
    if exist + more > k.config.max_contexts:
        raise EAGAIN(
            f"{exist} contexts exist, the limit is {k.config.max_contexts}",
            "free some contexts, or wait for what is being saved",
        )


def add_context(k: System, caller: Caller, ctx: Context) -> None:
    """Give the caller's task a new context."""
    caller.session.last_handle = ctx.handle
    give_context(k, caller.task, ctx)


def give_context(k: System, task: Task, ctx: Context) -> None:
    """Give a task a context."""
    task.contexts[ctx.handle] = ctx
    ctx.account = task.account
    holds(ctx.account, 1)
    ctx.last_use = k.counters.turns
    ctx.stopped = task.state is TaskState.STOPPED
    k.num_contexts += 1
    ctx.model.num_contexts += 1
    ctx.model.sched.pager.used(ctx)
    k.grants.opened(ctx)


def sys_append(k: System, caller: Caller, args: Append) -> Done:
    """Add ids; their prefill starts in the background, if there is room for it."""
    ctx = k.context(caller.task, args.ctx)
    require(ctx, Access.INFER, "append")
    refuse_busy(ctx)
    ctx.model.require()
    ids = caller.ids
    if not ids:
        raise EINVAL("append needs ids in frame 2")
    check_room(ctx, ctx.length + len(ids), 0)
    check_ids(ctx, ids)
    quota.admit_ids(k, caller, ctx, ctx.length + len(ids))
    ctx.append(ids)
    charge(caller.task.payer, "input_ids", len(ids))
    ctx.last_use = k.counters.turns
    prefill(k, caller.task, ctx)
    return Done(LengthResult(ctx.length))


def prefill(k: System, task: Task, ctx: Context) -> None:
    """Let the ids of a context be computed in the background, if they are not and nothing runs."""
    if ctx.request is not None or ctx.planned >= ctx.length - 1 or ctx.model.sched.crowded:
        return
    request = Request(next(k.arrivals), ctx, None, task.session, 0, 0, task.payer, task.rank)
    if task.state is TaskState.STOPPED:
        request.held = "signal"
    ctx.model.sched.add(request)


def sys_trim_ctx(k: System, caller: Caller, args: TrimCtx) -> Done:
    """Drop ids from the end."""
    ctx = k.context(caller.task, args.ctx)
    refuse_busy(ctx)
    if args.length > ctx.length:
        raise EINVAL(f"the context has {ctx.length} ids, it cannot be trimmed to {args.length}")
    if args.length < ctx.foreign:  # what comes after each of them would tell what they are
        require(ctx, Access.READ, f"to trim what it was opened with, {ctx.foreign} ids,")
    ctx.trim(args.length)
    ctx.last_use = k.counters.turns
    return Done(LengthResult(ctx.length))


def sys_free_ctx(k: System, caller: Caller, args: FreeCtx) -> Done:
    """Give a context back; what runs on it ends with ECANCELED, its load included."""
    if args.ctx in caller.task.loading:
        caller.task.loading.discard(args.ctx)
        return Done(Nothing())
    ctx = k.context(caller.task, args.ctx, revoked=True)
    free_context(k, caller.task, ctx, f"context {ctx.handle} was freed")
    return Done(Nothing())


def free_context(k: System, task: Task, ctx: Context, why: str) -> None:
    """End what runs on the context and forget it; give the blocks of a long one back in slices."""
    _forget(k, task, ctx, why)
    if len(ctx.blocks) <= CHUNK:
        ctx.free()
    else:
        _bury(k, [ctx])


def free_contexts(k: System, task: Task, why: str) -> None:
    """Forget all contexts of a task that ends; give the blocks of many back in slices."""
    contexts = list(task.contexts.values())
    for ctx in contexts:
        _forget(k, task, ctx, why)
    _bury(k, contexts)


def _forget(k: System, task: Task, ctx: Context, why: str) -> None:
    del task.contexts[ctx.handle]
    if ctx.feed is not None:
        k.topics.remove(ctx.feed)
        ctx.feed = None
    drop_request(k, ctx, why)
    ctx.gone = True
    ctx.model.sched.pager.idle.forget(ctx)
    holds(ctx.account, -1)
    k.num_contexts -= 1
    ctx.model.num_contexts -= 1
    k.grants.freed(ctx, k.clock())


def _bury(k: System, contexts: list[Context]) -> None:
    idle = not k.graves
    k.graves += contexts
    if idle:
        k.jobs.start(_give_back(k))


def _give_back(k: System) -> Work:
    while k.graves:
        ctx = k.graves[0]
        cost = 1 + drop_blocks(ctx)
        if not ctx.blocks:
            k.graves.popleft()
        yield cost
    return None


def drop_blocks(ctx: Context) -> int:
    """Drop the last blocks of a context that goes; return what that cost (kernel/job.py)."""
    pool, before = ctx.pool, ctx.pool.named
    keep = max(0, len(ctx.blocks) - CHUNK)
    count = len(ctx.blocks) - keep
    ctx.trim(min(ctx.length, keep * pool.block_size))
    return count + DROP_COST * (before - pool.named)


def sys_read_ctx(k: System, caller: Caller, args: ReadCtx) -> Done:
    """Return committed ids."""
    ctx = k.context(caller.task, args.ctx)
    if args.start > ctx.length:
        raise EINVAL(f"the context has {ctx.length} ids, it cannot be read from {args.start}")
    if args.start < ctx.foreign:
        require(ctx, Access.READ, f"read_ctx of what it was opened with, {ctx.foreign} ids,")
    count = ctx.length - args.start
    if args.max_ids is not None:
        count = min(count, args.max_ids)
    if count > abi.MAX_IDS:
        raise E2BIG(f"{count} ids, a reply holds {abi.MAX_IDS}", "read in parts: start, max_ids")
    ids = ctx.read(args.start, args.start + count)
    return Done(ReadCtxResult(args.start, ctx.length), ids)


def sys_stat_ctx(k: System, caller: Caller, args: StatCtx) -> Work:
    """Describe a context."""
    return Done((yield from ctx_row(k, k.context(caller.task, args.ctx, revoked=True))))


def ctx_row(k: System, ctx: Context) -> Generator[int, None, CtxRow]:
    """Return a context as the inspection tools show it."""
    length, computed, busy = ctx.length, ctx.computed, ctx.busy  # as of the call
    state = ctx.request.shown.value if ctx.request else ""
    lacks = ctx.request.lacks if state == RequestState.BLOCKED.value else 0
    sums = yield from tally([ctx.blocks], ctx.pool.block_size)
    return CtxRow(
        ctx.handle,
        ctx.pid,
        ctx.name,
        ctx.model.name,
        length,
        computed,
        ctx.model.desc.max_ctx,
        sums.blocks,
        sums.shared,
        sums.share,
        busy,
        ctx.model.device,
        state,
        sums.share * ctx.model.desc.block_bytes,
        sums.host,
        sums.disk,
        ctx.pinned,
        lacks,
        ctx.grant.pid if ctx.grant is not None else 0,
        ctx.revoked,
        int(ctx.access),
        ctx.pool.block_size,
        ctx.model.number,
    )
