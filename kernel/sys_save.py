"""Handlers of save_ctx, load_ctx, list_saves and drop_save. What they start are errands."""

from collections.abc import Generator
from typing import Any

from drivers.store import base
from kernel import journal, saving
from kernel.context import Context
from kernel.errand import Errand
from kernel.grant import require
from kernel.handler import PENDING, Caller, Done, Pending
from kernel.model import Model
from kernel.sys_ctx import add_context, check_count, take_handle
from kernel.sys_infer import check_room
from kernel.system import System
from syscalls.abi import (
    Access,
    DropSave,
    ListSaves,
    ListSavesResult,
    LoadCtx,
    LoadCtxResult,
    Nothing,
    SaveCtx,
    SaveCtxResult,
    SaveRow,
)  # fmt: skip
from syscalls.errors import ECANCELED, EINVAL, ENOENT, KernelError


def sys_save_ctx(k: System, caller: Caller, args: SaveCtx) -> Pending:
    """Keep a context as it is now under a name."""
    ctx = k.context(caller.task, args.ctx)
    if ctx.foreign:  # what is loaded will be the caller's own
        what = f"to save what it was opened with, {ctx.foreign} ids,"
        require(ctx, Access.READ | Access.COPY, what)
    k.store.require()
    ctx.model.require()
    if ctx.length == 0:
        raise EINVAL("the context is empty: there is nothing to save")
    if journal.is_kernels(args.name):
        raise EINVAL("names that begin so are those of contexts that a kernel has saved itself")
    check_count(k)
    frozen = ctx.fork(0, ctx.pid, "")
    k.floating.append(frozen)
    errand = _save(k, frozen, caller.task.uid, args.name, args.extra)
    k.errands.start(errand, caller.session, caller.call)
    return PENDING


def _save(k: System, frozen: Context, owner: int, name: str, extra: bytes) -> Errand:
    try:
        saved, count = yield from saving.save(
            frozen, k.store.new_job, owner, name, extra, k.save_part
        )
    finally:
        k.floating.remove(frozen)
        length, size = frozen.length, frozen.pool.block_size
        frozen.free()
    k.store.recount()
    return Done(SaveCtxResult(length, count * size, saved.file_bytes, saved.generation))


def sys_load_ctx(k: System, caller: Caller, args: LoadCtx) -> Pending:
    """Make a context from a save."""
    k.store.require()
    if args.model is not None:
        k.model(args.model)
    take_handle(k, caller, args.ctx)
    caller.session.last_handle = args.ctx
    caller.task.loading.add(args.ctx)
    k.errands.start(_load(k, caller, args), caller.session, caller.call)
    return PENDING


def _load(k: System, caller: Caller, args: LoadCtx) -> Errand:
    try:
        return (yield from _loaded(k, caller, args))
    finally:
        caller.task.loading.discard(args.ctx)


def fill(
    k: System, ctx: Context, number: int, found: saving.Found, first: int
) -> Generator[Any, Any, str]:
    """Give an empty context that is in no task yet the ids and the KV of an open save.

    Say why it is not all of the KV; after an error nothing is left of the context.
    """
    ctx.append(found.ids)
    k.floating.append(ctx)
    ctx.model.loads += 1
    try:
        return (yield from saving.bring(ctx, number, found.save, first, k.save_part))
    except KernelError:
        ctx.free()
        raise
    finally:
        ctx.model.loads -= 1
        k.floating.remove(ctx)


def _loaded(k: System, caller: Caller, args: LoadCtx) -> Errand:
    number, owner = k.store.new_job(), caller.task.uid
    found = yield from saving.find(number, owner, journal.stored(args.name))
    own = journal.is_kernels(args.name)
    first, extra = (saving.left_out(found.save.meta), b"") if own else (0, found.save.meta.extra)
    try:
        model = _model(k, args.model, found.save.meta)
        if max(found.ids) >= model.desc.vocab:
            raise EINVAL(f"it has id {max(found.ids)}, {model.name} has {model.desc.vocab}")
        ctx = Context(args.ctx, caller.task.pid, args.title or args.name, model, model.pool, owner)
        check_room(ctx, len(found.ids), 0)
    except KernelError:
        yield base.CloseSave(number)
        raise
    ctx.account = caller.task.account
    why = yield from fill(k, ctx, number, found, first)
    if caller.task.ended_already or caller.session.task is not caller.task:
        ctx.free()
        raise ECANCELED("its task has ended")
    if args.ctx not in caller.task.loading:
        ctx.free()
        raise ECANCELED("its context was freed meanwhile")
    add_context(k, caller, ctx)
    save, desc = found.save, model.desc
    note = f"{why}: what lacks is computed again" if why else ""
    return Done(
        LoadCtxResult(
            model.name, desc.max_ctx, desc.block_size, model.number, ctx.length, ctx.computed,
            save.generation, float(save.saved_unix), note, extra,
        )
    )  # fmt: skip


def _model(k: System, name: str | None, meta: base.SaveMeta) -> Model:
    """Return the model that goes on with a save: the one named, its own, or one that is like it."""
    if name is not None:
        return k.model(name)
    model = k.device.models.find(meta.model)
    if model is None:
        alike = (m for m in k.device.models if m.loaded and not saving.unlike(m, meta))
        model = next(alike, None)
    if model is None:
        raise ENOENT(
            f"it was saved from model {meta.model}, which is not loaded",
            f"llmos load {meta.model}, or name another model",
        )
    model.require()
    return model


def sys_list_saves(k: System, caller: Caller, args: ListSaves) -> Pending:
    """List saves of the caller's user."""
    k.store.require()
    k.errands.beside(_list(k, caller.task.uid, args.after), caller.session, caller.call)
    return PENDING


def _list(k: System, owner: int, after: str) -> Errand:
    saves: base.Saves = yield base.ListSaves(k.store.new_job(), owner, journal.stored(after))
    rows = [_row(row) for row in saves.rows if journal.shown(row.name)]
    return Done(ListSavesResult(rows, saves.more))


def _row(row: base.SaveRow) -> SaveRow:
    state = base.SaveState(row.state).name.lower()
    return SaveRow(
        journal.shown(row.name), row.generation, state, row.model, row.length, row.num_blocks,
        row.file_bytes, float(row.saved_unix),
    )  # fmt: skip


def sys_drop_save(k: System, caller: Caller, args: DropSave) -> Pending:
    """Delete a save of the caller's user."""
    k.store.require()
    k.errands.beside(
        _drop(k, caller.task.uid, journal.stored(args.name)), caller.session, caller.call
    )
    return PENDING


def _drop(k: System, owner: int, name: str) -> Errand:
    yield base.DropSave(k.store.new_job(), owner, name)
    k.store.recount()
    return Done(Nothing())
