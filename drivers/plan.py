"""Plan: one Execute and its Sample, read and checked before anything of it runs.

The kernel is the MMU: it walks the tables and computes the slots. A driver trusts none of it,
because a slot that is off by one is another task's memory. `check_execute`, `check_sample` and
`check_score` compare a step with the `Shape` of the loaded model, raise PLAN_INVALID naming the
first thing that is wrong, and return the buffers read, so that no driver reads them twice. The cost
is a few array operations per sequence, plus one set of all write slots.
"""

from array import array
from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

from drivers import base
from drivers.base import NULL_BLOCK, DriverFault, FaultKind


class Shape(NamedTuple):
    """What plans are checked against."""

    model: int
    vocab: int
    max_ctx: int
    block_size: int
    block_bytes: int
    num_blocks: int
    num_host_blocks: int  # 0: no host tier
    max_tokens: int
    max_seqs: int
    max_block_refs: int
    bulk_bytes: int
    max_logit_rows: int


class Table(NamedTuple):
    """A BlockTable, read."""

    indptr: "array[int]"
    blocks: "array[int]"
    write_slot: "array[int]"


class Plan(NamedTuple):
    """An Execute, read and checked."""

    tokens: "array[int]"
    positions: "array[int]"
    qo_indptr: "array[int]"
    kv_len: "array[int]"
    slots: "array[int]"
    generations: "array[int]"
    logit_rows: "array[int]"
    tables: tuple[Table, ...]


class Draws(NamedTuple):
    """A Sample, read and checked."""

    rows: "array[int]"
    temperature: "array[float]"
    top_k: "array[int]"
    top_p: "array[float]"
    min_p: "array[float]"
    seed: "array[int]"
    position: "array[int]"
    num_logprobs: "array[int]"
    adjust: Sequence[int] = ()  # empty: no row


class Given(NamedTuple):
    """A Score, read and checked."""

    rows: "array[int]"
    ids: "array[int]"
    num_logprobs: "array[int]"


def shape_of(loaded: base.Loaded, bulk_bytes: int) -> Shape:
    """Return the shape of a loaded model."""
    return Shape(
        loaded.model, loaded.vocab, loaded.max_ctx, loaded.block_size, loaded.block_bytes,
        loaded.num_blocks, loaded.num_host_blocks, loaded.max_tokens, loaded.max_seqs,
        loaded.max_block_refs, bulk_bytes, loaded.max_logit_rows or loaded.max_seqs,
    )  # fmt: skip


def invalid(message: str) -> DriverFault:
    """Return the refusal of a plan."""
    return DriverFault(FaultKind.PLAN_INVALID, message)


# --- Execute ----------------------------------------------------------------------------------


def check_execute(execute: base.Execute, shape: Shape) -> Plan:
    """Check one forward step; PLAN_INVALID names the first thing that is wrong."""
    read = [read_ints(raw) for raw in execute[2:9]]
    plan = Plan._make([*read, tuple(Table(*map(read_ints, table)) for table in execute.tables)])
    num_tokens, num_seqs = len(plan.tokens), len(plan.kv_len)
    if execute.model != shape.model:
        raise invalid(f"model {execute.model} is not loaded")
    if not 0 < num_seqs <= shape.max_seqs:
        raise invalid(f"{num_seqs} sequences, the limits are 1 and {shape.max_seqs}")
    if num_tokens > shape.max_tokens:
        raise invalid(f"{num_tokens} tokens, the limit is {shape.max_tokens}")
    check_length("positions", plan.positions, num_tokens)
    check_length("slots", plan.slots, num_seqs)
    check_length("generations", plan.generations, num_seqs)
    _check_indptr("qo_indptr", plan.qo_indptr, num_seqs, num_tokens)
    check_range("token", plan.tokens, base.LAST_SAMPLE, shape.vocab)
    check_range("slot", plan.slots, 0, shape.max_seqs)
    check_range("logit row", plan.logit_rows, 0, num_tokens)
    if len(plan.logit_rows) > num_tokens:
        raise invalid(f"{len(plan.logit_rows)} logit rows of {num_tokens} tokens")
    _check_logit_rows(len(plan.logit_rows), shape)
    if len(set(plan.slots)) != num_seqs:
        raise invalid("two sequences have the same slot")
    _check_positions(plan, shape)
    if len(plan.tables) != 1:
        raise invalid(f"{len(plan.tables)} block tables, the model has 1 KV group")
    _check_table(plan, plan.tables[0], shape)
    return plan


def _check_logit_rows(count: int, shape: Shape) -> None:
    if count > shape.max_logit_rows:
        raise invalid(f"{count} logit rows, the limit is {shape.max_logit_rows}")


def _check_positions(plan: Plan, shape: Shape) -> None:
    indptr, positions = plan.qo_indptr, plan.positions
    for s, kv_len in enumerate(plan.kv_len):
        first, last = indptr[s], indptr[s + 1]
        start = kv_len - (last - first)
        if first == last:
            raise invalid(f"sequence {s} has no tokens")
        if start < 0 or kv_len > shape.max_ctx:
            raise invalid(
                f"sequence {s}: {last - first} tokens and kv_len {kv_len}, "
                f"max_ctx is {shape.max_ctx}"
            )
        right = (
            positions[first] == start
            if last - first == 1
            else positions[first:last] == array("i", range(start, kv_len))
        )
        if not right:
            raise invalid(f"sequence {s}: positions are not {start} to {kv_len - 1}")


