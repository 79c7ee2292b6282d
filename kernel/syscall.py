"""Dispatch: from a client's frames to a handler, and from its answer to an event.

Whatever arrives, the client gets exactly one terminal event for each call that it can be told
apart by. Decoding and checking cannot raise anything but BadRequest; a handler cannot raise
anything but KernelError. Anything else is our bug and stops the kernel.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from typing import Any

from kernel import (
    sys_admin,
    sys_attach,
    sys_ctx,
    sys_fork,
    sys_grant,
    sys_infer,
    sys_inspect,
    sys_limit,
    sys_memory,
    sys_model,
    sys_policy,
    sys_port,
    sys_save,
    sys_score,
    sys_signal,
    sys_task,
    sys_topic,
    sys_tree,
)  # fmt: skip
from kernel.handler import PENDING, Caller, Done, Pending
from kernel.job import Work
from kernel.session import Session
from kernel.sys_topic import flow
from kernel.system import System
from syscalls import abi
from syscalls.errors import (
    E2BIG,
    EAGAIN,
    EBUSY,
    ECANCELED,
    ENOMEM,
    EPERM,
    EPROTO,
    ESRCH,
    ESTALE,
    KernelError,
)  # fmt: skip
from syscalls.wire import BadRequest, Request, unpack_request

log = logging.getLogger(__name__)

Handler = Callable[[System, Caller, Any], Done | Pending | Work]

HANDLERS: dict[str, Handler] = {
    "spawn": sys_task.sys_spawn,
    "exit": sys_task.sys_exit,
    "wait": sys_task.sys_wait,
    "set_limit": sys_limit.sys_set_limit,
    "fork_task": sys_fork.sys_fork_task,
    "kill": sys_signal.sys_kill,
    "renice": sys_tree.sys_renice,
    "group": sys_tree.sys_group,
    "stat_task": sys_task.sys_stat_task,
    "alloc_ctx": sys_ctx.sys_alloc_ctx,
    "fork_ctx": sys_ctx.sys_fork_ctx,
    "append": sys_ctx.sys_append,
    "trim_ctx": sys_ctx.sys_trim_ctx,
    "free_ctx": sys_ctx.sys_free_ctx,
    "read_ctx": sys_ctx.sys_read_ctx,
    "stat_ctx": sys_ctx.sys_stat_ctx,
    "save_ctx": sys_save.sys_save_ctx,
    "load_ctx": sys_save.sys_load_ctx,
    "list_saves": sys_save.sys_list_saves,
    "drop_save": sys_save.sys_drop_save,
    "grant_ctx": sys_grant.sys_grant_ctx,
    "open_ctx": sys_grant.sys_open_ctx,
    "revoke": sys_grant.sys_revoke,
    "infer": sys_infer.sys_infer,
    "cancel": sys_infer.sys_cancel,
    "score": sys_score.sys_score,
    "bind": sys_port.sys_bind,
    "call": sys_port.sys_call,
    "recv": sys_port.sys_recv,
    "reply": sys_port.sys_reply,
    "publish": sys_topic.sys_publish,
    "subscribe": sys_topic.sys_subscribe,
    "load_model": sys_model.sys_load_model,
    "unload_model": sys_model.sys_unload_model,
    "list_models": sys_model.sys_list_models,
    "read_model": sys_model.sys_read_model,
    "list_devices": sys_model.sys_list_devices,
    "snapshot": sys_inspect.sys_snapshot,
    "advise_ctx": sys_memory.sys_advise_ctx,
    "drop_cache": sys_memory.sys_drop_cache,
    "explain": sys_memory.sys_explain,
    "pmap": sys_inspect.sys_pmap,
    "log": sys_inspect.sys_log,
    "set_policy": sys_policy.sys_set_policy,
    "shutdown": sys_admin.sys_shutdown,
}
"""hello and attach are not here: they are the calls of a session without a task."""

MAX_STRIKES = 3
"""Messages that are not of this ABI, before the session is closed."""

LIMITS = (EAGAIN, ENOMEM, E2BIG)
"""Errors of a call that are a limit's; whoever runs the kernel may want to know, and raise it."""

_CREDIT = frozenset({"call", "publish"})
"""Calls that other tasks hold back: that is between them."""
_ON_CONTEXT = frozenset({"append", "trim_ctx", "infer", "score"})
_WORK = _ON_CONTEXT | {
    "spawn", "fork_task", "alloc_ctx", "fork_ctx", "advise_ctx", "save_ctx", "load_ctx",
    "load_model", "unload_model", "grant_ctx", "open_ctx", "publish", "subscribe",
}  # fmt: skip
"""What a kernel that saves everything and stops does not take any more."""
_RELIEF = frozenset({"exit", "cancel", "free_ctx", "kill", "revoke", "reply"})
"""What a client that is at its limits may still call: it brings it below them."""


