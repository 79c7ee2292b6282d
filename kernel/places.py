"""Places: what a plan gives its requests on the device, and who waits for some.

A request gets all places that its part of a step needs, or none: then it waits for the pager's
room, and nobody behind it in that plan takes new ones, but those that decode: they need one now and
then, and end the sooner. For the first that waits, room is made; in the next plans it comes before
all others until it has its places, and until then nobody else takes any. So room goes to whom it
was made for; and to the head, if it was made in part only, the rest being on its way.
"""

from collections.abc import Sequence
from typing import cast

from kernel.block import NOT_RESIDENT, Block
from kernel.pager import Pager
from kernel.policy import Policy
from kernel.pool import BlockPool
from kernel.request import Request, RequestState
from syscalls.errors import ENOMEM, KernelError


class Places:
    """The places of one model, as its scheduler plans with them."""

    def __init__(self, pool: BlockPool, policy: Policy, pager: Pager) -> None:
        self.pool = pool
        self.policy = policy
        self.pager = pager
        self.has_room = False  # the pager has found some that is there already
        self._copies: list[tuple[int, int]] = []  # of a plan, from block to block
        self._taken: list[Block] = []  # that begin as these copies
        self._starved: dict[Request, Sequence[Block]] = {}  # what got no places, in order
        self._room_for: Request | None = None
        self._promised = False  # it is among those that got none

    # --- a plan -------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a plan; the one before may never have been sent."""
        self._starved.clear()
        self._promised = False

    def are_short(self, requests: Sequence[Request]) -> bool:
        """Whether requests that prefill need more places than there are: somebody else's, then."""
        size = self.pool.block_size
        needed = sum(-(-r.target // size) - r.start // size for r in requests)
        return needed > self.pool.num_free + self.pool.num_cached

    def first_of(self, runnable: Sequence[Request]) -> Request | None:
        """Return the request that room was made for, if it still wants it."""
        first = self._room_for
        if first is not None and (first.done or first not in runnable):
            self._room_for = None
        return self._room_for

    def bring(self, request: Request, start: int) -> None:
        """Let a request wait for copies, or for places for them."""
        away = self.pager.absent(request.ctx, start // self.pool.block_size)
        _block(request, len(away))
        if not away or request.background:
            return
        if self._may_take(request) and self.pager.bring(away):
            self._has_places(request)
            self.pager.used(request.ctx)
            request.lacks = 0  # they come
        else:
            self._starve(request, away)

    def _may_take(self, request: Request) -> bool:
        """Whether a request may have places, now that others have got none."""
        return not self._starved or (request.decoding and not self._promised)

    def _starve(self, request: Request, wanted: Sequence[Block]) -> None:
        self._starved[request] = wanted
        self._promised |= request is self._room_for

    def reserve(self, request: Request, start: int, end: int) -> bool:
        """Give every block up to `end` a place; False (and nothing changed) if there is none."""
        ctx, size = request.ctx, self.pool.block_size
        wanted = [b for b in ctx.blocks[start // size : -(-end // size)] if b.id == NOT_RESIDENT]
        there = self.pool.num_free + self.pool.num_cached
        if wanted and (len(wanted) > there or not self._may_take(request)):
            if not request.sampling:
                if not request.background:
                    self._starve(request, wanted)
                _block(request, len(wanted))
            return False
        self._has_places(request)
        for block in wanted:
            self.pool.alloc(block)
            if block.origin is not None:
                self._take_over(block, block.origin)
        return True

    def _has_places(self, request: Request) -> None:
        if self._room_for is request:
            self._room_for = None

    def _take_over(self, block: Block, origin: Block) -> None:
        if origin.id != NOT_RESIDENT:
            self._copies.append((origin.id, block.id))
            block.filled = block.planned = block.inherits
            self.pool.copied += 1
            self._taken.append(block)
        else:
            self.pool.drop_origin(block)

    def copies(self) -> list[tuple[int, int]]:
        """End a plan: return the (src, dst) blocks to be copied before its step."""
        copies, self._copies = self._copies, []
        for block in self._taken:  # only now: no place of an origin is taken by that very message
            self.pool.drop_origin(block)
        self._taken.clear()
        return copies

    # --- room ---------------------------------------------------------------------------------

    def make_room(self, active: Sequence[Request]) -> list[tuple[Request, KernelError]]:
        """Let the pager find places for the first request of the last plan that got none.

        `active` are all that run. Only now that the plan is on its way: it may name the blocks
        that go. Their scrub is queued behind it, and copies of them wait for it. If nothing may go
        for the first one, the head has its turn: to it, the first one's blocks may. Returns that
        one with an error if it would wait for ever, because only what is pinned is in its way.
        """
        self.has_room = False
        if not self._starved:
            return []
        head = cast(Request, self.policy.claims(active)[0])
        for request in dict.fromkeys((next(iter(self._starved)), head)):
            wanted = self._starved.get(request, ())
            if not wanted:
                return []
            made = self.pager.make_room(len(wanted), request, active)
            for block in () if made else wanted:
                self.pager.drop_origin(block)  # computing again needs one block less
            cached = 0 if wanted[0].away else self.pool.num_cached  # copies take free places only
            self.has_room = self.pool.num_free + cached >= len(wanted)
            if made or self.has_room:
                self._room_for = request
                return []
        if self.pager.expects_room:
            self._room_for = head  # else those who gave way would take it again, and for ever
            return []
        return [(head, self._no_room(len(wanted)))]

    def _no_room(self, needed: int) -> KernelError:
        free, pinned = self.pool.num_free + self.pool.num_cached, self.pager.pinned
        return ENOMEM(
            f"needs {needed} more KV blocks, {free} are free and {pinned} of the "
            f"{self.pool.num_blocks - 1} are pinned",
            "unpin a context, or start the kernel with a larger --kv-mem",
            {"needed": needed, "available": free},
        )


def _block(request: Request, lacks: int) -> None:
    """Note that a request waits for so many blocks; one that is in flight does not yet."""
    request.lacks = lacks
    if not request.flying:
        request.become(RequestState.BLOCKED)
