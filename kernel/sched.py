"""Scheduler: which requests run in the next step, and what the device is told to do.

One step is one Submit to the device. While it is in flight, the one behind it may be planned and
submitted already (kernel/ahead.py says with whom); they end in order. The policy orders the
requests; each gets tokens while the step's budgets last (tokens, sequences, block references,
places). A decode takes one token; prefills take chunks, together no more than keep a step near the
target time (kernel/pace.py). What the prefix index has is taken over before anything is computed,
and what lies in the host tier is copied back, not computed.

Places are reserved before anything is said to the device (kernel/places.py). A prefill in the
background that gets none ends: it may use what is free, and nothing is dropped for it.

A position that is filled is never written again. A request that needs logits of one (a fork of
a finished context, a cached prompt, a score) runs that token again and stores it in the null block.
An entry is either all of filled positions or all of others: that is what its writes say.

Rows of logits are a budget too: one per sample, one per id that a score asks for. A score leaves
those to others that may sample in the same step, so it is slower in company and stops nobody.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import cast

from drivers import base
from kernel import ahead
from kernel.ledger import charge_step
from kernel.pace import Pace
from kernel.pager import Pager
from kernel.places import Places
from kernel.policy import POSITION, SAMPLE, Policy
from kernel.pool import BlockPool
from kernel.request import Request, RequestState, Scores, Token
from kernel.reuse import MAX_LOOKUPS, Reuse
from kernel.slots import Slots, resets
from kernel.step import Entry, Step, StepLimits, Write
from syscalls.errors import KernelError


class Scheduler:
    """The requests of one model."""

    def __init__(self, pool: BlockPool, policy: Policy, limits: StepLimits, pager: Pager) -> None:
        self.pool = pool
        self.policy = policy
        self.limits = limits
        self.requests: dict[int, Request] = {}  # by arrival
        self.flying: deque[Step] = deque()  # what is in flight, the oldest first
        self.steps = 0
        self.wasted = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.seqs = 0
        self.step_us = 0
        self.pager = pager
        self.pace = Pace(limits, pool.block_size)
        self.places = Places(pool, policy, pager)
        self.reuse = Reuse(pool, pager)
        self._slots = Slots(limits.max_seqs)
        self._adjusted = 0  # requests whose logits are
        self._told = False  # the last call of `resets` gave some
        self._telling: list[Request] = []  # whose Resets go with the next Submit

    # --- requests -----------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Accept a request."""
        self.requests[request.arrival] = request
        self._adjusted += request.adjusted
        request.ctx.request = request

    def remove(self, request: Request) -> None:
        """End a request; what it has in flight is discarded at its fence."""
        request.become(RequestState.DONE)
        if self.requests.pop(request.arrival, None) is not None:
            self._adjusted -= request.adjusted
        if request.ctx.request is request:
            request.ctx.request = None
            request.ctx.close()
        request.ahead.clear()
        self._slots.give(request)

    def lose_slots(self) -> None:
        """Forget what the driver was told, and what was waited for: its epoch has ended."""
        for request in self.requests.values():
            self._slots.give(request)
            if request.state is RequestState.BLOCKED:
                request.become(RequestState.QUEUED)

    @property
    def crowded(self) -> bool:
        """Whether there are so many requests that no more are taken that nobody waits for."""
        return len(self.requests) >= self.limits.max_seqs

    # --- planning -----------------------------------------------------------------------------

    def plan(self) -> tuple[list[Entry], list[tuple[int, int]]]:
        """Choose the entries of the next step and the (src, dst) blocks to copy before it."""
        entries: list[Entry] = []
        lookups = MAX_LOOKUPS
        tokens, refs = self.limits.max_tokens, self.limits.max_block_refs
        self.places.begin()
        rows = self.limits.max_logit_rows
        runnable = [r for r in self.requests.values() if self._may_run(r)]
        for request in runnable:
            request.start = ahead.start_of(request)
            if request.state is RequestState.BLOCKED:
                request.become(RequestState.QUEUED)  # this plan may not even come to it
        room = self.pace.room(sum(r.decoding for r in runnable))
        for request in self._ordered(runnable):
            if tokens == 0 or len(entries) == self.limits.max_seqs:
                break
            if request.sampling and not self._opens(request):
                continue
            if not request.decoding:
                lookups -= self.reuse.look_up(request, lookups)
                if request.seeking:
                    continue
            if room == 0 and not request.decoding:
                continue
            budget = tokens if request.decoding else min(self.limits.prefill_chunk, room, tokens)
            start, end = self._span(request, budget)
            if self._is_away(request, start, end):
                self.places.bring(request, start)
                if request.background and request.lacks:
                    self._end_prefill(request)  # an infer will need it, if there ever is one
                continue
            if request.score is not None:
                spare = max(1, rows - (len(runnable) - len(entries)))
                end = min(end, max(start, request.scored - 1) + spare)
            if start == end:
                self._end_prefill(request)  # it has nothing left to do
                continue
            samples = request.infer is not None and end == request.target
            scores = 0
            if request.score is not None:
                scores = max(0, end + 1 - max(request.scored, start + 1))
            if samples + scores > rows or (samples and request.untold):
                continue  # the next step has rows; what is to be told goes before it
            size = self.pool.block_size
            if -(-end // size) > refs:
                if request.decoding:
                    continue  # there will never be more before it
                break  # there might: whoever is behind would decode, and go first
            if not self.places.reserve(request, start, end):
                if request.background:
                    self._end_prefill(request)  # an infer will compute it, if there ever is one
                continue
            if request.slot is None:
                self._slots.take(request, self._may_wait(entry.request for entry in entries))
            entries.append(self._entry(request, start, end, samples, scores))
            tokens -= end - start
            room -= 0 if request.decoding else end - start
            refs -= -(-end // size)
            rows -= samples + scores
        return entries, self.places.copies()

    def _ordered(self, runnable: Sequence[Request]) -> Iterator[Request]:
        """Yield requests as the policy orders them, after the one that room was made for.

        Of those that the step has sequences for, those that decode come first: they need a place
        now and then, and end the sooner; whoever begins first needs many, and keeps them. So these
        come as they claim places, while there are too few for all of them.
        """
        first = self.places.first_of(runnable)
        if first is not None:
            yield first
        order = (cast(Request, item) for item in self.policy.order(runnable) if item is not first)
        chosen = list(islice(order, self.limits.max_seqs))
        yield from (request for request in chosen if request.decoding)
        prefills = [r for r in chosen if not (r.decoding or r.background)]
        if self.places.are_short(prefills):
            prefills = [cast(Request, item) for item in self.policy.claims(prefills)]
        yield from prefills
        yield from (request for request in chosen if request.background and not request.decoding)
        yield from order

    def _may_run(self, request: Request) -> bool:
        return request.runnable and (not request.flying or ahead.may_follow(request))

    def _opens(self, request: Request) -> bool:
        """Whether one that goes ahead still has its slot, and where to write to."""
        return request.slot is not None and request.ctx.open_to(request.start + 1)

    def _end_prefill(self, request: Request) -> None:
        """End a prefill in the background, now or when what it has in flight has ended."""
        if not request.flying:
            self.remove(request)

    def resets(self) -> list[base.Reset]:
        """Return what the driver must be told before requests can sample; it counts as told.

        Only of those that come first: others might lose their slots before they get that far.
        After a call that gave some, one gives none, so that steps have their turn.
        """
        if not self._adjusted:
            return []
        self._told = not self._told
        runnable = [r for r in self.requests.values() if r.runnable and not r.sampling]
        if not self._told or not any(request.untold for request in runnable):
            self._told = False
            return []
        order = [cast(Request, item) for item in self.policy.order(runnable)]
        first = order[: self.limits.max_seqs]
        untold = [request for request in first if request.untold]
        for request in untold:
            self._slots.take(request, self._may_wait(first))
        ops = resets(untold)
        named = {op.slot for op in ops}
        self._telling = [request for request in untold if request.slot in named]
        return ops

    def _may_wait(self, chosen: Iterable[Request]) -> Iterator[Request]:
        """Yield the requests that are not chosen, the youngest first."""
        run = set(chosen)
        yield from (request for request in reversed(self.requests.values()) if request not in run)

    # --- what need not be computed ------------------------------------------------------------

    def _is_away(self, request: Request, start: int, end: int) -> bool:
        """Whether what comes next lies in a lower tier, or is on its way from there."""
        if start == end:
            return False
        return request.ctx.blocks[start // self.pool.block_size].away

    # --- spans --------------------------------------------------------------------------------

    def _span(self, request: Request, budget: int) -> tuple[int, int]:
        """Return the positions to compute; for logits of a filled position, that one again.

        A span ends where a later block is filled already (its neighbour had lost its KV).
        """
        ctx, size = request.ctx, self.pool.block_size
        start, target = request.start, request.target
        if request.sampling:
            return start, start + 1
        if start < ctx.length and ctx.blocks[start // size].refs > 1:
            start = ctx.planned  # a sharer may have its part of this very step
        if request.score and start >= request.scored:
            again = request.scored - 1
            return again, min(target, start, again + budget)
        if start >= target:
            return (target - 1, target) if request.infer else (target, target)
        end = min(target, start + budget)
        for index in range(start // size + 1, -(-end // size)):
            block = ctx.blocks[index]
            if block.reach or block.away:
                return start, index * size
        return start, end

    def _entry(self, request: Request, start: int, end: int, samples: bool, scores: int) -> Entry:
        ctx, size = request.ctx, self.pool.block_size
        writes: list[Write] = []
        again = 0
        if request.sampling:
            block = ctx.blocks[start // size]
            self.pager.used(ctx)
            request.become(RequestState.DECODE)
            write = Write(block, block.id, start % size + 1)
            return Entry(request, start, end, writes, samples, ahead=write)
        for index in range(start // size, -(-end // size)):
            block, upto = ctx.blocks[index], min(size, end - index * size)
            if upto > block.planned:
                first = max(block.planned, start - index * size)
                again += max(0, min(upto, block.lost) - first)
                block.planned = upto
                writes.append(Write(block, block.id, upto))
                if upto == size:
                    self.pool.enter(ctx.blocks, index)
        self.pager.used(ctx)
        decoding = samples and end - start == 1
        request.become(RequestState.DECODE if decoding else RequestState.PREFILL)
        return Entry(request, start, end, writes, samples, scores, again)

    def make_room(self) -> list[tuple[Request, KernelError]]:
        """Let room be made for whom the last plan had no places; return who would wait for ever."""
        return self.places.make_room([other for other in self.requests.values() if other.runnable])

    def submitted(self, value: int, entries: list[Entry]) -> None:
        """Note that a step, or what else goes in its place, is on its way under fence `value`."""
        self.flying.append(Step(value, entries, self._telling))
        self._telling = []
        self.steps += bool(entries)
        for entry in entries:
            self._charge(entry)
            request = entry.request
            request.flying += 1
            request.sampling += entry.samples
            if entry.ahead is not None:
                request.ahead.append(entry)

    def _charge(self, entry: Entry) -> None:
        """Charge a request for positions that are computed for the first time, and its sample."""
        ctx = entry.request.ctx
        new = max(0, entry.end - max(entry.start, ctx.paid))
        ctx.paid = max(ctx.paid, entry.end)
        self.policy.charge(entry.request.payer, new * POSITION + entry.samples * SAMPLE)

    # --- results ------------------------------------------------------------------------------

    @property
    def step(self) -> Step | None:
        """The oldest step in flight, if there is one."""
        return next((step for step in self.flying if step.entries), None)

    @property
    def samplers(self) -> list[Request]:
        """The requests that get an id of what ends next, in order."""
        return [entry.request for entry in self.flying[0].entries if entry.samples]

    @property
    def scorers(self) -> list[tuple[Request, int]]:
        """The requests that get so many scores of what ends next, in order."""
        return [(entry.request, entry.scores) for entry in self.flying[0].entries if entry.scores]

    def may_queue(self, others: Iterable[Request]) -> bool:
        """Whether more steps may wait behind those in flight: nothing but what is in all of them
        wants to run, and all together take no longer than a moment."""
        depth = len(self.flying)
        if depth == 0:  # the model has gone: what is in flight is nobody's any more
            return False
        step_us = self.pace.taken(len(self.flying[-1].entries))
        if not 0 < step_us * (depth + 1) <= ahead.MAX_US:
            return False
        return all(request.held or request.sampling == depth for request in others)

    def commit(
        self, results: Sequence[Token | Scores | KernelError], took_us: int
    ) -> Iterator[tuple[Request, Token | Scores | KernelError]]:
        """Take the step's results, of samplers, then of scorers: KV is filled, each live request
        gets its own."""
        waiting = [*self.samplers, *(request for request, _ in self.scorers)]
        step = self._end_step()
        self._measure(step, took_us)
        charge_step(step.entries, took_us)
        for entry in step.entries:
            if entry.request.background and not entry.request.done:
                entry.request.ctx.fresh += entry.end - entry.start
            for write in entry.writes:
                if write.block.id == write.id:
                    write.block.filled = max(write.block.filled, write.upto)
        for request, result in zip(waiting, results, strict=True):
            if request.done:
                self.wasted += 1
            else:
                yield request, result
                if not request.done:
                    ahead.confirm(request, self.pool)

    def fail(self) -> list[Request]:
        """Undo what is in flight, steps and Resets; return the live requests of the oldest.

        They run in order, so the driver was at that one, or had not come to it.
        """
        hit = [*self.flying[0].telling, *self.flying[0].requests] if self.flying else []
        self._telling = []
        while self.flying:
            for entry in self._end_step().entries:
                entry.request.ahead.clear()
                for write in entry.writes:
                    if write.block.id == write.id:
                        write.block.planned = write.block.filled
        return [request for request in hit if not request.done]

    def _end_step(self) -> Step:
        step = self.flying.popleft()
        for entry in step.entries:
            request = entry.request
            request.flying -= 1
            request.sampling -= entry.samples
            if not request.done and not request.flying:
                request.become(RequestState.QUEUED)
        return step

    def _measure(self, step: Step, took_us: int) -> None:
        if not step.entries:
            return
        tokens = sum(entry.end - entry.start for entry in step.entries)
        decodes = sum(entry.decodes for entry in step.entries)
        self.prefill_tokens += tokens - decodes
        self.decode_tokens += decodes
        self.seqs += len(step.entries)
        self.step_us += took_us
        self.pace.measure(tokens - decodes, decodes, took_us)
        self.pager.us_per_token = self.pace.us_per_token
