"""The way down with everything saved: shutdown with `save` (kernel/hibernation.py has its states).

Programs may only look, and give up what they have, from the call on. When the grace is over the
infers that still run are cancelled, with what they have kept. Then every context of every task is
saved as it is, one after the other; KV that several of them share is saved once. Then the record
(kernel/journal.py) is written, and the kernel stops. What fails before that undoes all of it, and
the kernel goes on.
"""

import logging
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from math import inf
from typing import Any

from drivers.store import base
from kernel import books, journal, limits, saving
from kernel.context import Context
from kernel.errand import PAUSE, Errand
from kernel.grant import check_revoked, require
from kernel.handler import PENDING, Caller, Done, Pending
from kernel.hibernation import Hibernation, Phase
from kernel.journal import CtxEntry, Damaged, Head, ModelEntry, TaskEntry
from kernel.model import Model
from kernel.standing import place_of
from kernel.sys_infer import cancel_queued, finish_request
from kernel.system import System
from kernel.task import INIT, Task, TaskState
from syscalls.abi import Access, Event, Finish, Shutdown
from syscalls.errors import EAGAIN, EBUSY, ECONNRESET, ENOENT, EPERM, EREVOKED, KernelError

log = logging.getLogger(__name__)

SLICE = 128
"""Rows of the record that one turn writes."""
LOOKED_AT = 4096
"""Contexts that one turn looks at, to see which are there."""
MAX_RECORDS = 5
"""That are written because contexts have gone meanwhile."""
STOPPED = "the kernel has saved its tasks and contexts, and stopped"
HINT = "llmos up, then Task.reattach()"

Steps = Generator[Any, Any, None]


def begin(k: System, caller: Caller, args: Shutdown) -> Pending:
    """Begin to go down; ENOTSUP, EIO, EAGAIN, EBUSY, and nothing has changed."""
    k.store.require()
    if k.hibernation is not None or k.stop_by is not None:
        raise EBUSY("the kernel is being stopped already")
    if k.comeback.under_way:
        raise EAGAIN("contexts of the kernel before are being brought back", "llmos status")
    if k.comeback.num_waiting and not args.replace:
        raise EBUSY(
            f"{k.comeback.num_waiting} contexts that were saved before wait for another kernel",
            "llmos down and llmos up bring them back; --replace gives their places up, and they "
            "stay as saves: llmos ctx saves",
        )
    mark = k.random.randbytes(8).hex()
    k.hibernation = Hibernation(caller.session, caller.call, k.clock() + args.grace_s, mark)
    return PENDING


def go_on(k: System, now: float) -> None:
    """End the grace when no infer runs, or when it is over."""
    h = k.hibernation
    if h is None or h.phase is not Phase.GRACE:
        return
    infers = [request for request in k.device.requests if not request.background]
    if infers and now < h.by:
        return
    for request in infers:
        cancel_queued(request.ctx)
        finish_request(k, request, Finish.CANCELLED)
    h.phase = Phase.SAVING
    k.errands.start(_hibernate(k, h), h.session, h.call)


def _hibernate(k: System, h: Hibernation) -> Errand:
    try:
        yield from _save_all(k, h)
        yield from _write_books(k)
        yield from _write_record(k, h)
        yield from _drop_given_up(k, h)
    except KernelError as error:
        log.error("not stopped: %s", error.message)
        yield from _undo(k, h)
        k.hibernation = None
        raise
    h.phase = Phase.SAVED
    r = h.result
    log.info("%d tasks with %d contexts saved, %d bytes", r.tasks, r.contexts, r.file_bytes)
    return Done(r)


def _write_books(k: System) -> Steps:
    """Write what users have used; without it they are charged a little less."""
    try:
        yield from books.write(k)
    except KernelError as error:
        log.error("the ledger of users is not kept: %s", error.message)


# --- contexts ---------------------------------------------------------------------------------


