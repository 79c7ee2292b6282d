"""Saving and loading: the errands of a context between its tiers and a file of the store.

A save is of a fork, made when the call was accepted: what happens to the context meanwhile does not
matter to it, unless the grant is revoked through which it was opened. It has all ids, and the KV of
the leading full blocks that some tier has; a block of the device or of the swap file goes through
the bulk window, one of the host tier is read where it lies. If the driver dies in between, the save
begins anew with what is left.

A load makes the context from the ids; KV is taken from the prefix index where it is there, and from
the file where model, dtype and layout are those of the save. What is damaged, or finds no place, is
computed when it is needed, and the result says so.

A save of the kernel's own, one of all contexts when it stops (kernel/way_down.py), may leave out
the KV of its first blocks, which another such save has. It is read as the others are once these
blocks are there; without them its KV is of no use. How many they are is in its `extra`.
"""

import struct
from array import array
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from itertools import takewhile
from typing import Any, NamedTuple

from drivers import base as driver
from drivers.store import base
from kernel.block import NO_PLACE, NOT_RESIDENT, Block, Move
from kernel.context import Context
from kernel.errand import BULK, HOST, DeviceOp, Filling, Lost
from kernel.grant import check_revoked
from kernel.model import Model
from syscalls.errors import EIO, KernelError

MAX_TRIES = 3
"""Drivers that may die in the middle of one save."""
_LEFT_OUT = struct.Struct("<I")
"""`extra` of a save of the kernel's own."""

Steps = Generator[Any, Any, Any]


class Found(NamedTuple):
    """A save that is open for reading, with its ids."""

    save: base.Found
    ids: "array[int]"


def layout_of(model: Model) -> tuple[int, ...]:
    """Return the canonical order of a block: [layers, 2, block_size, kv_heads, head_dim]."""
    (group,) = model.desc.kv_groups
    return group.layers, 2, model.desc.block_size, group.kv_heads, group.head_dim


def _meta(ctx: Context, num_blocks: int, extra: bytes) -> base.SaveMeta:
    model, desc = ctx.model, ctx.model.desc
    return base.SaveMeta(
        model.name, bytes.fromhex(desc.digest), desc.kv_groups[0].dtype, layout_of(model),
        desc.block_size, desc.block_bytes, ctx.length, num_blocks, extra,
    )  # fmt: skip


# --- saving -----------------------------------------------------------------------------------


def save(
    ctx: Context, new_job: Callable[[], int], owner: int, name: str, extra: bytes, bulk_bytes: int,
    elsewhere: set[Block] | None = None,
) -> Generator[Any, Any, tuple[base.Saved, int]]:  # fmt: skip
    """Write a context that nobody else has; return how it went and how many blocks have KV.

    `elsewhere` makes it one of the kernel's own: blocks whose KV other such saves have. The leading
    ones of these are left out, and what this save has is added.
    """
    for _ in range(MAX_TRIES):
        number, first, count = new_job(), 0, _computed_blocks(ctx, bulk_bytes)
        if elsewhere is not None:
            first = next((at for at in range(count) if ctx.blocks[at] not in elsewhere), count)
            extra = _LEFT_OUT.pack(first)
        yield base.BeginSave(number, owner, name, _meta(ctx, count - first, extra))
        try:
            yield from _write_ids(ctx, number)
            yield from _write_blocks(ctx, number, first, count, bulk_bytes)
            check_revoked(ctx)
        except KernelError as error:
            with suppress(KernelError):  # the store has ended it by itself
                yield base.AbortSave(number)
            if isinstance(error, Lost):
                continue
            raise
        saved = yield base.CommitSave(number)
        if elsewhere is not None:
            elsewhere.update(ctx.blocks[first:count])
        return saved, count - first
    raise EIO(f"the device died {MAX_TRIES} times in the middle of the save", "save it again")


def left_out(meta: base.SaveMeta) -> int:
    """Return how many leading blocks a save of the kernel's own leaves to others."""
    return int(_LEFT_OUT.unpack(meta.extra)[0]) if len(meta.extra) == _LEFT_OUT.size else 0


def _write_ids(ctx: Context, number: int) -> Steps:
    for start in range(0, ctx.length, base.MAX_IDS):
        check_revoked(ctx)
        ids = ctx.read(start, min(ctx.length, start + base.MAX_IDS))
        yield base.AddIds(number, start, ids.tobytes())


