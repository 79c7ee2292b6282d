"""Handler of attach, and who waits for what a kernel has to know first.

A task that came back with this kernel (kernel/way_up.py) has no program until one shows the token
of the task's hello. What nobody attaches to within a lease ends, if it has no contexts; else it is
kept for whoever comes later, or for `llmos kill`: contexts do not vanish because a program was slow
to come. Their KV is the first to leave the device from then on.
"""

import hashlib
import hmac
import logging
from collections import deque
from math import inf

from kernel.birth import free_connection
from kernel.handler import PENDING, Done, Pending
from kernel.session import Session
from kernel.sys_task import end_task, tell_untold, welcome
from kernel.system import System
from syscalls.abi import Attach
from syscalls.errors import EBUSY, ESRCH
from syscalls.wire import Request

log = logging.getLogger(__name__)


def wait(k: System, session: Session, request: Request, known: bool = False) -> Pending:
    """Let a hello or an attach wait until it can be told what there is; `known`: its token is."""
    if any(waits is session for waits, *_ in k.comeback.waiting):
        raise EBUSY("this session has said hello already")
    k.comeback.waiting.append((session, request, known))
    return PENDING


def released(k: System) -> list[tuple[Session, Request]]:
    """Take the calls that need not wait any more, of sessions that are still there."""
    c = k.comeback
    if c.reading or not c.waiting:
        return []
    waiting, c.waiting = c.waiting, deque()
    ready = []
    for session, request, known in waiting:
        if k.sessions.get(session.route) is not session or request.call not in session.open:
            continue
        if known and c.coming(request.args.pid):
            c.waiting.append((session, request, known))
        else:
            ready.append((session, request))
    return ready


def sys_attach(k: System, session: Session, request: Request) -> Done | Pending:
    """Make a session the program of a task that came back; it waits for the task's contexts."""
    args: Attach = request.args
    if session.task is not None or session.ended:
        raise EBUSY("this session has said hello already")
    if k.comeback.reading:
        return wait(k, session, request)
    task = k.tasks.peek(args.pid)
    expected = task.token if task is not None and task.token else bytes(32)
    known = hmac.compare_digest(expected, hashlib.sha256(args.token).digest())
    if not known or task is None or task.uid != session.uid or task.lease is None:
        raise ESRCH("no task waits for a program with this pid and token", "connect() begins anew")
    if k.comeback.coming(task.pid):
        return wait(k, session, request, known)
    session.connection = task.connection = free_connection(task)
    task.lease = None
    task.session, session.task = session, task
    tell_untold(task)
    return Done(welcome(k, session, task, args.token))


def expire_leases(k: System, now: float) -> None:
    """End tasks that nobody has attached to and that have nothing; let the others' KV go first."""
    if k.comeback.under_way:
        return
    for task in k.tasks:
        if task.lease is None or now < task.lease or task.ended_already:
            continue
        if not task.contexts:
            end_task(k, task, 0, f"nobody attached to it for {k.comeback.lease_s:g} s")
            continue
        task.lease = inf
        for ctx in task.contexts.values():
            ctx.demoted = not ctx.pinned
        log.warning(
            "nobody attached to task %d (%s) for %g s; it is kept with %d contexts: llmos kill %d",
            task.pid, task.name, k.comeback.lease_s, len(task.contexts), task.pid,
        )  # fmt: skip
