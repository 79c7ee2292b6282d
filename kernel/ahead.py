"""Ahead: a request in a step before the step that samples its last id has ended.

    step N       computes all before position p, samples the id of p                     in flight
    step N + 1   computes p, whatever its id is (LAST_SAMPLE), samples that of p + 1   planned

What N + 1 writes at p counts for nothing until N has ended and its id has become part of the
context: then the entry is *confirmed*, and its write is one like any other. So a block is sealed,
and found by its ids, at commit only. If the id ends the request instead, the part of N + 1 is
wasted, and discarded like that of any request that has ended. What it leaves behind the last id is
never read: whoever goes on there writes it again, in a later step of the same queue; and if the
block is given up, it is zeroed in a later one.

Not ahead goes what depends on the id: one whose driver must first be told of its ids (`untold`), a
score, one that has to copy a block before it writes, one that may have no more ids. Those wait for
the step in flight, and are planned when it has ended. Nothing is dropped to make room for an entry
ahead: what it waits for may be about to be given up.
"""

from kernel.pool import BlockPool
from kernel.request import Request
from kernel.step import Entry

MAX_US = 20_000
"""Of all steps in flight, if they are more than the one that computes and the one behind it."""


def may_follow(request: Request) -> bool:
    """Whether a request that is in a step in flight may be in the one behind it."""
    if not request.sampling:
        return request.score is None  # a prefill goes on where it is planned to end
    ctx, infer = request.ctx, request.infer
    assert infer is not None
    return (
        request.output + request.sampling < infer.max_tokens
        and ctx.length + request.sampling < ctx.model.desc.max_ctx
        and ctx.planned == ctx.length
    )


def start_of(request: Request) -> int:
    """Return the first position that a request has to compute: the one its last sample is of."""
    return request.ctx.length + request.sampling - 1 if request.sampling else request.ctx.planned


def confirm(request: Request, pool: BlockPool) -> None:
    """Let the oldest entry ahead of a request count, now that the id that it computes is known."""
    if not request.ahead:
        return
    entry: Entry = request.ahead.popleft()
    write, table, at = entry.ahead, request.ctx.blocks, entry.start // pool.block_size
    assert write is not None
    if table[at] is write.block and write.block.id == write.id:
        write.block.planned = write.upto
        entry.writes.append(write)
        if write.upto == pool.block_size:
            pool.enter(table, at)