def _computed_blocks(ctx: Context, bulk_bytes: int) -> int:
    """Return how many leading blocks are full, have all their KV, and fit through the window."""
    size, count = ctx.pool.block_size, 0
    if not ctx.model.desc.digest or ctx.model.desc.block_bytes > bulk_bytes:
        return 0
    for block in ctx.blocks[: ctx.length // size]:  # the one after may have ids of a sharer's
        if block.have < size:
            break
        count += 1
    return count


def _write_blocks(ctx: Context, number: int, first: int, count: int, bulk_bytes: int) -> Steps:
    """Give the store the KV of the blocks from `first` to `count`, in runs of one tier each."""
    most = min(base.MAX_BLOCKS, bulk_bytes // ctx.model.desc.block_bytes)
    at = first
    while at < count:
        check_revoked(ctx)
        run = _run_of_one_tier(ctx.model, ctx.blocks[at : min(count, at + most)])
        if not run:
            raise Lost("KV was lost in the middle of the save")
        with ctx.pool.visit(), _reading(run):
            yield from _write_run(ctx, number, at - first, run)
        at += len(run)


class Tier(Enum):
    DEVICE = 0
    HOST = 1
    DISK = 2
    NONE = 3


def _run_of_one_tier(model: Model, blocks: Sequence[Block]) -> Sequence[Block]:
    """Return the leading blocks that are read in one way; none if the first has no KV any more."""
    first = _place(model, blocks[0])
    if first[0] is Tier.NONE:
        return []
    return list(takewhile(lambda block: _place(model, block) == first, blocks))


def _place(model: Model, block: Block) -> tuple[Tier, int]:
    """Return where all KV of a full block is, and in which part of the swap file."""
    size = len(block.ids)
    if block.filled == size:
        return Tier.DEVICE, 0
    if block.kept == size:
        return Tier.HOST, 0
    if block.disk != NO_PLACE:
        return Tier.DISK, model.disk_swap.extent_of(block)
    return Tier.NONE, 0


@contextmanager
def _reading(blocks: Sequence[Block]) -> Generator[None, None, None]:
    """Keep blocks where they are."""
    for block in blocks:
        block.readers += 1
    try:
        yield
    finally:
        for block in blocks:
            block.readers -= 1


def _write_run(ctx: Context, number: int, first: int, run: Sequence[Block]) -> Steps:
    model, size = ctx.model, ctx.model.desc.block_bytes
    tier, _ = _place(model, run[0])
    if tier is Tier.HOST:
        offsets = tuple(model.host_offset + block.host * size for block in run)
        yield base.AddBlocks(number, first, HOST, offsets)
        if any(block.host == NO_PLACE for block in run):  # the model has gone meanwhile
            raise Lost("KV was lost in the middle of the save")
        return
    if tier is Tier.DISK:
        answer: base.Blocks = yield model.disk_swap.reading(run, 0)
        if any(answer.states):
            model.disk_swap.damaged(run, answer.states)
            raise Lost("KV was lost in the middle of the save")
    else:
        ids = driver.ints(block.id for block in run)
        yield DeviceOp(model, driver.Export(ids, 0), Move.OUT)
    check_revoked(ctx)
    offsets = tuple(range(0, len(run) * size, size))
    yield base.AddBlocks(number, first, BULK, offsets)


# --- loading ----------------------------------------------------------------------------------


def find(number: int, owner: int, name: str) -> Generator[Any, Any, Found]:
    """Open a save and read its ids."""
    save: base.Found = yield base.OpenSave(number, owner, name, 0)
    ids = array("i")
    while len(ids) < save.meta.length:
        count = min(base.MAX_IDS, save.meta.length - len(ids))
        part: base.Ids = yield base.ReadIds(number, len(ids), count)
        ids.frombytes(part.ids)
    return Found(save, ids)


def unlike(model: Model, meta: base.SaveMeta) -> str:
    """Say why a model cannot go on with the KV of a save; empty: it can."""
    desc = model.desc
    if not desc.digest or bytes.fromhex(desc.digest) != meta.digest:
        return "it was saved with other weights"
    if meta.kv_dtype != desc.kv_groups[0].dtype:
        return f"its KV is {meta.kv_dtype}, the model's {desc.kv_groups[0].dtype}"
    if meta.layout != layout_of(model) or meta.block_bytes != desc.block_bytes:
        return f"its blocks have {meta.block_size} positions, the model's {desc.block_size}"
    return ""


def bring(
    ctx: Context, number: int, save: base.Found, first: int, bulk_bytes: int
) -> Generator[Any, Any, str]:
    """Take the KV of a save as far as it can be used, then close it; say why it is not all of it.

    The save has the KV of the blocks from `first` on.
    """
    why, count = "", save.meta.num_blocks
    if count:
        why = unlike(ctx.model, save.meta)
    if save.state == base.SaveState.STALE:
        why = "it is not the last save of its name"
    if not why and first + count:
        with ctx.pool.visit():
            why = yield from read_blocks(ctx, number, first, first + count, bulk_bytes)
            yield base.CloseSave(number)
    else:
        yield base.CloseSave(number)
    return why


def read_blocks(
    ctx: Context, number: int, first: int, count: int, bulk_bytes: int
) -> Generator[Any, Any, str]:
    """Bring the KV of the first `count` blocks to a tier; say why it is not all of it.

    Those before `first` are not in the save: they are there already, or it is of no use.
    """
    size = ctx.model.desc.block_bytes
    if size > bulk_bytes:
        return f"a block has {size} bytes, the window to the device {bulk_bytes} (--bulk-bytes)"
    most = min(base.MAX_BLOCKS, bulk_bytes // size)
    for start in range(0, count, most):
        wanted = [at for at in range(start, min(count, start + most)) if not _found(ctx, at)]
        if wanted and wanted[0] < first:
            return f"its first {first} blocks are in another save"
        if wanted:
            why = yield from _read_run(ctx, number, first, wanted)
            if why:
                return why
    return ""


def _found(ctx: Context, at: int) -> bool:
    """Take a block over from the prefix index, if it is there with all its KV."""
    found = ctx.pool.index.find(ctx.blocks, at)
    if found is None or found.have < ctx.pool.block_size:
        return False
    ctx.adopt(at, found)
    return True


def _read_run(
    ctx: Context, number: int, before: int, wanted: Sequence[int]
) -> Generator[Any, Any, str]:
    """Read blocks into the host tier, and onto the device what finds no room there.

    The save leaves the `before` first blocks out.
    """
    why, left = "", 0
    for run in _consecutive(wanted):
        count = _host_places(ctx, run)
        if count:
            why = (yield from _into_host(ctx, number, before, run[:count])) or why
        rest = run[count:]
        here = rest[: ctx.pool.num_free]  # as many as there are now: runs before took a while
        if here:
            why = why or (yield from _into_device(ctx, number, before, here))
        left += len(rest) - len(here)
    return why or (f"{left} blocks found no free place" if left else "")


def _host_places(ctx: Context, run: Sequence[int]) -> int:
    """Give the blocks at these places some of the host tier's, the first ones; say how many."""
    pool = ctx.pool
    for count, at in enumerate(run):
        if not pool.host.alloc(ctx.blocks[at], pool.index.discard):
            return count
        ctx.blocks[at].moving = Move.OUT
    return len(run)


def _consecutive(places: Sequence[int]) -> list[list[int]]:
    """Split places into runs of neighbours: one message reads one run."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _into_host(
    ctx: Context, number: int, before: int, run: Sequence[int]
) -> Generator[Any, Any, str]:
    """Read neighbours into their places of the host tier; say what was wrong."""
    pool, size = ctx.pool, ctx.model.desc.block_bytes
    blocks = [ctx.blocks[at] for at in run]
    offsets = tuple(ctx.model.host_offset + block.host * size for block in blocks)
    states = bytes([base.BlockState.FAILED]) * len(run)
    try:
        answer: base.Blocks = yield base.ReadBlocks(number, run[0] - before, HOST, offsets)
        states = answer.states
    finally:
        for at, block, state in zip(run, blocks, states, strict=True):
            block.moving = Move.NONE
            if block.host == NO_PLACE:
                continue  # the model has gone meanwhile
            if state == base.BlockState.OK:
                pool.host.arrived(block, pool.block_size)
                pool.enter(ctx.blocks, at)
            else:
                pool.host.drop(block)
    return _wrong(states)


def _into_device(
    ctx: Context, number: int, before: int, run: Sequence[int]
) -> Generator[Any, Any, str]:
    """Read neighbours onto free places of the device; say what was wrong."""
    pool, size = ctx.pool, ctx.model.desc.block_bytes
    blocks = [ctx.blocks[at] for at in run]
    for block in blocks:
        pool.target(block)
        block.moving = Move.IN
    try:
        end = len(run) * size
        offsets = tuple(range(0, end, size))
        reading = base.ReadBlocks(number, run[0] - before, BULK, offsets)
        answer: base.Blocks = yield Filling(reading, end)
        sound = len(answer.states) - len(answer.states.lstrip(bytes([base.BlockState.OK])))
        if any(block.target == NOT_RESIDENT for block in blocks):
            return "the device died meanwhile"
        if sound:
            targets = driver.ints(block.target for block in blocks[:sound])
            yield DeviceOp(ctx.model, driver.Import(targets, 0), Move.IN)
            for at, block in zip(run[:sound], blocks, strict=False):
                pool.arrived(block, pool.block_size)
                pool.enter(ctx.blocks, at)
        return _wrong(answer.states)
    except Lost:
        return "the device died meanwhile"
    finally:
        for block in blocks:
            block.moving = Move.NONE
            pool.untarget(block)


def _wrong(states: bytes) -> str:
    damaged = states.count(base.BlockState.CORRUPT)
    failed = states.count(base.BlockState.FAILED)
    if damaged:
        return f"{damaged} blocks of it are damaged"
    return f"{failed} blocks of it could not be read" if failed else ""
