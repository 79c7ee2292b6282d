"""Step: the ints of one step for one device, and the ids that come back.

A step's entries say which positions of which contexts are computed; `step_ops` makes the ops of
one Submit of them, stateless: full block tables each time. All arrays are built by joining int32
buffers, so the cost per sequence is a few copies.
"""

from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from drivers import base
from kernel.block import Block
from kernel.context import Context
from kernel.request import Request, Token
from syscalls.errors import EIO, KernelError


class Write(NamedTuple):
    """A step will have filled `block` up to `upto`, if it is still where it was."""

    block: Block
    id: int
    upto: int


class Entry(NamedTuple):
    """One request's part of a step: positions start <= p < end of its context."""

    request: Request
    start: int
    end: int
    writes: list[Write]
    samples: bool


class Step(NamedTuple):
    """A submitted step."""

    value: int
    entries: list[Entry]


def sampled_tokens(
    complete: base.Complete, samplers: list[Request]
) -> Iterator[Token | KernelError]:
    sampled = complete.results[0]
    ids, logprobs = base.read_ints(sampled.ids), base.read_reals(sampled.logprobs)
    top_ids, top_logprobs = base.read_ints(sampled.top_ids), base.read_reals(sampled.top_logprobs)
    first = 0
    for row, request in enumerate(samplers):
        assert request.infer is not None
        count = request.infer.logprobs or 0
        top = list(
            zip(top_ids[first : first + count], top_logprobs[first : first + count], strict=False)
        )
        first += count
        if sampled.flags[row] & base.RowFlag.NUMERIC:
            yield EIO("the model's logits are not numbers (NaN or Inf); nothing was sampled")
        else:
            yield Token(ids[row], logprobs[row], top)


def step_ops(
    model: int, number: int, entries: list[Entry], copies: list[tuple[int, int]], dirty: list[int]
) -> tuple[Any, ...]:
    """Return the ops of one Submit: copies, scrubs, then the forward step and its samples."""
    ops: list[Any] = []
    if copies:
        src, dst = zip(*copies, strict=True)
        ops.append(base.Copy(base.Direction.D2D, base.ints(src), base.ints(dst)))
    if dirty:
        ops.append(base.Scrub(base.ints(dirty)))
    if entries:
        ops.append(_execute(model, number, entries))
        samplers = [(s, e.request) for s, e in enumerate(entries) if e.samples]
        if samplers:
            ops.append(_sample(samplers))
    return tuple(ops)


def _execute(model: int, number: int, entries: list[Entry]) -> base.Execute:
    tokens, positions, write_slot = array("i"), array("i"), array("i")
    qo_indptr, kv_indptr, kv_blocks = array("i", [0]), array("i", [0]), array("i")
    rows = array("i")
    for entry in entries:
        ctx = entry.request.ctx
        tokens.extend(ctx.read(entry.start, entry.end))
        positions.extend(range(entry.start, entry.end))
        table = ctx.table(entry.end)
        kv_blocks.extend(table)
        kv_indptr.append(len(kv_blocks))
        qo_indptr.append(len(tokens))
        write_slot.extend(_write_slots(entry, table, ctx))
        if entry.samples:
            rows.append(len(tokens) - 1)
    return base.Execute(
        model,
        number,
        tokens.tobytes(),
        positions.tobytes(),
        qo_indptr.tobytes(),
        base.ints(entry.end for entry in entries),
        base.ints(cast(int, entry.request.slot) for entry in entries),
        base.ints(entry.request.generation for entry in entries),
        rows.tobytes(),
        (base.BlockTable(kv_indptr.tobytes(), kv_blocks.tobytes(), write_slot.tobytes()),),
    )


def _write_slots(entry: Entry, table: "array[int]", ctx: Context) -> list[int]:
    """Return block * block_size + offset per token; all in the null block where none is written."""
    size = ctx.pool.block_size
    if not entry.writes:
        return [base.NULL_BLOCK * size + p % size for p in range(entry.start, entry.end)]
    return [table[p // size] * size + p % size for p in range(entry.start, entry.end)]


def _sample(samplers: list[tuple[int, Request]]) -> base.Sample:
    infers = [cast(Any, request.infer) for _, request in samplers]
    return base.Sample(
        base.ints(row for row, _ in samplers),
        base.reals(i.temperature for i in infers),
        base.ints(i.top_k for i in infers),
        base.reals(i.top_p for i in infers),
        base.reals(i.min_p for i in infers),
        base.seeds(request.seed for _, request in samplers),
        base.ints(request.ctx.length for _, request in samplers),
        base.ints(-1 if i.logprobs is None else i.logprobs for i in infers),
    )
