"""Reuse: before a request computes anything, it takes what others of the same owner have computed.

A prompt that begins like an earlier one finds its blocks in the prefix index (kernel/prefix.py);
the context then names those instead of its own. It looks again before each step: a request that
runs at the same time may be a step ahead, and then they share what each of them computes.
"""

from kernel.block import Move
from kernel.context import Loss
from kernel.pager import Pager
from kernel.pool import BlockPool
from kernel.request import Request

MAX_LOOKUPS = 512
"""In one plan: about a millisecond. A request that has more to look for waits for the next."""


class Reuse:
    """The hits of one model."""

    def __init__(self, pool: BlockPool, pager: Pager) -> None:
        self.pool = pool
        self.pager = pager
        self.hit_tokens = 0

    def look_up(self, request: Request, budget: int) -> int:
        """Let the request's context name what the index has; return how often was looked.

        Up to the first block that is not there: nothing that comes after it could be.
        """
        ctx, index = request.ctx, self.pool.index
        full, at, count = ctx.length // self.pool.block_size, request.sought, 0
        while at < full and count < budget:
            block = ctx.blocks[at]
            if not block.have and not block.planned and block.moving is Move.NONE:
                count += 1
                found = index.find(ctx.blocks, at)
                if found is None or found is block:  # it has lost its KV, and none is as good
                    self._miss(request, at)
                    break
                had = block.origin_len if block.origin is not None else 0
                ctx.adopt(at, found)
                self._hit(request, at, had)
            at += 1
        request.seeking = at < full and count == budget
        request.sought = at
        request.start = ctx.planned
        return count

    def _hit(self, request: Request, at: int, had: int) -> None:
        """Count what was found; `had` positions of it were to be copied, and are counted."""
        size = self.pool.block_size
        self.hit_tokens += size - had
        request.cached += max(0, min((at + 1) * size, request.prompt - 1) - at * size - had)

    def _miss(self, request: Request, at: int) -> None:
        """Remember why, if it was there once: `explain` tells it."""
        ctx, size = request.ctx, self.pool.block_size
        eviction = self.pool.index.eviction(ctx.blocks[at])
        if eviction is None or request.missed:
            return
        request.missed = True
        tokens = ctx.length - at * size
        cost = round(tokens * self.pager.us_per_token)
        why = "a cached prefix, and the oldest when room was needed"
        ctx.losses.append(
            Loss(eviction.at, "evicted", why, at * size, tokens, eviction.by_pid, cost)
        )
