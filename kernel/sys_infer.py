"""Handlers of infer and cancel, and what happens to a request (a score, too) afterwards.

A request ends in one of three ways, all of them here: `finish_request` (stop, length, cancelled),
`fail_request` (an error), `drop_request` (its context or task went away).
"""

from array import array
from collections import deque
from typing import Any

from kernel import limits, quota
from kernel.context import Context
from kernel.grammars import check_grammar
from kernel.grant import require, revoked
from kernel.handler import PENDING, Caller, Done, Pending
from kernel.ledger import charge
from kernel.loading import Outcome
from kernel.pager import Pager
from kernel.request import Request, Scores, Token, penalizes
from kernel.sys_port import cancel_waiters
from kernel.system import System
from kernel.task import TaskState
from syscalls.abi import (
    Access,
    Cancel,
    Event,
    Finish,
    Infer,
    InferResult,
    LengthResult,
    Resource,
    ScoreResult,
)
from syscalls.errors import E2BIG, EBUSY, ECANCELED, EINVAL, ENOMEM, ENOTSUP, ESRCH, KernelError


def sys_infer(k: System, caller: Caller, args: Infer) -> Pending:
    """Append the ids of frame 2, if any, and generate. Nothing has changed if it is refused."""
    ctx = k.context(caller.task, args.ctx)
    require(ctx, Access.INFER, "infer")
    refuse_busy(ctx)
    ctx.model.require()
    desc = ctx.model.desc
    if k.stopping:
        raise ECANCELED("the kernel is shutting down")
    ids = caller.ids
    length = ctx.length + (len(ids) if ids else 0)
    check_room(ctx, length, args.max_tokens)
    if ids:
        check_ids(ctx, ids)
    if length == 0:
        raise EINVAL("the context is empty: there is nothing to continue", "append ids first")
    if length == desc.max_ctx:
        raise E2BIG(f"the context is full: {length} ids, the limit is {length}", "trim it")
    if max(args.stop_ids, default=0) >= desc.vocab:
        raise EINVAL(f"stop ids are below {desc.vocab}, the model's vocabulary")
    if (args.logprobs or 0) > desc.vocab:
        raise EINVAL(f"{args.logprobs} best ids of a vocabulary of {desc.vocab}")
    _check_adjust(k, ctx, args, length)
    check_grammar(ctx, args, length)
    if args.grammar_kind:
        require_feature(k, "grammar")
        k.device.grammars.check_room()
    quota.admit_request(k, caller, ctx, length + args.max_tokens)
    cached = min(ctx.computed, length - 1)
    if ids:
        ctx.append(ids)
        charge(caller.task.payer, "input_ids", len(ids))
    seed = k.random.getrandbits(64) if args.seed is None else args.seed
    task = caller.task
    request = Request(
        next(k.arrivals), ctx, args, caller.session, caller.call, seed, task.payer, task.rank
    )
    eos = () if args.ignore_eos else desc.eos_ids
    request.stop_ids = frozenset((*args.stop_ids, *eos))
    if args.grammar_kind:
        k.device.grammars.use(request, task.uid, args.grammar_kind, args.grammar)
    start_request(k, caller, request, cached)
    return PENDING


def _check_adjust(k: System, ctx: Context, args: Infer, length: int) -> None:
    """Raise ENOTSUP or EINVAL unless the device can adjust logits as it is asked to."""
    if penalizes(args):
        require_feature(k, "penalties")
    if args.penalize_from is not None and args.penalize_from > length:
        raise EINVAL(f"penalize_from {args.penalize_from} of a context of {length} ids")
    start = length if args.penalize_from is None else args.penalize_from
    if penalizes(args) and (args.repetition_penalty != 1 or start < ctx.foreign) and ctx.foreign:
        # An id that is biased high comes, or does not if it is penalized: so it was there.
        require(ctx, Access.READ, f"a penalty on what it was opened with, {ctx.foreign} ids,")
    if not args.logit_bias:
        return
    require_feature(k, "bias")
    ids = array("i", (token for token, _ in args.logit_bias))
    check_ids(ctx, ids)
    if len(set(ids)) != len(ids):
        raise EINVAL("logit_bias names an id twice")


def require_feature(k: System, name: str) -> None:
    """Raise ENOTSUP unless the device has it."""
    ready = k.device.ready
    if ready is None or name not in ready.features:
        raise ENOTSUP(
            f"device {k.device.name} has no {name}", "leave it out, or use another device"
        )


