"""Pager: makes room when blocks run out.

There is one tier below the device in this kernel: none. A context whose KV is dropped keeps its
ids and is computed again when it runs, so nothing is lost but time. In this order: idle contexts,
then the KV of running requests younger than the one in need. The oldest request is never a
victim of a younger one, and admission has seen that each fits the pool alone: so it always ends.

A block goes only if no context that keeps its KV names it. Dropped blocks are free after their
scrub (kernel/block.py), so room made now is room for the next step.
"""

from collections import Counter
from collections.abc import Iterable
from typing import cast

from kernel.block import NOT_RESIDENT, Block, BlockPool
from kernel.context import Context
from kernel.policy import Policy
from kernel.request import Request


def make_room(
    pool: BlockPool,
    policy: Policy,
    needed: int,
    by: Request,
    contexts: Iterable[Context],
    requests: Iterable[Request],
) -> bool:
    """Drop KV until `needed` blocks are free or coming; False if others older than `by` hold it."""
    missing = needed - pool.num_free - pool.num_coming
    if missing <= 0:
        return True
    active = [request for request in requests if not request.held]
    idle = policy.idle_victims(c for c in contexts if c.request is None or c.request.held)
    younger = policy.victims(request for request in active if request.arrival > by.arrival)
    kept = Counter(b for request in active for b in request.ctx.blocks if b.refs > 1)
    for ctx in idle:
        missing -= _drop(pool, cast(Context, ctx), missing, kept)
        if missing <= 0:
            return True
    for request in younger:
        ctx = cast(Request, request).ctx
        kept.subtract(b for b in ctx.blocks if b.refs > 1)
        missing -= _drop(pool, ctx, missing, kept)
        if missing <= 0:
            return True
    return False


def _drop(pool: BlockPool, victim: Context, missing: int, kept: "Counter[Block]") -> int:
    """Evict up to `missing` blocks of `victim`, from its end, that nobody who keeps KV names."""
    dropped = 0
    for block in reversed(victim.blocks):
        if dropped == missing:
            break
        if block.id == NOT_RESIDENT:
            dropped += _drop_origin(pool, block)
        elif block.refs == 1 or kept.get(block, 0) <= 0:
            pool.evict(block)
            dropped += 1
    return dropped


def _drop_origin(pool: BlockPool, block: Block) -> int:
    """Give up an origin that only waits to be copied; return the blocks that this frees."""
    coming = pool.num_coming
    pool.drop_origin(block)
    return pool.num_coming - coming
