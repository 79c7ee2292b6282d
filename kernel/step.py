"""Step: the ints of one step for one device.

A step's entries say which positions of which contexts are computed; `step_ops` makes the ops of
one Submit of them, stateless: full block tables each time. All arrays are built by joining int32
buffers, so the cost per sequence is a few copies.

A step is one message. `StepLimits` are the driver's, lowered where more would not fit into one:
so any plan within them can be sent, with MAX_SCRUBS blocks to scrub on top.
"""

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from drivers import base, wire
from kernel.block import Block
from kernel.context import Context
from kernel.pool import MAX_SCRUBS
from kernel.request import Request

MAX_SEQS = 512
MAX_TOKENS = 4096
SEQ_BYTES = 80
"""Of a sequence in a message: 5 ints of its own, 11 of its sample (a seed counts two), a copy. A
row of a score takes the place of a sample."""
TOKEN_BYTES = 12
"""Of a token: id, position, slot."""
BLOCK_BYTES = 4
LAST = array("i", [base.LAST_SAMPLE])
ENVELOPE_BYTES = 1024
"""Of a message: the heads of its buffers, the ints of its own."""


class StepLimits(NamedTuple):
    """Budgets of one step."""

    max_tokens: int
    max_seqs: int
    max_block_refs: int
    prefill_chunk: int
    target_us: int  # 0: no target; a fixed chunk, for tests and simulation
    max_logit_rows: int  # samples, and ids that are scored


def step_limits(
    loaded: base.Loaded, prefill_chunk: int, target_us: int, max_seqs: int = 0
) -> StepLimits:
    """Return the budgets of a step that the driver takes and that one message holds."""
    tokens = min(loaded.max_tokens, MAX_TOKENS)
    seqs = min(loaded.max_seqs, MAX_SEQS, max_seqs or MAX_SEQS)
    room = wire.MAX_MESSAGE - ENVELOPE_BYTES - MAX_SCRUBS * BLOCK_BYTES
    refs = (room - tokens * TOKEN_BYTES - seqs * SEQ_BYTES) // BLOCK_BYTES
    return StepLimits(
        tokens, seqs, min(loaded.max_block_refs, refs), min(prefill_chunk, tokens), target_us,
        min(loaded.max_logit_rows or seqs, seqs),
    )  # fmt: skip


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
    scores: int = 0  # of its last positions: what follows them is scored
    again: int = 0  # positions whose KV was there before, until the kernel took it
    ahead: Write | None = None  # of the id that the step before samples: see kernel/ahead.py

    @property
    def decodes(self) -> bool:
        """Whether it computes what was sampled last, for the first time, and nothing else."""
        alone = self.samples and self.end - self.start == 1 and not self.again
        return alone and self.request.output > 0


class Step(NamedTuple):
    """A submitted step."""

    value: int
    entries: list[Entry]
    telling: Sequence[Request] = ()  # whose Resets go with it

    @property
    def requests(self) -> list[Request]:
        return [entry.request for entry in self.entries]


def step_ops(
    model: int,
    number: int,
    entries: list[Entry],
    copies: list[tuple[int, int]],
    dirty: list[int],
    recycled: Sequence[int] = (),
) -> tuple[Any, ...]:
    """Return the ops of one Submit: copies, scrubs, then the forward step and its samples.

    `recycled` blocks were cached until now and belong to somebody else already: they are zeroed
    before anything else, the `dirty` ones after the copies, of which they may be sources.
    """
    ops: list[Any] = []
    if recycled:
        ops.append(base.Scrub(base.ints(recycled)))
    if copies:
        src, dst = zip(*copies, strict=True)
        ops.append(base.Copy(base.Direction.D2D, base.ints(src), base.ints(dst)))
    if dirty:
        ops.append(base.Scrub(base.ints(dirty)))
    if entries:
        ops.append(_execute(model, number, entries))
        samplers = [(s, e) for s, e in enumerate(entries) if e.samples]
        if samplers:
            ops.append(_sample(samplers))
        if any(entry.scores for entry in entries):
            ops.append(_score(entries))
    return tuple(ops)


def _execute(model: int, number: int, entries: list[Entry]) -> base.Execute:
    tokens, positions, write_slot = array("i"), array("i"), array("i")
    qo_indptr, kv_indptr, kv_blocks = array("i", [0]), array("i", [0]), array("i")
    rows = array("i")
    for entry in entries:
        ctx = entry.request.ctx
        tokens.extend(ctx.read(entry.start, entry.end) if entry.ahead is None else LAST)
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
    if not entry.writes and entry.ahead is None:
        return [base.NULL_BLOCK * size + p % size for p in range(entry.start, entry.end)]
    return [table[p // size] * size + p % size for p in range(entry.start, entry.end)]


def _sample(samplers: list[tuple[int, Entry]]) -> base.Sample:
    requests = [entry.request for _, entry in samplers]
    infers = [cast(Any, request.infer) for request in requests]
    adjusted = any(request.adjusted for request in requests)
    return base.Sample(
        base.ints(row for row, _ in samplers),
        base.reals(i.temperature for i in infers),
        base.ints(i.top_k for i in infers),
        base.reals(i.top_p for i in infers),
        base.reals(i.min_p for i in infers),
        base.seeds(request.seed for request in requests),
        base.ints(entry.end for _, entry in samplers),
        base.ints(-1 if i.logprobs is None else i.logprobs for i in infers),
        base.ints(request.adjusted for request in requests) if adjusted else b"",
    )


def _score(entries: list[Entry]) -> base.Score:
    """Return the Score of a step: after each of an entry's last positions, the id that is there."""
    rows, ids, num_logprobs = array("i"), array("i"), array("i")
    end = 0
    for entry in entries:
        end += entry.end - entry.start
        if entry.scores:
            score = cast(Any, entry.request.score)
            rows.extend(range(end - entry.scores, end))
            ids.extend(entry.request.ctx.read(entry.end - entry.scores + 1, entry.end + 1))
            num_logprobs.extend([score.top] * entry.scores)
    return base.Score(rows.tobytes(), ids.tobytes(), num_logprobs.tobytes())
