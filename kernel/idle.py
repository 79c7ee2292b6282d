"""Idle: contexts that may have KV on the device, in the order in which the pager looks at them.

    order      least recently used first; those that were demoted or stopped before all others
    sharing    had only blocks that others name, too, when they were looked at last
    retained   are to keep their KV for a while, as long as others have any

A context is in one of them from its first step on until it has nothing on the device or goes. So
what the pager does grows with what it takes, not with how many contexts there are.
"""

from collections import OrderedDict
from collections.abc import Iterator

from kernel.block import NOT_RESIDENT
from kernel.context import Context

CHUNK = 64
"""Contexts that a policy is asked about at a time."""


class IdleOrder:
    """The contexts of one model. Those that run are in it, too: the pager leaves them out."""

    def __init__(self) -> None:
        self.order: OrderedDict[Context, None] = OrderedDict()
        self.sharing: OrderedDict[Context, None] = OrderedDict()
        self.retained: OrderedDict[Context, None] = OrderedDict()
        self.pins: dict[Context, None] = {}

    def used(self, ctx: Context, now: float) -> None:
        """Note that a context has, or is about to have, KV on the device."""
        ctx.used_at = now
        if ctx.retained_until > now:
            self._drop(ctx)
            self.retained[ctx] = None
        else:
            self.sharing.pop(ctx, None)
            self.retained.pop(ctx, None)
            self.order[ctx] = None
            self.order.move_to_end(ctx)

    def first(self, ctx: Context) -> None:
        """Let a context be the first to lose its place."""
        self._drop(ctx)
        self.order[ctx] = None
        self.order.move_to_end(ctx, last=False)

    def looked_at(self, ctx: Context) -> None:
        """Note that a context has no block on the device any more that it could give up alone."""
        self._drop(ctx)
        if any(block.id != NOT_RESIDENT or block.moving for block in ctx.blocks):
            self.sharing[ctx] = None  # what is on its way to the device is as good as there

    def forget(self, ctx: Context) -> None:
        """Note that a context has gone."""
        self._drop(ctx)
        self.pins.pop(ctx, None)

    def _drop(self, ctx: Context) -> None:
        for where in (self.order, self.sharing, self.retained):
            where.pop(ctx, None)

    def expire(self, now: float) -> None:
        """Treat contexts like others that have been retained for long enough."""
        for ctx in [ctx for ctx in self.retained if ctx.retained_until <= now]:
            self.first(ctx)


def chunks(of: "OrderedDict[Context, None]") -> Iterator[list[Context]]:
    """Yield contexts in order, some at a time; they may be moved meanwhile."""
    contexts = list(of)
    for start in range(0, len(contexts), CHUNK):
        yield contexts[start : start + CHUNK]
