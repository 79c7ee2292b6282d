"""The way back up: what the kernel before has saved when it stopped (kernel/way_down.py).

When the store is up the record is read, and the tasks are made, with the pids that they had; until
then hello waits, for no pid may be given out that is taken. Contexts come one after the other, each
by an errand of its own, so that what others save and load goes between. A context that cannot come
(its model is not there, its save is damaged) stays as a save that its user can load by hand. At the
end the record says only which saves are to go; then these go, then the record. So a crash at any
moment means that all begins anew, or that nothing is left to do.

A program comes back to its task by `attach`. What nobody attaches to within a lease ends, if it has
no contexts; else it is kept for whoever comes later, or for `llmos kill`: contexts do not vanish
because a program was slow to come. Their KV is the first to leave the device from then on.
"""

import hashlib
import hmac
import logging
from collections import deque
from collections.abc import Generator
from math import inf
from typing import Any, NamedTuple

from drivers.store import base
from kernel import journal, saving
from kernel.answer import ModelSpec
from kernel.context import Context
from kernel.device import DeviceState
from kernel.errand import PAUSE, Errand
from kernel.handler import PENDING, Done, Pending
from kernel.journal import CtxEntry, Damaged, Head, ModelEntry, Reader, TaskEntry
from kernel.model import ModelState
from kernel.session import Session
from kernel.storehost import StoreState
from kernel.sys_infer import check_room
from kernel.sys_task import end_task, welcome
from kernel.system import System, host_part
from kernel.task import Task, TaskState
from kernel.way_down import drop, write_record
from syscalls.abi import Attach, Restore
from syscalls.errors import (
    EAGAIN,
    EBUSY,
    ECORRUPT,
    EINVAL,
    ENOENT,
    ESRCH,
    KernelError,
)  # fmt: skip
from syscalls.wire import Request

log = logging.getLogger(__name__)

SLICE = 128
"""Rows of the record that one turn takes in."""
MAX_TRIES = 3
"""Stores that may die over one context, or over what is to be removed."""
STEPS = 64
"""Contexts that one turn is done with if nothing has to be read for them."""
BY_HAND = "llmos ctx saves shows them"

Steps = Generator[Any, Any, Any]


# --- the loop's side --------------------------------------------------------------------------


def go_on(k: System) -> None:
    """Begin what can be begun now."""
    c = k.comeback
    for _ in range(STEPS):
        if c.working or not c.under_way or k.stop_by is not None:
            return
        if k.store.state is StoreState.FAILED:
            _give_up(k, "the store has failed")
        elif c.entries and k.device.state is DeviceState.FAILED:
            _give_up(k, "the device has failed")
        elif k.store.state is not StoreState.UP:
            return
        elif c.reading:
            _beside(k, _read(k))
        elif c.entries and not _models_settled(k):
            return
        elif c.entries:
            _start(k, _bring_back(k, c.entries.popleft()))
        else:
            _beside(k, _finish(k))


def due(k: System) -> bool:
    """Whether the next turn has something to begin."""
    c = k.comeback
    if c.working or c.state is not Restore.COMING or k.stop_by is not None:
        return False
    if k.store.state is not StoreState.UP:
        return False
    return not c.entries or _models_settled(k)


def _start(k: System, steps: Steps) -> None:
    k.comeback.working = True
    k.errands.start(_errand(k, steps))


def _beside(k: System, steps: Steps) -> None:
    k.comeback.working = True
    k.errands.beside(_errand(k, steps))


def _errand(k: System, steps: Steps) -> Errand:
    yield from steps
    k.comeback.working = False
    return Done(())


def _models_settled(k: System) -> bool:
    """Whether models are loaded, or cannot be; one at least is."""
    models = list(k.device.models)
    waits = any(model.state in (ModelState.WAITING, ModelState.LOADING) for model in models)
    return not waits and any(model.state is ModelState.UP for model in models)