def start_request(k: System, caller: Caller, request: Request, cached: int) -> None:
    """Give a request that is accepted to the scheduler; its call ends when it does."""
    ctx = request.ctx
    if ctx.request is not None:
        ctx.model.sched.remove(ctx.request)  # a background prefill: this does its work too
    request.cached, request.since = max(0, cached - ctx.fresh), k.clock()
    ctx.fresh = 0
    if caller.task.state is TaskState.STOPPED:
        request.held = "signal"
    ctx.model.sched.add(request)
    caller.session.infers[caller.call] = request
    caller.task.prompt_tokens += request.prompt
    charge(request.payer, "requests", 1)
    limits.accepted(request.payer)
    charge(request.payer, "prompt_ids", request.prompt)
    k.counters.admitted += 1
    k.counters.prompt_tokens += request.prompt


def sys_cancel(k: System, caller: Caller, args: Cancel) -> Done:
    """End an infer or a score of this session, whose FIN says `cancelled`, or a call or recv."""
    request = caller.session.infers.get(args.call)
    if request is None:
        return _cancel_waiting(k, caller, args)
    if args.keep is not None and request.score:
        raise EINVAL("a score has no output of which something could be kept", "leave out keep")
    if args.keep is not None and args.keep > request.output:
        raise EINVAL(f"keep {args.keep} of {request.output} output ids")
    if args.keep is not None:
        request.overrun += request.output - args.keep
        request.output = args.keep
        request.ctx.trim(request.prompt + args.keep)
    finish_request(k, request, Finish.CANCELLED)
    return Done(LengthResult(request.ctx.length))


def _cancel_waiting(k: System, caller: Caller, args: Cancel) -> Done:
    """End a call that waits: behind an infer or a score (QUEUE), for a reply or a message."""
    for ctx in caller.task.contexts.values():
        if args.keep:
            break
        if cancel_queued(ctx, args.call):
            return Done(LengthResult(ctx.length))
    if not args.keep and cancel_waiters(k, caller.task, "it was cancelled", args.call):
        return Done(LengthResult(0))
    raise ESRCH(f"call {args.call} is no unfinished infer, score, call or recv of this session")


def cancel_queued(ctx: Context, call: int | None = None) -> bool:
    """End infers and scores that wait on a context, all or one; see whether there was any."""

    def chosen(request: Any) -> bool:
        return request.row.name in ("infer", "score") and call in (None, request.call)

    found = [item for item in ctx.queued if chosen(item[1])]
    if found:
        ctx.queued = deque(item for item in ctx.queued if not chosen(item[1]))
    for session, queued in found:
        end, length, args = int(Finish.CANCELLED), ctx.length, queued.args
        session.finish(
            queued.call,
            ScoreResult(end, length, args.start, 0, 0)
            if queued.row.name == "score"
            else InferResult(end, length, length, 0, 0, 0, args.seed or 0),
        )
    return bool(found)


def refuse_busy(ctx: Context) -> None:
    """Raise EBUSY while an infer of the context is unfinished, or calls are queued behind one."""
    if ctx.busy:
        raise EBUSY(
            f"context {ctx.handle} has an unfinished infer (call {ctx.request.call})",
            "wait for it, cancel it, or set the QUEUE flag",
        )


def check_ids(ctx: Context, ids: "array[int]") -> None:
    """Raise EINVAL unless every id is in the model's vocabulary."""
    vocab = ctx.model.desc.vocab
    lowest, highest = min(ids), max(ids)
    if lowest < 0 or highest >= vocab:
        wrong = lowest if lowest < 0 else highest
        raise EINVAL(f"id {wrong} is outside the model's vocabulary of {vocab}")


