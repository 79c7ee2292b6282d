"""Handler of score: the probabilities of ids that are there, given those before them.

A score is a request like an infer, and shares what happens to it (kernel/sys_infer.py). It needs
the logits of the positions from start - 1 on, those of the last id excepted: what is computed
already is run again for them and stored nowhere, so whoever shares its blocks notices nothing.
"""

from kernel import quota
from kernel.grant import require
from kernel.handler import PENDING, Caller, Pending
from kernel.ledger import charge
from kernel.request import Request
from kernel.sys_infer import check_ids, check_room, refuse_busy, require_feature, start_request
from kernel.system import System
from syscalls.abi import Access, Score
from syscalls.errors import ECANCELED, EINVAL


def sys_score(k: System, caller: Caller, args: Score) -> Pending:
    """Append the ids of frame 2, if any, and score. Nothing has changed if it is refused."""
    ctx = k.context(caller.task, args.ctx)
    require(ctx, Access.INFER, "score")
    if args.start < ctx.foreign:
        require(ctx, Access.READ, f"score of what it was opened with, {ctx.foreign} ids,")
    refuse_busy(ctx)
    ctx.model.require()
    require_feature(k, "score")
    if k.stopping:
        raise ECANCELED("the kernel is shutting down")
    ids = caller.ids
    length = ctx.length + (len(ids) if ids else 0)
    check_room(ctx, length, 0)
    if ids:
        check_ids(ctx, ids)
    if args.start >= length:
        raise EINVAL(f"there is no id from position {args.start} on: the context has {length}")
    if args.top > ctx.model.desc.vocab:
        raise EINVAL(f"{args.top} best ids of a vocabulary of {ctx.model.desc.vocab}")
    quota.admit_request(k, caller, ctx, length)
    cached = min(ctx.computed, args.start - 1)
    if ids:
        ctx.append(ids)
        charge(caller.task.payer, "input_ids", len(ids))
    task = caller.task
    request = Request(
        next(k.arrivals), ctx, None, caller.session, caller.call, 0, task.payer, task.rank, args
    )
    start_request(k, caller, request, cached)
    return PENDING