def receive(k: System, session: Session, frames: Sequence[bytes]) -> None:
    """Handle one message of a client."""
    if session.strikes >= MAX_STRIKES:
        return  # told already; the session is being closed
    try:
        request = unpack_request(frames)
    except BadRequest as bad:
        _refuse(k, session, bad)
        return
    k.counters.calls += 1
    if _is_new(session, request):
        session.accept(request.call, request.row)
        run(k, session, request)


def _refuse(k: System, session: Session, bad: BadRequest) -> None:
    k.counters.protocol_errors += 1
    error = bad.error
    if isinstance(error, EPROTO):
        session.strikes += 1
        if session.strikes == MAX_STRIKES:
            error = EPROTO(f"{error.message}; that was message {MAX_STRIKES} of this kind, goodbye")
            k.closing.append((session, error))
    if session.strikes < MAX_STRIKES and bad.call not in session.open:
        session.refuse(bad.call, error)  # an open call goes on, and has its own end
    session.skip(bad.call)


def _is_new(session: Session, request: Request) -> bool:
    """See whether the call id is new; a repeated call is answered from what is kept."""
    call = request.call
    if call > session.last_call:
        return True
    if call in session.open or session.kept(call):
        return False
    if request.row.idempotent:
        return True
    session.refuse(
        call, ESTALE(f"call {call} has ended and its result is no longer kept ({abi.KEPT_RESULTS})")
    )
    return False


def run(k: System, session: Session, request: Request, queued: bool = False) -> None:
    """Run an accepted call, and end it unless it stays pending; `queued`: it has waited."""
    try:
        answer = _invoke(k, session, request, queued)
        if isinstance(answer, Generator):
            answer = k.jobs.start(answer, session, request.call)
    except KernelError as error:
        if isinstance(error, LIMITS) and request.row.name not in _CREDIT:
            name, pid = request.row.name, session.host_pid
            kind = f"{name} refused by a limit ({error.errno.name})"
            k.bursts.tell(log, logging.WARNING, kind, f"program {pid}: {error.message}")
        session.fail(request.call, error)
        return
    if answer is not PENDING:
        assert isinstance(answer, Done)
        session.finish(request.call, answer.result, answer.ids)


def _invoke(k: System, session: Session, request: Request, queued: bool) -> Done | Pending | Work:
    if request.flags & abi.Flag.CHAIN and session.broken(request.call):
        raise ECANCELED("the call before it failed")
    if request.row.name == "hello":
        if k.comeback.reading:
            return sys_attach.wait(k, session, request)
        return sys_task.sys_hello(k, session, request.args)
    if request.row.name == "attach":
        return sys_attach.sys_attach(k, session, request)
    if session.task is None:
        raise (ESRCH(session.ended) if session.ended else EPERM("say hello first"))
    if request.row.name not in _RELIEF:
        _limit(k, session)
    if k.hibernation is not None and request.row.name in _WORK and not queued:
        raise ECANCELED("the kernel saves all tasks, and stops", "again, if it does not stop")
    caller = Caller(session, session.task, request.call, request.ids)
    if request.row.name in _ON_CONTEXT and not queued and _queue(k, caller, request):
        return PENDING
    return HANDLERS[request.row.name](k, caller, request.args)


def _limit(k: System, session: Session) -> None:
    """Refuse a call of a client that has too much open or unread."""
    if session.unread > k.config.unread_bytes:
        raise EAGAIN(f"{session.unread} bytes are unread, the limit is {k.config.unread_bytes}")
    if len(session.open) > k.config.max_calls:
        raise EAGAIN(f"{len(session.open)} unfinished calls, the limit is {k.config.max_calls}")


def _queue(k: System, caller: Caller, request: Request) -> bool:
    """Let a call with QUEUE wait behind the context's infer; refuse one that would overtake."""
    ctx = caller.task.contexts.get(request.args.ctx)
    if ctx is None or ctx.revoked:
        return False
    if request.flags & abi.Flag.QUEUE and (ctx.busy or ctx.queued):
        if request.ids:
            sys_infer.check_room(ctx, len(request.ids), 0)  # what can never fit does not wait
        ctx.queued.append((caller.session, request))
        return True
    if ctx.queued:
        raise EBUSY(f"{len(ctx.queued)} calls are queued on context {ctx.handle}", "set QUEUE")
    return False


def run_queued(k: System) -> None:
    """Run the calls whose context has become free, in the order in which they came."""
    while k.again:
        ctx = k.again.popleft()
        flow(k, ctx)
        while ctx.queued and not ctx.busy:
            session, request = ctx.queued.popleft()
            if request.call in session.open:
                run(k, session, request, queued=True)