def check_room(ctx: Context, length: int, max_tokens: int) -> None:
    """Raise E2BIG or ENOMEM if `length` ids and the answer can never fit."""
    desc = ctx.model.desc
    if length > desc.max_ctx:
        raise E2BIG(
            f"{length} ids do not fit the context of {desc.max_ctx}",
            "shorten the prompt",
            {"needed": length, "limit": desc.max_ctx},
        )
    size = ctx.pool.block_size
    needed = -(-min(length + max_tokens, desc.max_ctx) // size)
    pager: Pager = ctx.model.sched.pager
    pinned, more = pager.pinned, needed - len(ctx.blocks)
    if ctx.pinned and more > 0:
        limits.admit(ctx.account, Resource.PINNED_BLOCKS, more)
    if ctx.pinned and more > 0 and pinned + more > pager.pin_limit:
        raise ENOMEM(
            f"context {ctx.handle} is pinned, and would bring the {pinned} blocks that are to "
            f"{pinned + more}; the limit is {pager.pin_limit}, half of the pool",
            "unpin it, or lower max_tokens",
            {"needed": pinned + more, "limit": pager.pin_limit},
        )
    pinned = 0 if ctx.pinned else pinned
    usable = ctx.pool.num_blocks - 1 - pinned
    if needed > usable:
        beside = f" beside {pinned} that are pinned" if pinned else ""
        raise ENOMEM(
            f"needs {needed} KV blocks ({length} ids, {max_tokens} to generate), "
            f"the whole pool has {usable}{beside}",
            "lower max_tokens, shorten the prompt, or start the kernel with a larger --kv-mem",
            {"needed": needed, "limit": usable},
        )
    named, limit = ctx.pool.named + more, ctx.model.promise_limit
    if named > limit:
        raise ENOMEM(
            f"contexts would have {named} blocks, {limit} may be promised: --overcommit "
            f"{ctx.model.spec.overcommit:g} times the {ctx.pool.num_blocks - 1} of the device and "
            f"{ctx.pool.host.num_blocks} of the host tier",
            "free or trim some contexts, or raise --overcommit",
            {"needed": named, "limit": limit},
        )


# --- afterwards -------------------------------------------------------------------------------


def deliver(k: System, outcome: Outcome) -> None:
    """Give a request what a step had for it: its next id, some scores, or its end."""
    request, what = outcome
    if request.done:
        return  # an earlier outcome of the same turn ended it
    if request.ctx.revoked:
        what = revoked(request.ctx)
    if isinstance(what, KernelError):
        fail_request(k, request, what)
        return
    if isinstance(what, Scores):
        _deliver_scores(k, request, what)
        return
    output = request.output
    finish = request.take(what, request.ctx.model.desc.max_ctx)
    if request.output > output:
        k.tasks.find(request.ctx.pid).output_tokens += 1
        charge(request.payer, "output_ids", 1)
        _count_token(k, request)
        _emit_token(request, what)
    if finish is not None:
        finish_request(k, request, finish)
    for other, error in quota.enforce(k):
        fail_request(k, other, error)


def _deliver_scores(k: System, request: Request, scores: Scores) -> None:
    assert request.score is not None
    start = request.scored
    request.scored += len(scores.logprobs)
    request.owner.emit(
        Event.TOKEN,
        request.call,
        list(request.ctx.read(start, request.scored)),
        scores.logprobs,
        scores.top if request.score.top else None,
    )
    if request.scored == request.ctx.length:
        finish_request(k, request, Finish.LENGTH)


def _count_token(k: System, request: Request) -> None:
    k.counters.output_tokens += 1
    if request.output == 1:
        k.counters.first_tokens += 1
        k.counters.first_token_s += k.clock() - request.since


def _emit_token(request: Request, token: Token) -> None:
    logprobs = None if request.infer is None else request.infer.logprobs
    request.owner.emit(
        Event.TOKEN,
        request.call,
        [token.id],
        None if logprobs is None else [token.logprob],
        [token.top] if logprobs else None,
    )


def finish_request(k: System, request: Request, finish: Finish) -> None:
    """End an infer or a score with its result."""
    _retire(k, request)
    k.counters.finished += 1
    request.owner.finish(request.call, _result(request, int(finish)))


def _result(request: Request, finish: int) -> InferResult | ScoreResult:
    length, score = request.ctx.length, request.score
    if score is not None:
        scored = request.scored - score.start
        return ScoreResult(finish, length, score.start, scored, request.cached)
    return InferResult(
        finish, length, request.prompt, request.cached,
        request.output, request.overrun, request.seed, request.device_us,
    )  # fmt: skip


def fail_request(k: System, request: Request, error: KernelError) -> None:
    """End an infer or a score with an error; a background prefill just ends."""
    _retire(k, request)
    if not request.background:
        k.counters.failed += 1
        request.owner.fail(request.call, error)


def drop_request(k: System, ctx: Context, why: str) -> None:
    """End what runs on a context that goes away, and what waits behind it."""
    if ctx.request is not None:
        fail_request(k, ctx.request, ECANCELED(why))


def _retire(k: System, request: Request) -> None:
    if not request.background:
        k.counters.cached_tokens += request.cached
        task = k.tasks.find(request.ctx.pid)
        task.cached_tokens += request.cached
        charge(request.payer, "cached_ids", request.cached)
    request.ctx.model.sched.remove(request)
    request.ctx.last_use = k.counters.turns
    if request.ctx.queued or request.ctx.feed is not None:
        k.again.append(request.ctx)