def _give_up(k: System, why: str) -> None:
    """Go on without what is not back yet; on the disk all is as it was."""
    c = k.comeback
    log.error("%d contexts are not back: %s", len(c.entries), why)
    c.num_waiting = len(c.entries)
    c.entries.clear()
    c.state = Restore.FAILED


# --- attaching --------------------------------------------------------------------------------


def wait(k: System, session: Session, request: Request) -> Pending:
    """Let a hello or an attach wait until it can be told what there is."""
    if any(waits is session for waits, _ in k.comeback.waiting):
        raise EBUSY("this session has said hello already")
    k.comeback.waiting.append((session, request))
    return PENDING


def released(k: System) -> list[tuple[Session, Request]]:
    """Take the calls that need not wait any more, of sessions that are still there."""
    c = k.comeback
    if c.reading or not c.waiting:
        return []
    waiting, c.waiting = c.waiting, deque()
    ready = []
    for session, request in waiting:
        if k.sessions.get(session.route) is not session or request.call not in session.open:
            continue
        if request.row.name == "attach" and c.coming(request.args.pid):
            c.waiting.append((session, request))
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
        return wait(k, session, request)
    session.connection = task.connection = _connection(task)
    task.lease = None
    task.session, session.task = session, task
    return Done(welcome(k, session, task, args.token))


def _connection(task: Task) -> int:
    """Return a connection number of which the task has no context."""
    taken = {handle >> 24 for handle in task.contexts}
    free = (n % 256 for n in range(task.connection + 1, task.connection + 257))
    found = next((number for number in free if number not in taken), None)
    if found is None:
        raise EAGAIN("the task has contexts of all 256 connections", "free some, or end the task")
    return found


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


# --- reading the record -----------------------------------------------------------------------


def _read(k: System) -> Steps:
    c, epoch = k.comeback, k.store.epoch
    try:
        yield from _read_record(k)
    except ENOENT:
        c.state = Restore.NONE
    except (ECORRUPT, Damaged) as wrong:
        why = wrong.message if isinstance(wrong, KernelError) else str(wrong)
        c.left = yield from _count_saves(k)
        c.state = Restore.FAILED
        log.error("the record of the kernel before is damaged (%s), and left where it is", why)
        log.error("%d of its contexts can be loaded by hand: %s", c.left, BY_HAND)
    except KernelError as error:
        if k.store.epoch == epoch:
            c.state = Restore.FAILED
            log.error("the record of the kernel before cannot be read: %s", error.message)


def _read_record(k: System) -> Steps:
    number = k.store.new_job()
    found: base.Found = yield base.OpenSave(number, k.uid, journal.RECORD, 0)
    if found.state == base.SaveState.STALE:
        yield base.CloseSave(number)
        raise Damaged("it is an old one, which was put back")
    try:
        record = yield from _rows(k, number, found.meta.length)
    except Damaged:
        yield base.CloseSave(number)
        raise
    yield base.CloseSave(number)
    yield from _take(k, record)


class Record(NamedTuple):
    """All rows of a record."""

    head: Head
    models: list[ModelEntry]
    tasks: list[TaskEntry]
    contexts: list[CtxEntry]


def _rows(k: System, number: int, length: int) -> Generator[Any, Any, Record]:
    """Read and check the rows of an open record; Damaged."""
    reader = Reader(4 * length, (k.uid, 0))
    rows: dict[type, list[Any]] = {ModelEntry: [], TaskEntry: [], CtxEntry: []}
    for start in range(0, length, base.MAX_IDS):
        count = min(base.MAX_IDS, length - start)
        part: base.Ids = yield base.ReadIds(number, start, count)
        for at, entry in enumerate(reader.feed(part.ids)):
            rows[type(entry)].append(entry)
            if at % SLICE == SLICE - 1:
                yield PAUSE
    head = reader.end()
    return Record(head, rows[ModelEntry], rows[TaskEntry], rows[CtxEntry])