def _save_all(k: System, h: Hibernation) -> Steps:
    h.tasks = [task for task in k.tasks if _stays(task, h)]
    total, done = sum(len(task.contexts) for task in h.tasks), 0
    for task in h.tasks:
        for ctx in list(task.contexts.values()):
            if done % SLICE == 0:
                yield PAUSE
            if _there(task, ctx):
                yield from _keep(k, h, task, ctx)
            done += 1
            _tell(h, "contexts", done, total)
            _tell(h, "bytes", h.result.file_bytes, 0)


def _keep(k: System, h: Hibernation, task: Task, ctx: Context) -> Steps:
    """Save a context, unless it holds what is another task's, and may not be copied."""
    try:
        check_revoked(ctx)
        if ctx.foreign:
            require(ctx, Access.READ | Access.COPY, "a save")
        if ctx.length:
            yield from _save(k, h, task, ctx)
        h.saved[ctx] = task
    except (EPERM, EREVOKED):
        h.names.pop(ctx, None)
        h.result = h.result._replace(left=h.result.left + 1)
        log.info("context %d of task %d is not saved: its grant", ctx.handle, task.pid)


def _stays(task: Task, h: Hibernation) -> bool:
    """Whether a task is for the next kernel: not the caller's, nor one that nobody has begun, nor
    one that has got TERM."""
    over = h.session.task is task or task.ends_by < inf
    return task.pid != INIT and task.state is not TaskState.NEW and not over


def _is_of_use(task: Task, pids: set[int]) -> bool:
    """Whether a task can still become something: a zombie, if there is who waits for it."""
    return not task.ended_already or task.parent in pids


def _there(task: Task, ctx: Context) -> bool:
    """Whether a context has not been given up meanwhile."""
    return task.contexts.get(ctx.handle) is ctx


def _save(k: System, h: Hibernation, task: Task, ctx: Context) -> Steps:
    name = journal.save_name(h.mark, task.pid, ctx.handle)
    frozen = ctx.fork(0, ctx.pid, "")
    k.floating.append(frozen)
    h.names[ctx] = task.uid, name
    elsewhere = h.elsewhere.setdefault(task.uid, set())
    try:
        saved, count = yield from saving.save(
            frozen, k.store.new_job, task.uid, name, b"", k.save_part, elsewhere
        )
    finally:
        k.floating.remove(frozen)
        size = frozen.pool.block_size
        frozen.free()
    r = h.result
    h.result = r._replace(
        contexts=r.contexts + 1, tokens=r.tokens + ctx.length,
        kv_tokens=r.kv_tokens + count * size, file_bytes=r.file_bytes + saved.file_bytes,
    )  # fmt: skip


def _tell(h: Hibernation, phase: str, done: int, total: int) -> None:
    if h.call in h.session.open:
        h.session.emit(Event.PROGRESS, h.call, phase, done, total)


# --- the record -------------------------------------------------------------------------------


def _write_record(k: System, h: Hibernation) -> Steps:
    """Write the record; once more if contexts have been given up meanwhile."""
    for _ in range(MAX_RECORDS):
        exist = k.num_contexts
        yield from _write_rows(k, h)
        if k.num_contexts == exist:
            return
    log.warning("contexts were given up while the record was written: they come back")


def _write_rows(k: System, h: Hibernation) -> Steps:
    pids = {task.pid for task in h.tasks if k.tasks.has(task)}
    tasks = [task for task in h.tasks if task.pid in pids and _is_of_use(task, pids)]
    contexts: list[tuple[Task, Context]] = []
    models: dict[Model, None] = {}
    for at, (ctx, task) in enumerate(h.saved.items()):
        if _there(task, ctx):
            contexts.append((task, ctx))
            models[ctx.model] = None
        if at % LOOKED_AT == LOOKED_AT - 1:
            yield PAUSE
    entries = _model_entries(models)
    numbers = len(entries), len(tasks), len(contexts)
    raw = bytearray(journal.pack(Head(journal.FORM, h.mark, k.tasks.last_pid, False, *numbers)))
    for at, row in enumerate(chain(entries, _rows(k, tasks, contexts))):
        raw += journal.pack(row)
        if at % SLICE == SLICE - 1:
            yield PAUSE
    yield from write_record(k, journal.padded(raw), h)
    h.result = h.result._replace(tasks=len(tasks), contexts=len(contexts))


