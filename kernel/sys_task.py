"""Handlers of the task calls, and how a task ends."""

import hashlib
import hmac
from collections.abc import Generator
from itertools import islice

from kernel.birth import born, free_connection, issue_ticket
from kernel.handler import PENDING, Caller, Done, Pending
from kernel.job import Work
from kernel.session import Session
from kernel.sys_ctx import free_contexts
from kernel.sys_grant import revoke_all
from kernel.sys_infer import cancel_queued, finish_request
from kernel.sys_port import cancel_waiters, end_mail, wake_receivers
from kernel.system import System
from kernel.tally import tally
from kernel.task import INIT, Task, TaskState, tell_signal
from kernel.tree import group_of
from syscalls import abi
from syscalls.abi import (
    Event,
    Exit,
    Finish,
    Hello,
    HelloResult,
    Nothing,
    Sig,
    Spawn,
    SpawnResult,
    StatTask,
    TaskRow,
    Wait,
    WaitResult,
)  # fmt: skip
from syscalls.errors import EBUSY, ECANCELED, ENOTSUP, ESRCH, ESTALE

VERSION = "0.1.0"


def sys_hello(k: System, session: Session, args: Hello) -> Done:
    """Give the session its task: a new child of init, or the one that the ticket is for."""
    if session.task is not None or session.ended:
        raise EBUSY("this session has said hello already")
    if args.durable:
        raise ENOTSUP("durable tasks are reserved, and not built in this kernel")
    if args.on_behalf is not None:
        raise ENOTSUP("acting for others is reserved, and not built in this kernel")
    if args.ticket is None:
        task = born(k, k.tasks.find(INIT), session.uid, args.name)
    else:
        task = _redeem(k, session, args.ticket)
    task.become(TaskState.LIVE)
    task.session, session.task, task.grace_s = session, task, args.grace_s
    if task.contexts:
        session.connection = task.connection = free_connection(task)
    tell_untold(task)
    token = k.attach_token(task.pid)
    task.token = hashlib.sha256(token).digest()
    return Done(welcome(k, session, task, token))


def welcome(k: System, session: Session, task: Task, token: bytes) -> HelloResult:
    """Return what a program is told that becomes a task."""
    limits = abi.MAX_FRAME, abi.MAX_IDS
    contexts = tuple(islice(task.contexts, abi.MAX_HANDLES))
    note, task.note = task.note, b""
    return HelloResult(
        task.pid, session.connection, k.kernel_pid, VERSION, *limits, token, contexts, note
    )


def _redeem(k: System, session: Session, ticket: bytes) -> Task:
    digest = hashlib.sha256(ticket).digest()
    for task in k.tasks:
        if task.ticket and hmac.compare_digest(task.ticket, digest):
            if task.uid != session.uid:
                break
            task.ticket = b""
            return task
    raise ESTALE("the ticket is not valid: used, expired, or never issued", "spawn again")


def sys_spawn(k: System, caller: Caller, args: Spawn) -> Done:
    """Make a child task, and a ticket with which one program can become it."""
    if args.detached:
        raise ENOTSUP("detached tasks are reserved, and not built in this kernel")
    task = born(k, caller.task, caller.task.uid, args.name, args.nice, args.group)
    return Done(SpawnResult(task.pid, issue_ticket(k, task)))


def sys_exit(k: System, caller: Caller, args: Exit) -> Done:
    """End the calling task, and with it the session, once the answer is out."""
    caller.session.over = True
    end_task(k, caller.task, args.status, "exit", but=caller.call)
    return Done(Nothing())


def sys_wait(k: System, caller: Caller, args: Wait) -> Done | Pending:
    """Return a child that has ended and forget it, or wait for one."""
    children = [child for child in k.tasks.children(caller.task.pid) if args.pid in (0, child.pid)]
    if not children:
        which = f"no child {args.pid}" if args.pid else "no children"
        raise ESRCH(f"task {caller.task.pid} has {which}")
    for child in children:
        if child.ended_already:
            k.tasks.remove(child)
            return Done(WaitResult(child.pid, child.status, child.reason))
    if args.no_hang:
        return Done(WaitResult(0, 0, ""))
    caller.task.waits.append((caller.call, args.pid))
    return PENDING


def stop_task(k: System, task: Task) -> None:
    """Take the task out of the next step; its KV is first to go when blocks run out."""
    if task.state is not TaskState.LIVE:
        return
    task.become(TaskState.STOPPED)
    for ctx in task.contexts.values():
        ctx.stopped = True
        ctx.model.sched.pager.idle.first(ctx)
        if ctx.request is not None:
            ctx.request.held = "signal"


def continue_task(k: System, task: Task) -> None:
    """Let a stopped task run again, unless it is being ended."""
    if task.state is not TaskState.STOPPED or task.ending:
        return
    task.become(TaskState.LIVE)
    for ctx in task.contexts.values():
        ctx.stopped = False
        if ctx.request is not None:
            ctx.request.held = ""
    wake_receivers(k, task)