def _count_saves(k: System) -> Steps:
    """Return how many contexts the kernel before has saved."""
    count, after, more = 0, "", True
    try:
        while more:
            saves: base.Saves = yield base.ListSaves(k.store.new_job(), k.uid, after)
            names = [row.name for row in saves.rows]
            count += sum(journal.is_kernels(journal.shown(name)) for name in names)
            after, more = (names[-1], saves.more) if names else ("", False)
    except KernelError:
        pass
    return count


# --- tasks ------------------------------------------------------------------------------------


def _take(k: System, record: Record) -> Steps:
    """Make the tasks of a record, and expect its contexts; or leave it alone."""
    c, head, contexts = k.comeback, record.head, record.contexts
    c.head = head
    k.tasks.skip(head.last_pid)
    if head.restored:
        c.back = contexts
        c.state = Restore.COMING
        return
    why = _why_not(k, head)
    if why:
        c.num_waiting, c.state = head.num_contexts, Restore.WAITING
        log.warning("%d contexts of %d tasks wait: %s", head.num_contexts, head.num_tasks, why)
        return
    for at, entry in enumerate(record.tasks):
        _revive(k, entry)
        if at % SLICE == SLICE - 1:
            yield PAUSE
    c.expect(contexts)
    c.state = Restore.COMING
    _load_models(k, record.models)
    log.info("%d tasks of the kernel before are back, %d contexts come", *head[5:])


def _why_not(k: System, head: Head) -> str:
    """Say why nothing is brought back, and what to do; empty: it is."""
    if k.config.fresh:
        return f"this kernel was started with --fresh; llmos down, llmos up; {BY_HAND}"
    if head.num_tasks >= k.config.max_tasks:
        return f"--max-tasks is {k.config.max_tasks}; llmos down, llmos up with a higher one"
    if head.num_contexts > k.config.max_contexts:
        return f"--max-contexts is {k.config.max_contexts}; llmos down, llmos up with a higher one"
    return ""


def _revive(k: System, entry: TaskEntry) -> None:
    now = k.clock()
    task = Task(entry.pid, entry.parent, entry.uid, entry.name, now - entry.age_s)
    task.token, task.connection = entry.token, entry.connection
    task.prompt_tokens, task.cached_tokens = entry.prompt_tokens, entry.cached_tokens
    task.output_tokens = entry.output_tokens
    if entry.zombie:
        task.become(TaskState.ZOMBIE)
        task.status, task.reason, task.ended = entry.status, entry.reason, now
    else:
        task.become(TaskState.LIVE)
        task.lease = now + k.comeback.lease_s
        if entry.stopped:
            task.become(TaskState.STOPPED)
    k.tasks.revive(task)


# --- contexts ---------------------------------------------------------------------------------


def _bring_back(k: System, entry: CtxEntry) -> Steps:
    c, epoch = k.comeback, k.store.epoch
    task = k.tasks.peek(entry.pid)
    if task is None or task.ended_already:  # somebody has ended it meanwhile
        c.back.append(entry)
        c.settled(entry)
        return
    try:
        yield from _load(k, task, entry)
    except KernelError as error:
        c.tries += 1
        if k.store.epoch != epoch and c.tries < MAX_TRIES:
            c.entries.appendleft(entry)  # the store has died
            return
        c.left += 1
        log.error(
            "context %d of task %d stays a save: %s; %s",
            entry.handle, entry.pid, error.message, BY_HAND,
        )  # fmt: skip
    else:
        c.back.append(entry)
        c.num_back += 1
    c.tries = 0
    c.settled(entry)


def _load(k: System, task: Task, entry: CtxEntry) -> Steps:
    """Make one context anew, with what KV of it there is room for."""
    if not entry.length:
        _add(k, task, entry, _context(k, task, entry))
        return
    assert k.comeback.head is not None
    number = k.store.new_job()
    name = journal.save_name(k.comeback.head.mark, entry.pid, entry.handle)
    found = yield from saving.find(number, task.uid, name)
    try:
        ctx = _context(k, task, entry)
        _check(ctx, entry, found)
    except KernelError:
        yield base.CloseSave(number)
        raise
    model = ctx.model
    ctx.append(found.ids)
    k.floating.append(ctx)
    model.loads += 1
    first = saving.left_out(found.save.meta)
    try:
        why = yield from saving.bring(ctx, number, found.save, first, k.save_part)
    except KernelError:
        ctx.free()
        raise
    finally:
        model.loads -= 1
        k.floating.remove(ctx)
    if why:
        log.info("context %d of task %d: %s; it is computed again", ctx.handle, task.pid, why)
    if task.ended_already or not model.serves:
        ctx.free()
        if not task.ended_already:
            raise model.unavailable()
        return
    _add(k, task, entry, ctx)