def write_record(k: System, raw: bytes, h: Hibernation | None = None) -> Steps:
    """Have the store write these bytes as the record."""
    number, length = k.store.new_job(), len(raw) // 4
    meta = base.SaveMeta("", b"", "", (), 0, 0, length, 0, b"")
    yield base.BeginSave(number, k.uid, journal.RECORD, meta)
    for start in range(0, length, base.MAX_IDS):
        yield base.AddIds(number, start, raw[4 * start : 4 * (start + base.MAX_IDS)])
    if h is not None:
        h.committing = True
    yield base.CommitSave(number)


def _model_entries(models: Iterable[Model]) -> list[ModelEntry]:
    """Return the models that the next kernel needs; those that cannot be told are left out."""
    entries = []
    for model in models:
        if not model.serves:
            continue
        try:
            entries.append(journal.checked(_model_entry(model)))
        except Damaged as wrong:
            log.warning("model %s has to be loaded by hand: %s", model.name, wrong)
    return entries


def _model_entry(model: Model) -> ModelEntry:
    spec = model.spec
    return ModelEntry(
        spec.name, spec.path, spec.dtype, spec.block_size, spec.num_blocks, spec.kv_bytes,
        spec.max_ctx, spec.deterministic, spec.threads, spec.kv_dtype, spec.overcommit,
    )  # fmt: skip


def _rows(
    k: System, tasks: list[Task], contexts: list[tuple[Task, Context]]
) -> Iterator[journal.Entry]:
    now, pids = k.clock(), {INIT, *(task.pid for task in tasks)}
    for task in tasks:
        yield TaskEntry(
            task.pid, task.parent if task.parent in pids else INIT, task.uid, task.name,
            task.state is TaskState.STOPPED, task.ended_already, task.token, task.connection,
            task.prompt_tokens, task.cached_tokens, task.output_tokens, max(0.0, now - task.born),
            task.status, task.reason[:200], task.account.nice, place_of(task.account),
            tuple(task.untold),
            tuple(limits.total(task.account)),
            limits.pack(task.account),
        )  # fmt: skip
    for task, ctx in contexts:
        yield CtxEntry(
            task.pid, ctx.handle, task.uid, ctx.name, ctx.model.name, ctx.length, ctx.pinned,
            ctx.demoted, max(0.0, ctx.retained_until - now),
        )  # fmt: skip


# --- the end, of one kind or the other --------------------------------------------------------


def _undo(k: System, h: Hibernation) -> Steps:
    """Remove what has been saved; what the store refuses to remove stays, as saves that are seen.

    If the record may be there, it goes first: as long as it is, so must be what it names.
    """
    try:
        if h.committing:
            yield from drop(k, k.uid, journal.RECORD)
        yield from _drop_saves(k, h, list(h.names))
    except KernelError as error:
        log.error(
            "%d saves of contexts stay, llmos ctx saves shows them: %s", len(h.names), error.message
        )


def _drop_saves(k: System, h: Hibernation, contexts: Iterable[Context]) -> Steps:
    for ctx in contexts:
        yield from drop(k, *h.names[ctx])
        del h.names[ctx]


def _drop_given_up(k: System, h: Hibernation) -> Steps:
    """Remove the saves of contexts that the record does not have: they went after their save."""
    gone = [ctx for ctx in h.names if not _there(h.saved[ctx], ctx)]
    try:
        yield from _drop_saves(k, h, gone)
    except KernelError as error:
        log.warning("saves of contexts that are gone stay: %s", error.message)


def drop(k: System, owner: int, name: str) -> Steps:
    """Remove a save, if it is there."""
    try:
        yield base.DropSave(k.store.new_job(), owner, name)
    except ENOENT:
        pass


def say_goodbye(k: System) -> None:
    """End what programs still wait for, and tell them that their tasks have outlived the kernel."""
    for session in k.sessions.values():
        for call in list(session.open):
            session.fail(call, ECONNRESET(STOPPED, HINT))
        session.refuse(0, ECONNRESET(STOPPED, HINT, {"saved": 1}))
