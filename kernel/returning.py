"""Returning: the KV of a task that waits in a call, which will not be needed before the reply.

Who waits for a tool says so by its call: so it is known, not guessed, that its contexts are idle,
and from what the port has taken so far for how long. The policy says whether their blocks are the
first to go when room is needed. What has gone comes back with the reply, as far as places are free.
"""

from operator import attrgetter

from kernel.context import Context
from kernel.system import System
from kernel.task import Task

FETCHED = 256
"""Blocks that one reply brings back: about a millisecond. An infer brings the others."""
LOOKED_AT = 8192
"""Blocks that are looked at for it."""
_LAST_USE = attrgetter("last_use")


def called(k: System, task: Task) -> None:
    """Note of a task's contexts that it has begun to wait for a reply."""
    at, now = task.mail.returns_at, k.clock()
    for ctx in task.contexts.values():
        ctx.returns_at = at
        if ctx.request is None and ctx.blocks and not ctx.retained_until > now:
            pager = ctx.model.sched.pager
            back_us = len(ctx.blocks) * pager.swap.us_per_block
            if pager.policy.parks(at - now, back_us):
                pager.idle.first(ctx)
                ctx.parked = True


def came_back(k: System, task: Task) -> None:
    """Note that a reply has come, or will not: without another one to wait for, fetch the KV."""
    at = task.mail.returns_at
    for ctx in task.contexts.values():
        ctx.returns_at = at
    if not task.mail.calls and not task.ended_already:
        parked = [ctx for ctx in task.contexts.values() if ctx.parked]
        _fetch(sorted(parked, key=_LAST_USE, reverse=True))


def _fetch(contexts: list[Context]) -> None:
    left, looks = FETCHED, LOOKED_AT
    for ctx in contexts:
        ctx.parked = False
        usable = not ctx.revoked and not ctx.demoted and ctx.model.serves
        looks -= len(ctx.blocks) if usable and left else 0
        if usable and left and looks >= 0:
            left -= ctx.model.sched.pager.prefetch(ctx, left)
        elif not ctx.demoted:
            ctx.model.sched.pager.used(ctx)