def _check_table(plan: Plan, table: Table, shape: Shape) -> None:
    num_refs, size = len(table.blocks), shape.block_size
    if num_refs > shape.max_block_refs:
        raise invalid(f"{num_refs} block references, the limit is {shape.max_block_refs}")
    check_length("write_slot", table.write_slot, len(plan.tokens))
    _check_indptr("indptr", table.indptr, len(plan.kv_len), num_refs)
    check_range("block", table.blocks, 0, shape.num_blocks)
    for s, kv_len in enumerate(plan.kv_len):
        first, used = table.indptr[s], -(-kv_len // size)
        if table.indptr[s + 1] - first < used:
            have = table.indptr[s + 1] - first
            raise invalid(f"sequence {s}: {have} blocks for {kv_len} positions, needs {used}")
        blocks = table.blocks[first : first + used]
        if NULL_BLOCK in blocks:
            raise invalid(f"sequence {s} would read the null block")
        _check_writes(s, plan, table.write_slot, blocks, size)
    real = [slot for slot in table.write_slot if slot >= size]
    if len(set(real)) != len(real):
        raise invalid(f"{len(real) - len(set(real))} slots would be written twice")


def _check_writes(
    s: int, plan: Plan, write_slot: "array[int]", blocks: "array[int]", size: int
) -> None:
    """Each token goes to the slot that the table gives its position, or to the null block."""
    first, last = plan.qo_indptr[s], plan.qo_indptr[s + 1]
    position = plan.positions[first]
    for index in range(first, last):
        slot = write_slot[index]
        if slot != blocks[position // size] * size + position % size and not 0 <= slot < size:
            raise invalid(
                f"sequence {s}: position {position} is to be written to slot {slot}, its table "
                f"says {blocks[position // size] * size + position % size}"
            )
        position += 1


def check_sample(sample: base.Sample, plan: Plan | None, shape: Shape) -> Draws:
    """Check the draws of the rows of the Execute before."""
    if plan is None:
        raise invalid("a Sample without an Execute before it in the Submit")
    try:
        seed = base.read_seeds(sample.seed)
        real = [base.read_reals(raw) for raw in (sample.temperature, sample.top_p, sample.min_p)]
    except ValueError:
        raise invalid("a buffer of a Sample is no multiple of its item size") from None
    rows, top_k, position, num_logprobs = map(
        read_ints, (sample.rows, sample.top_k, sample.position, sample.num_logprobs)
    )
    draws = Draws(rows, real[0], top_k, real[1], real[2], seed, position, num_logprobs)
    for name, values in draws._asdict().items():
        if name != "adjust":
            check_length(name, values, len(plan.logit_rows))
    check_range("row", rows, 0, len(plan.kv_len))
    check_range("position", position, 0, shape.max_ctx + 1)
    check_range("num_logprobs", num_logprobs, -1, min(base.MAX_LOGPROBS, shape.vocab) + 1)
    for row, token in zip(rows, plan.logit_rows, strict=True):
        if not plan.qo_indptr[row] <= token < plan.qo_indptr[row + 1]:
            raise invalid(f"token {token} is not of sequence {row}")
    for temperature, k, p, least in zip(real[0], top_k, real[1], real[2], strict=True):
        if not (isfinite(temperature) and temperature >= 0 and k >= 0 and 0 <= p <= 1):
            raise invalid(f"temperature {temperature:g}, top_k {k}, top_p {p:g}")
        if not 0 <= least <= 1:
            raise invalid(f"min_p {least:g}, it goes from 0 to 1")
    return draws._replace(adjust=_adjust(sample, rows)) if sample.adjust else draws


def _adjust(sample: base.Sample, rows: "array[int]") -> "array[int]":
    adjust = read_ints(sample.adjust)
    check_length("adjust", adjust, len(rows))
    check_range("adjust", adjust, 0, 2)
    adjusted = [row for row, flag in zip(rows, adjust, strict=True) if flag]
    if len(set(adjusted)) != len(adjusted):
        raise invalid("a sequence has two rows that are to be adjusted")
    return adjust


def check_score(score: base.Score, plan: Plan | None, shape: Shape) -> Given:
    """Check the rows of a Score, on top of those of the Execute before."""
    if plan is None:
        raise invalid("a Score without an Execute before it in the Submit")
    given = Given(*map(read_ints, score))
    for name, values in given._asdict().items():
        check_length(name, values, len(given.rows))
    check_range("row", given.rows, 0, len(plan.tokens))
    check_range("id", given.ids, 0, shape.vocab)
    check_range("num_logprobs", given.num_logprobs, 0, min(base.MAX_LOGPROBS, shape.vocab) + 1)
    if sorted(set(given.rows)) != list(given.rows):
        raise invalid("the rows of a Score do not rise")
    _check_logit_rows(len(plan.logit_rows) + len(given.rows), shape)
    return given


def read_ints(raw: bytes) -> "array[int]":
    """Return an int32 buffer of a plan; PLAN_INVALID if it is none."""
    if len(raw) % 4:
        raise invalid(f"a buffer of {len(raw)} bytes is not one of int32")
    return base.read_ints(raw)


def check_length(name: str, values: "array[Any]", count: int) -> None:
    """Refuse a buffer with another number of entries."""
    if len(values) != count:
        raise invalid(f"{name} has {len(values)} entries instead of {count}")


def check_range(name: str, values: "array[int]", low: int, end: int) -> None:
    """Refuse values outside of low <= value < end."""
    if values and not (low <= min(values) and max(values) < end):
        worst = min(values) if min(values) < low else max(values)
        raise invalid(f"{name} {worst}, allowed are {int(low)} to {end - 1}")


def _check_indptr(name: str, indptr: "array[int]", count: int, total: int) -> None:
    check_length(name, indptr, count + 1)
    if indptr[0] != 0 or indptr[-1] != total or sorted(indptr) != list(indptr):
        raise invalid(f"{name} does not rise from 0 to {total}")