def interrupt_task(k: System, task: Task, signal: Sig) -> None:
    """Cancel what a task waits for, infers, children and messages, and tell its program."""
    for ctx in list(task.contexts.values()):
        cancel_queued(ctx)
        if ctx.busy:
            finish_request(k, ctx.request, Finish.CANCELLED)
    for call, _ in task.waits:
        task.session.fail(call, ECANCELED(f"the task got the signal {signal.name}"))
    task.waits.clear()
    cancel_waiters(k, task, f"the task got the signal {signal.name}")
    tell_signal(task, signal)


def tell_untold(task: Task) -> None:
    """Tell a program that has come now of the signals that it has missed."""
    untold, task.untold = task.untold, {}
    for signal in untold:
        tell_signal(task, signal)


def end_task(k: System, task: Task, status: int, reason: str, but: int = 0) -> None:
    """End a task: contexts freed, calls ended (all but `but`), children orphaned, parent told."""
    if task.ended_already:
        return
    free_contexts(k, task, f"task {task.pid} ended: {reason}")
    revoke_all(k, task)
    end_mail(k, task, f"task {task.pid} ({task.name}) ended: {reason}")
    session, task.session = task.session, None
    if session is not None:
        session.task, session.ended = None, f"task {task.pid} ended: {reason}"
        _end_calls(k, session, but)
        if reason != "exit":
            session.emit(Event.EXIT, 0, task.pid, status, reason)
    task.ticket, task.status, task.reason, task.ended = b"", status, reason, k.clock()
    task.waits.clear()
    task.become(TaskState.ZOMBIE)
    k.tasks.accounts.close(task.account)
    for child in k.tasks.children(task.pid):
        _orphan(k, child)
    _tell_parent(k, task)


def _end_calls(k: System, session: Session, but: int) -> None:
    for call in list(session.open):
        if call != but:
            session.fail(call, ECANCELED(session.ended))


def _orphan(k: System, child: Task) -> None:
    k.tasks.adopt(child, INIT)
    if child.ended_already:
        k.tasks.remove(child)
    elif child.state is TaskState.NEW:
        end_task(k, child, 0, "never started, and its parent ended")


def _tell_parent(k: System, task: Task) -> None:
    """Answer the parent's wait, keep a zombie for a later one, or leave at once (init)."""
    if task.parent == INIT:
        k.tasks.remove(task)
        return
    parent = k.tasks.find(task.parent)
    waiting = next((wait for wait in parent.waits if wait[1] in (0, task.pid)), None)
    if waiting is None:
        if parent.session is not None:
            parent.session.emit(Event.EXIT, 0, task.pid, task.status, task.reason)
        return
    parent.waits.remove(waiting)
    k.tasks.remove(task)
    parent.session.finish(waiting[0], WaitResult(task.pid, task.status, task.reason))
    _fail_idle_waits(k, parent)


def _fail_idle_waits(k: System, parent: Task) -> None:
    """End the waits of a task for which no child is left."""
    children = {child.pid for child in k.tasks.children(parent.pid)}
    for call, pid in list(parent.waits):
        if not children or (pid and pid not in children):
            parent.waits.remove((call, pid))
            parent.session.fail(call, ESRCH(f"task {parent.pid} has no such child any more"))


def expire_tasks(k: System, now: float) -> None:
    """End tasks whose ticket nobody used, or whose grace is over; forget zombies."""
    for task in k.tasks:
        if task.ticket and now >= task.ticket_expires:
            end_task(k, task, 0, f"nobody used its ticket for {k.config.ticket_s:g} s")
        elif now >= task.ends_by and not task.ended_already:
            end_task(k, task, 128 + Sig.TERM, Sig.TERM.name)
        elif task.ended_already and now >= task.ended + k.config.zombie_s:
            k.tasks.remove(task)


def sys_stat_task(k: System, caller: Caller, args: StatTask) -> Work:
    """Describe a task."""
    task = k.tasks.find(args.pid) if args.pid else caller.task
    return Done((yield from task_row(k, task)))


def task_row(k: System, task: Task) -> Generator[int, None, TaskRow]:
    """Return a task as ps shows it. What ended tasks have not given back yet is init's, and what is
    being saved or loaded."""
    graves = (*k.graves, *k.floating) if task.pid == INIT else ()
    held = list(task.contexts.values())
    share, shared, kv_bytes, tokens, models = 0.0, 0, 0.0, 0, set[str]()
    swapped = 0.0
    for ctx in held:
        tokens += ctx.length
        models.add(ctx.model.name)
    for ctx in (*held, *graves):
        sums = yield from tally([ctx.blocks], ctx.pool.block_size)
        share += sums.share
        shared += sums.shared
        swapped += sums.host_share + sums.disk_share
        kv_bytes += sums.share * ctx.model.desc.block_bytes
    letter, wait = task.letter()
    host = task.session.host_pid if task.session else 0
    return TaskRow(
        task.pid, task.parent, task.uid, task.name, letter, wait, task.account.nice, len(held),
        tokens, share, shared, task.prompt_tokens, task.output_tokens, k.clock() - task.born, host,
        kv_bytes, ",".join(sorted(models)), swapped, task.lacks, task.cached_tokens,
        task.account.usage.device_us, group_of(task),
    )  # fmt: skip
