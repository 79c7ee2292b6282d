"""Handlers of advise_ctx, drop_cache and explain: what programs say and ask of their KV's place."""

from collections.abc import Callable, Generator

from kernel import limits
from kernel.block import NOT_RESIDENT
from kernel.context import Context, Loss
from kernel.handler import Caller, Done
from kernel.job import SLICE, Work
from kernel.pager import Pager
from kernel.request import RequestState
from kernel.system import System
from kernel.task import Task, TaskState
from syscalls.abi import (
    Advice,
    AdviseCtx,
    AdviseCtxResult,
    DropCache,
    DropCacheResult,
    Explain,
    ExplainResult,
    LossRow,
    Resource,
)  # fmt: skip
from syscalls.errors import EDQUOT, EINVAL, ESRCH

MOVES = 256
"""Blocks that are moved in one turn: about a millisecond."""
Moving = Generator[int, None, int]
"""Ends with the blocks that it is about."""


def sys_advise_ctx(k: System, caller: Caller, args: AdviseCtx) -> Work:
    """Note what a context's KV is needed for, and act on it."""
    ctx = k.context(caller.task, args.ctx)
    verbs: dict[str, Callable[[System, Context, AdviseCtx], Moving]] = {
        Advice.PREFETCH.value: _prefetch,
        Advice.DEMOTE.value: _demote,
        Advice.PIN.value: _pin,
        Advice.UNPIN.value: _unpin,
        Advice.RETAIN.value: _retain,
    }
    verb = verbs.get(args.advice)
    if verb is None:
        raise EINVAL(f"there is no advice {args.advice}; there are {', '.join(verbs)}")
    if args.ttl_s and args.advice != Advice.RETAIN.value:
        raise EINVAL(f"{args.advice} takes no ttl_s", "retain does")
    ctx.model.require()
    return Done(AdviseCtxResult((yield from verb(k, ctx, args))))


def _prefetch(k: System, ctx: Context, args: AdviseCtx) -> Moving:
    ctx.demoted = False
    pager: Pager = ctx.model.sched.pager
    return (yield from _in_slices(ctx, pager.prefetch))


def _demote(k: System, ctx: Context, args: AdviseCtx) -> Moving:
    if ctx.pinned:
        raise EINVAL(f"context {ctx.handle} is pinned", "unpin it first")
    ctx.demoted = True
    pager: Pager = ctx.model.sched.pager

    def demote(ctx: Context, most: int) -> int:
        return 0 if ctx.busy or ctx.pinned else pager.demote(ctx, most)

    return (yield from _in_slices(ctx, demote))


def _in_slices(ctx: Context, move: Callable[[Context, int], int]) -> Moving:
    """Move some blocks in each turn, until there are none left to move; return how many."""
    count = moved = move(ctx, MOVES)
    while moved == MOVES:
        yield SLICE
        moved = 0 if ctx.gone else move(ctx, MOVES)
        count += moved
    return count


def _pin(k: System, ctx: Context, args: AdviseCtx) -> Moving:
    pager: Pager = ctx.model.sched.pager
    pinned, limit, count = pager.pinned, pager.pin_limit, len(ctx.blocks)
    if not ctx.pinned and pinned + count > limit:
        raise EDQUOT(
            f"{pinned} blocks are pinned, with this context it would be {pinned + count}; "
            f"the limit is {limit}, half of the pool",
            "unpin another context, or retain this one for some time",
            {"needed": pinned + count, "limit": limit},
        )
    if not ctx.pinned:
        limits.admit(ctx.account, Resource.PINNED_BLOCKS, count)
    ctx.demoted = False
    pager.pin(ctx)
    yield from _in_slices(ctx, pager.prefetch)
    return count


def _unpin(k: System, ctx: Context, args: AdviseCtx) -> Moving:
    count = len(ctx.blocks) if ctx.pinned else 0
    ctx.model.sched.pager.unpin(ctx)
    yield 1
    return count


def _retain(k: System, ctx: Context, args: AdviseCtx) -> Moving:
    if not args.ttl_s:
        raise EINVAL("retain needs ttl_s, seconds above 0")
    ctx.retained_until, ctx.demoted = k.clock() + args.ttl_s, False
    ctx.model.sched.pager.used(ctx)
    yield 1
    return len(ctx.blocks)


def sys_drop_cache(k: System, caller: Caller, args: DropCache) -> Work:
    """Give up the cached blocks of the caller's user, on all tiers of all models."""
    owner, count = caller.task.uid, 0
    last = k.graves[-1] if k.graves else None
    while last is not None and last.blocks:  # what was freed before this call goes, too
        yield SLICE
    for model in k.device.models:
        if model.loaded:
            count += yield from model.pool.drop_cached(owner)
    return Done(DropCacheResult(count))


def sys_explain(k: System, caller: Caller, args: Explain) -> Work:
    """Say what a context waits for, and what became of its KV."""
    task = k.tasks.find(args.pid) if args.pid else caller.task
    if caller.session.uid not in (k.uid, task.uid):
        raise ESRCH(f"there is no task {args.pid}", "llmos ps lists them")
    ctx = k.context(task, args.ctx)
    computed, pool = ctx.computed, ctx.pool
    device = sum(block.filled for block in ctx.blocks)
    away = [block for block in ctx.blocks if block.id == NOT_RESIDENT]
    host = sum(block.kept for block in away)
    disk = sum(block.have for block in away if not block.kept)
    yield 1 + len(ctx.blocks)
    state, why, needed = _waits(ctx, task)
    free = pool.num_free + pool.num_cached
    rows = [_row(k, caller, loss) for loss in reversed(ctx.losses)]
    return Done(
        ExplainResult(
            ctx.pid, ctx.handle, state, why, needed, free, computed,
            min(device, ctx.length), min(host, ctx.length), disk, rows,
        )
    )  # fmt: skip


def _waits(ctx: Context, task: Task) -> tuple[str, str, int]:
    """Return the state of what runs on a context, and in words what that waits for."""
    request = ctx.request
    if request is None:
        calls = task.mail.waits_for if task.mail is not None else ""
        return "", f"nothing runs on it{calls and f': its task waits for {calls}'}", 0
    state = request.shown.value
    if task.state is TaskState.STOPPED:
        return state, "its task is stopped (llmos kill -CONT)", 0
    if request.held:
        return state, "its program does not read", 0
    if request.awaits_grammar:
        return state, "its grammar, which is being compiled", 0
    if request.shown is RequestState.BLOCKED:
        if not request.lacks:
            return state, "copies from a lower tier that are on their way", 0
        return state, f"{request.lacks} blocks of the device", request.lacks
    if request.shown is RequestState.QUEUED:
        return state, "its turn in a step", 0
    return state, "the step that is running", 0


def _row(k: System, caller: Caller, loss: Loss) -> LossRow:
    by = loss.by_pid if _may_know(k, caller, loss.by_pid) else 0
    return LossRow(
        k.clock() - loss.at, loss.what, loss.why, loss.start, loss.tokens, by, loss.cost_us
    )


def _may_know(k: System, caller: Caller, pid: int) -> bool:
    """Whether the caller may know of a task: it sees its own user's, the operator sees all."""
    if caller.session.uid == k.uid:
        return True
    return any(task.pid == pid and task.uid == caller.task.uid for task in k.tasks)