def _check(ctx: Context, entry: CtxEntry, found: saving.Found) -> None:
    """Raise unless a save is that of an entry, and the model takes it."""
    if len(found.ids) != entry.length:
        raise ECORRUPT(f"its save has {len(found.ids)} ids, and had {entry.length}")
    if min(found.ids) < 0 or max(found.ids) >= ctx.model.desc.vocab:
        raise EINVAL(f"it has ids that {ctx.model.name} has not")
    check_room(ctx, entry.length, 0)


def _context(k: System, task: Task, entry: CtxEntry) -> Context:
    """Return an empty context as the entry says; ENOENT, ENODEV without its model."""
    model = k.device.models.find(entry.model)
    if model is None:
        raise ENOENT(f"its model {entry.model} is not loaded", f"llmos load {entry.model}")
    model.require()
    return Context(entry.handle, task.pid, entry.name, model, model.pool, task.uid)


def _add(k: System, task: Task, entry: CtxEntry, ctx: Context) -> None:
    task.contexts[ctx.handle] = ctx
    ctx.last_use = k.counters.turns
    ctx.stopped = task.state is TaskState.STOPPED
    ctx.pinned, ctx.demoted = entry.pinned, entry.demoted
    ctx.retained_until = k.clock() + entry.retain_s if entry.retain_s else 0.0
    k.num_contexts += 1
    ctx.model.num_contexts += 1


def _load_models(k: System, entries: list[ModelEntry]) -> None:
    """Have the models loaded that contexts need, and this kernel was not started with."""
    models, config = k.device.models, k.config
    for entry in entries:
        if models.find(entry.name) is None and len(models) < config.max_models:
            log.info("model %s is loaded for contexts of the kernel before", entry.name)
            models.add(ModelSpec(*entry[:9], host_part(config.host_bytes), *entry[9:]))


# --- the end ----------------------------------------------------------------------------------


def _finish(k: System) -> Steps:
    """Remove the saves of what is back, and the record."""
    c, epoch = k.comeback, k.store.epoch
    assert c.head is not None
    try:
        if not c.head.restored:
            yield from _write_rest(k, c.head)
        for entry in c.back:
            yield from _drop_all(k, c.head, entry)
        yield from drop(k, k.uid, journal.RECORD)
    except KernelError as error:
        c.tries += 1
        if k.store.epoch != epoch and c.tries < MAX_TRIES:
            return  # the store has died: once more, from the beginning
        log.error("saves of contexts that are back stay until the next start: %s", error.message)
    if c.left:
        log.error("%d contexts are not back: %s", c.left, BY_HAND)
    log.info("%d contexts of the kernel before are back", c.num_back)
    c.back = []
    c.state = Restore.DONE if c.num_back or c.left else Restore.NONE


def _write_rest(k: System, head: Head) -> Steps:
    """Replace the record by one that says which saves are to go."""
    back = k.comeback.back
    rest = head._replace(restored=True, num_models=0, num_tasks=0, num_contexts=len(back))
    raw = bytearray(journal.pack(rest))
    for at, entry in enumerate(back):
        raw += journal.pack(entry)
        if at % SLICE == SLICE - 1:
            yield PAUSE
    yield from write_record(k, journal.padded(raw))


def _drop_all(k: System, head: Head, entry: CtxEntry) -> Steps:
    if entry.length:
        yield from drop(k, entry.uid, journal.save_name(head.mark, entry.pid, entry.handle))
