"""The way back up: what the kernel before has saved when it stopped (kernel/way_down.py).

When the store is up the record is read, and the tasks are made, with the pids that they had; until
then hello waits, for no pid may be given out that is taken. Contexts come one after the other, each
by an errand of its own, so that what others save and load goes between. A context that cannot come
(its model is not there, its save is damaged) stays as a save that its user can load by hand. At the
end the record says only which saves are to go; then these go, then the record. So a crash at any
moment means that all begins anew, or that nothing is left to do.
"""

import logging
from collections.abc import Generator
from typing import Any

from drivers.store import base
from kernel import journal, saving
from kernel.context import Context
from kernel.device import DeviceState
from kernel.errand import PAUSE, Errand
from kernel.handler import Done
from kernel.journal import CtxEntry, Head
from kernel.model import ModelState
from kernel.pager import Pager
from kernel.record import BY_HAND, SLICE, read
from kernel.storehost import StoreState
from kernel.sys_ctx import give_context
from kernel.sys_infer import check_room
from kernel.sys_save import fill
from kernel.system import System
from kernel.task import Task
from kernel.way_down import drop, write_record
from syscalls.abi import Restore
from syscalls.errors import (
    ECORRUPT,
    EINVAL,
    ENOENT,
    KernelError,
)  # fmt: skip

log = logging.getLogger(__name__)

MAX_TRIES = 3
"""Stores that may die over one context, or over what is to be removed."""
STEPS = 64
"""Contexts that one turn is done with if nothing has to be read for them."""

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
            _beside(k, read(k))
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
    if c.reading:
        log.error("what the kernel before may have left cannot be read: %s", why)
    else:
        log.error("%d contexts are not back: %s", len(c.entries), why)
    c.num_waiting = len(c.entries)
    c.entries.clear()
    c.state = Restore.FAILED


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
    why = yield from fill(k, ctx, number, found, saving.left_out(found.save.meta))
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
    ctx = Context(entry.handle, task.pid, entry.name, model, model.pool, task.uid)
    ctx.account = task.account
    return ctx


def _add(k: System, task: Task, entry: CtxEntry, ctx: Context) -> None:
    ctx.demoted = entry.demoted
    ctx.retained_until = k.clock() + entry.retain_s if entry.retain_s else 0.0
    give_context(k, task, ctx)
    pager: Pager = ctx.model.sched.pager
    if entry.pinned:
        pager.pin(ctx)
    if entry.demoted or ctx.stopped:
        pager.idle.first(ctx)


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
