"""Handler of fork_task: a child with forks of its parent's contexts, whole or not at all."""

from kernel.birth import MAX_CONNECTIONS, born, issue_ticket
from kernel.context import Context
from kernel.grant import require
from kernel.handler import Caller, Done
from kernel.limits import admit
from kernel.sys_ctx import check_count, give_context
from kernel.system import System
from syscalls.abi import MAX_HANDLES, Access, ForkTask, ForkTaskResult, Resource
from syscalls.errors import E2BIG, EAGAIN, EINVAL


def sys_fork_task(k: System, caller: Caller, args: ForkTask) -> Done:
    """Make a child task that has forks of contexts, under their handles; no KV is copied."""
    task = caller.task
    contexts = _chosen(k, caller, args)
    check_count(k, len(contexts))
    admit(task.account, Resource.CONTEXTS, len(contexts))
    if len({ctx.handle >> 24 for ctx in contexts}) >= MAX_CONNECTIONS:
        raise EAGAIN("the child would have contexts of all 256 connections", "fork fewer")
    child = born(k, task, task.uid, args.name, task.account.nice)
    child.connection, child.note = caller.session.connection, args.note
    for ctx in contexts:
        give_context(k, child, ctx.fork(ctx.handle, child.pid, ctx.name))
    handles = [ctx.handle for ctx in contexts]
    return Done(ForkTaskResult(child.pid, issue_ticket(k, child), handles))


def _chosen(k: System, caller: Caller, args: ForkTask) -> list[Context]:
    """Return the contexts that are named, or all; EBADCTX, EREVOKED, EPERM, EINVAL, E2BIG."""
    handles = args.contexts or tuple(caller.task.contexts)
    if len(handles) > MAX_HANDLES:
        raise E2BIG(
            f"the task has {len(handles)} contexts, a fork takes {MAX_HANDLES}", "name some",
            {"needed": len(handles), "limit": MAX_HANDLES},
        )  # fmt: skip
    if len(set(handles)) != len(handles):
        raise EINVAL("a context is named twice")
    contexts = [k.context(caller.task, handle) for handle in handles]
    for ctx in contexts:
        require(ctx, Access.FORK, "fork_task")
    return contexts
