"""Pager: makes room when blocks run out.

There is one tier below the device in this kernel: none. A context whose KV is dropped keeps its
ids and is computed again when it runs, so nothing is lost but time. In this order: idle contexts,
then the KV of running requests younger than the one in need. The oldest request is never a
victim of a younger one, and admission has seen that each fits the pool alone: so it always ends.

A block goes only if no context that keeps its KV names it. Dropped blocks are free after their
scrub (kernel/block.py), so room made now is room for the next step.
"""

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
    losers = [cast(Request, request).ctx for request in younger]
    keepers = [request.ctx for request in active]
    for victim in (*(cast(Context, ctx) for ctx in idle), *losers):
        keepers = [ctx for ctx in keepers if ctx is not victim]
        missing -= _drop(pool, victim, missing, keepers)
        if missing <= 0:
            return True
    return False


def _drop(pool: BlockPool, victim: Context, missing: int, keepers: list[Context]) -> int:
    """Evict up to `missing` blocks of `victim`, from its end, that no keeper names."""
    dropped = 0
    kept: set[Block] | None = None
    for block in reversed(victim.blocks):
        if dropped == missing:
            break
        if block.id == NOT_RESIDENT:
            dropped += _drop_origin(pool, block)
            continue
        if block.refs > 1:
            if kept is None:
                kept = {b for ctx in keepers for b in ctx.blocks if b.refs > 1}
            if block in kept:
                continue
        pool.evict(block)
        dropped += 1
    return dropped


def _drop_origin(pool: BlockPool, block: Block) -> int:
    """Give up an origin that only waits to be copied; return the blocks that this frees."""
    coming = pool.num_coming
    pool.drop_origin(block)
    return pool.num_coming - coming
