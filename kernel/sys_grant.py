"""Handlers of grant_ctx, open_ctx and revoke, and what becomes of contexts that are revoked.

Revoking holds from the moment of the call: every handler and the scheduler ask a context whether it
is revoked, so none of its ids is read, scored or fed to a step any more. Its blocks go in slices,
and the call ends when the last table is empty. What ran on it ends with EREVOKED; it stays, empty,
until it is freed.
"""

from kernel.context import Context
from kernel.grant import Grant, require, revoked, unknown
from kernel.handler import PENDING, Caller, Done, Pending
from kernel.job import SLICE, Work
from kernel.sys_ctx import add_context, drop_blocks, take_handle
from kernel.sys_infer import fail_request
from kernel.system import System
from kernel.task import Task
from syscalls.abi import (
    Access,
    GrantCtx,
    GrantCtxResult,
    OpenCtx,
    OpenCtxResult,
    Revoke,
    RevokeResult,
)  # fmt: skip

CTX_COST, GRANT_COST = SLICE // 64, SLICE // 512
"""Of a context that is emptied, a grant that goes: in blocks that a slice could look at instead."""


def sys_grant_ctx(k: System, caller: Caller, args: GrantCtx) -> Done:
    """Enter a grant; nobody has opened anything yet."""
    ctx, access, now = k.context(caller.task, args.ctx), Access(args.access), k.clock()
    if ctx.grant is not None:
        require(ctx, access | Access.FORK, "to grant it on")
        if args.length is not None and args.length < ctx.foreign:
            require(ctx, Access.READ, f"to cut what it was opened with, {ctx.foreign} ids,")
    grant = Grant(caller.task.pid, ctx, access, args.length)
    grant.uid, grant.for_pid = args.uid, args.pid
    grant.opens = args.opens or None
    grant.expires = now + args.ttl_s if args.ttl_s else 0.0
    return Done(GrantCtxResult(k.grants.add(grant, now)))


def sys_open_ctx(k: System, caller: Caller, args: OpenCtx) -> Done:
    """Make a context that shares the blocks of the one that was granted."""
    take_handle(k, caller, args.ctx)
    grant, task = k.grants.find(args.grant), caller.task
    if grant is None or not grant.opens_for(task.uid, task.pid, k.clock()):
        raise unknown()
    assert grant.ctx is not None
    if grant.opens is not None:
        grant.opens -= 1
    ctx = grant.ctx.open(args.ctx, task.pid, args.name or "", task.uid, grant)
    add_context(k, caller, ctx)
    desc, model = ctx.model.desc, ctx.model
    return Done(
        OpenCtxResult(
            ctx.length, int(ctx.access), grant.pid,
            model.name, desc.max_ctx, desc.block_size, model.number,
        )
    )  # fmt: skip


def sys_revoke(k: System, caller: Caller, args: Revoke) -> Pending:
    """Take a grant of the caller's back, and with it all that was opened through it."""
    grant = k.grants.find(args.grant)
    if grant is None or grant.pid != caller.task.pid or grant.taken:
        raise unknown()
    k.jobs.start(_take_back(k, [grant], caller))
    return PENDING


def revoke_all(k: System, task: Task) -> None:
    """Take back what a task that ends has granted."""
    grants = k.grants.of_task(task.pid)
    if grants:
        k.jobs.start(_take_back(k, grants))


def _take_back(k: System, grants: list[Grant], caller: Caller | None = None) -> Work:
    """Revoke grants, and all that come from them, at once; then empty the tables, in slices."""
    for grant in grants:
        grant.revoked = True
    count = 0
    while grants:
        grant = grants[-1]
        if grant.children:
            grants.append(next(iter(grant.children)))
            continue
        while grant.contexts:
            ctx, _ = grant.contexts.popitem()
            count += 1
            yield CTX_COST
            yield from _empty(k, ctx)
        k.grants.remove(grants.pop())
        yield GRANT_COST
    if caller is not None and caller.call in caller.session.open:
        caller.session.finish(caller.call, RevokeResult(count))
    return None


def _empty(k: System, ctx: Context) -> Work:
    """End what runs on a revoked context, and drop its blocks."""
    if ctx.request is not None:
        fail_request(k, ctx.request, revoked(ctx))
    while ctx.blocks:
        yield drop_blocks(ctx)
    return None
