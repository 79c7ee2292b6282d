"""Returning: the KV of a task that waits in a call, which will not be needed before the reply.

Who waits for a tool says so by its call: so it is known, not guessed, that its contexts are idle,
and from what the port has taken so far for how long. The policy says whether a context is parked:
its blocks are the first to go when room is needed. What has gone comes back with the reply, as far
as places are free.
"""

from collections.abc import Iterable
from itertools import islice
from operator import attrgetter

from kernel.context import Context
from kernel.mail import Mail
from kernel.system import System
from kernel.task import Task

NEWEST = 1024
"""Contexts of a task that a call takes note of; of others nothing is known, as before."""
FETCHED = 256
"""Blocks that one reply brings back: about a millisecond. An infer brings the others."""
LOOKED_AT = 8192
"""Blocks that are looked at for it."""
_LAST_USE = attrgetter("last_use")


def called(k: System, task: Task) -> None:
    """Note of a task's contexts that it has begun to wait for a reply."""
    mail: Mail = task.mail
    at, now = mail.returns_at, k.clock()
    for ctx in islice(reversed(task.contexts.values()), NEWEST):
        ctx.returns_at = at
        mail.away.setdefault(ctx, False)
        if ctx.request is None and ctx.blocks and not ctx.retained_until > now:
            pager = ctx.model.sched.pager
            if pager.policy.parks(at - now, len(ctx.blocks) * pager.swap.us_per_block):
                pager.idle.first(ctx)
                mail.away[ctx] = True


def came_back(k: System, task: Task) -> None:
    """Note that a reply has come, or will not: without another one to wait for, fetch the KV."""
    mail: Mail = task.mail
    at = mail.returns_at
    for ctx in mail.away:
        ctx.returns_at = at
    if not mail.calls:
        parked = [ctx for ctx, is_parked in mail.away.items() if is_parked and not ctx.gone]
        mail.away.clear()
        _fetch(sorted(parked, key=_LAST_USE, reverse=True))


def _fetch(contexts: Iterable[Context]) -> None:
    """Bring back what is away, the context that was used last first."""
    left, looks = FETCHED, LOOKED_AT
    for ctx in contexts:
        pager = ctx.model.sched.pager
        looks -= len(ctx.blocks)
        if left and looks >= 0 and ctx.model.serves and not (ctx.revoked or ctx.demoted):
            left -= pager.prefetch(ctx, left)
        elif not ctx.demoted:
            pager.used(ctx)
