"""Pager: makes room on the device when places run out, and brings back what was moved away.

Under pressure, in this order: cached blocks go, the oldest first; then blocks of idle contexts;
then those of running requests that give way to the one in need, as the policy says. What goes is
copied to the host tier if that has room and the policy finds a copy cheaper than computing it
again; else it is dropped. No context is lost: its ids are known, tiers only decide what it costs to
go on.

The head, as the policy says, is nobody's victim, and admission has seen that each fits beside what
is pinned: so it always ends, or gives its place to another one that is the head then.

A block goes only if no context that keeps its KV names it; blocks that others share go last. Room
made now is room for a later step: places are free after a copy, a scrub and their fences.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

from kernel.block import NO_PLACE, NOT_RESIDENT, Block, Move
from kernel.context import Context, Loss
from kernel.diskswap import DiskSwap
from kernel.idle import IdleOrder, chunks
from kernel.limits import fits
from kernel.policy import Policy
from kernel.pool import BlockPool
from kernel.request import Request
from kernel.swap import Swap
from syscalls.abi import Resource


class Pager:
    """The pager of one model."""

    def __init__(
        self,
        pool: BlockPool,
        swap: Swap,
        disk: DiskSwap,
        policy: Policy,
        burying: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self.pool = pool
        self.swap = swap
        self.disk = disk
        self.policy = policy
        self.idle = IdleOrder()
        self.lost_tokens = 0
        self.given_up = 0  # blocks and claims on origins, that contexts had to let go
        self.us_per_token = 0.0  # that computing takes, as measured
        self._burying = burying
        self._clock = clock

    @property
    def pinned(self) -> int:
        """Blocks of pinned contexts, at most: what they share is counted for each."""
        return sum(len(ctx.blocks) for ctx in self.idle.pins)

    @property
    def pin_limit(self) -> int:
        """Blocks that pinned contexts may have: half of the pool."""
        return (self.pool.num_blocks - 1) // 2

    def pin(self, ctx: Context) -> None:
        """Keep a context's KV on the device."""
        ctx.pinned = True
        self.idle.pins[ctx] = None

    def unpin(self, ctx: Context) -> None:
        """Let a context's KV go when room is needed."""
        ctx.pinned = False
        self.idle.pins.pop(ctx, None)

    def used(self, ctx: Context) -> None:
        """Note that a context has, or is about to have, KV on the device."""
        self.idle.used(ctx, self._clock())

    # --- room ---------------------------------------------------------------------------------

    @property
    def expects_room(self) -> bool:
        """Whether places become free without anything more being done."""
        moving = self.swap.busy or self.disk.busy
        return bool(self.pool.num_coming or moving or self.pool.visits or self._burying())

    def make_room(self, needed: int, by: Request, active: Sequence[Request]) -> bool:
        """Let `needed` places become free; False if what holds the rest may not go."""
        pool = self.pool
        if self._burying():
            return True  # what contexts leave that have gone is free in a few turns
        leaving = self.swap.leaving + self.disk.leaving
        missing = needed - pool.num_free - pool.num_coming - leaving
        if missing <= 0:
            return True
        missing -= pool.reclaim(missing, by.ctx.pid)
        if missing <= 0:
            return True
        missing = self._from_idle(missing, by, active)
        if missing <= 0:
            return True
        kept = self._kept(active)
        for request in self._victims(by, active):
            if request.ctx.pinned:
                continue
            kept.subtract(b for b in request.ctx.blocks if b.refs > 1)
            request.sought = 0  # of what it loses, the index may have some by then
            missing -= self._shed(request.ctx, missing, kept, True, by)
            if missing <= 0:
                return True
        return False

    def _victims(self, by: Request, active: Sequence[Request]) -> list[Request]:
        """Return the requests that give way to another one, the first to go first."""
        others = [request for request in active if request is not by]
        claims = cast(Sequence[Request], self.policy.claims([*others, by]))
        return [*claims[claims.index(by) + 1 :]][::-1]

    def _from_idle(self, missing: int, by: Request, active: Sequence[Request]) -> int:
        """Take places from contexts that run nothing; return how many are still missing."""
        idle, now = self.idle, self._clock()
        idle.expire(now)
        running = {request.ctx for request in active}
        kept: Counter[Block] = Counter()
        for of, shared in ((idle.order, False), (idle.sharing, True), (idle.retained, True)):
            if shared and not kept:
                kept = self._kept(active)
            stuck: set[Block] = set()  # seen, and may not go: a thousand forks are looked at once
            for chunk in chunks(of):
                candidates = [ctx for ctx in chunk if ctx not in running and not ctx.pinned]
                for item in self.policy.idle_victims(candidates, now):
                    ctx = cast(Context, item)
                    if not stuck.issuperset(ctx.blocks):
                        freed = self._shed(ctx, missing, kept, shared, by)
                        missing -= freed
                        if missing <= 0:
                            return missing
                        stuck.update(() if freed else ctx.blocks)
                    if of is not idle.retained:
                        idle.looked_at(ctx)
        return missing

    def _kept(self, active: Sequence[Request]) -> "Counter[Block]":
        """Return the shared blocks that those name who keep their KV, and how many of them do."""
        holders = {*(request.ctx for request in active), *self.idle.pins}
        return Counter(b for ctx in holders for b in ctx.blocks if b.refs > 1)

    def demote(self, ctx: Context, most: int) -> int:
        """Let up to `most` blocks that only this context names leave the device now; count them."""
        self.idle.first(ctx)
        return self._shed(ctx, most, Counter(), False, None)

    def give_way(
        self, ctx: Context, most: int, active: Sequence[Request], mine: Callable[[Block], bool]
    ) -> int:
        """Let up to `most` blocks of an idle context leave, of those that are shared its own only,
        and no block of one that runs or is pinned; return how many do."""
        kept = self._kept(active)
        kept.update(block for block in ctx.blocks if block.refs > 1 and not mine(block))
        return self._shed(ctx, most, kept, True, None)

    def prefetch(self, ctx: Context, most: int) -> int:
        """Bring up to `most` blocks back that there are free places for; return how many come."""
        away = self.absent(ctx, 0)[: min(most, self.pool.num_free)]
        self.bring(away)
        self.used(ctx)
        return len(away)

    def note_death(self) -> None:
        """Let contexts remember that what they had on the device only has died with it."""
        idle, now = self.idle, self._clock()
        for ctx in (*idle.order, *idle.sharing, *idle.retained):
            lost = [
                (place, block.filled)
                for place, block in enumerate(ctx.blocks)
                if block.filled > block.kept and block.disk == NO_PLACE
            ]
            if lost:
                tokens = sum(filled for _, filled in lost)
                start, cost = lost[0][0] * self.pool.block_size, round(tokens * self.us_per_token)
                why = "its device's driver ended"
                ctx.losses.append(Loss(now, "died", why, start, tokens, 0, cost))

    def _shed(
        self,
        victim: Context,
        missing: int,
        kept: "Counter[Block]",
        shared: bool,
        by: Request | None,
    ) -> int:
        """Let up to `missing` blocks of a context go, from its end; return how many do."""
        blocks, freed = self._choose(victim, missing, kept, shared)
        if not blocks:
            return freed
        size = self.pool.block_size
        first = min(place for place, _ in blocks)
        tokens = sum(block.planned for _, block in blocks)
        swaps = self._swaps(len(blocks), tokens)
        swapped = dropped = lost = 0
        for _, block in blocks:
            if _below(block):
                self.pool.release(block)
                swapped += 1
            elif swaps and block.planned and self._goes_down(block):
                swapped += 1
            else:
                lost += block.planned
                self.pool.evict(block)
                dropped += 1
        self.given_up += len(blocks)
        self._note(victim, by, first * size, tokens - lost, lost)
        return freed + swapped + dropped

    def _goes_down(self, block: Block) -> bool:
        """Ask for a copy to the highest lower tier that has room, and in which it may be."""
        host, disk = Resource.HOST_BLOCKS, Resource.DISK_BLOCKS
        if fits(block, host, self.swap.leaving) and self.swap.out(block):
            return True
        return fits(block, disk, self.disk.leaving) and self.disk.out(block)

    def _choose(
        self, victim: Context, missing: int, kept: "Counter[Block]", shared: bool
    ) -> tuple[list[tuple[int, Block]], int]:
        """Return blocks that may go, with their places, and how many came free already."""
        chosen: list[tuple[int, Block]] = []
        freed = 0
        for place in range(len(victim.blocks) - 1, -1, -1):
            block = victim.blocks[place]
            if len(chosen) + freed == missing:
                break
            if block.moving is not Move.NONE or block.readers:
                continue
            if block.id == NOT_RESIDENT:
                freed += self.drop_origin(block)
            elif block.refs == 1 or (shared and kept.get(block, 0) <= 0):
                chosen.append((place, block))
        return chosen, freed

    def drop_origin(self, block: Block) -> int:
        """Give up an origin that only waits to be copied; return the places that this frees."""
        pool, origin = self.pool, block.origin
        if origin is None or origin.id == NOT_RESIDENT or block.moving is not Move.NONE:
            return 0  # a copy that is asked for needs it, though it may be on the device by now
        self.given_up += 1
        before = pool.num_coming + pool.num_cached
        pool.drop_origin(block)
        return pool.num_coming + pool.num_cached - before

    def _swaps(self, blocks: int, tokens: int) -> bool:
        if not (self.pool.host.num_blocks or self.disk.takes):
            return False
        copy_us = 2 * blocks * self.swap.us_per_block  # there and back
        return self.policy.swaps(tokens, copy_us, tokens * self.us_per_token)

    def _note(
        self, ctx: Context, by: Request | None, start: int, swapped: int, dropped: int
    ) -> None:
        pid = by.ctx.pid if by is not None else ctx.pid
        why = "room was needed" if by is not None else "it was demoted"
        size, now = self.pool.block_size, self._clock()
        if swapped:
            cost = round(-(-swapped // size) * self.swap.us_per_block)
            ctx.losses.append(Loss(now, "swapped", why, start, swapped, pid, cost))
        if dropped:
            self.lost_tokens += dropped
            cost = round(dropped * self.us_per_token)
            ctx.losses.append(Loss(now, "dropped", why, start, dropped, pid, cost))

    # --- bringing back ------------------------------------------------------------------------

    def absent(self, ctx: Context, at: int) -> Sequence[Block]:
        """Return the blocks from place `at` on that a copy can bring to the device."""
        return [b for b in ctx.blocks[at:] if b.away and b.moving is Move.NONE]

    def bring(self, blocks: Sequence[Block]) -> bool:
        """Ask for copies of all of them, or of none if there are not enough free places."""
        if len(blocks) > self.pool.num_free:
            return False
        for block in blocks:
            (self.disk if block.source is None else self.swap).bring(block)
        return True


def _below(block: Block) -> bool:
    """Whether a lower tier has all that is on the device."""
    if not block.planned == block.filled > 0:
        return False
    return block.kept == block.filled or block.disk != NO_PLACE
