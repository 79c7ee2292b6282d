"""Scheduler: which requests run in the next step, and what the device is told to do.

One step is one Submit to the device, and one Submit with an Execute is in flight at a time. The
policy orders the requests; each gets tokens while the step's budgets last (tokens, sequences,
block references, free blocks). A decode takes one token; a prefill takes a chunk, smaller while
others decode so that a step stays near the target time. Blocks are reserved before anything is
said to the device, and an infer that gets none waits for the pager's room: then nobody behind it
takes new blocks, so room goes to whom it was made for. A prefill in the background that gets none
ends: it may use what is free, and nothing is dropped for it.

A position that is filled is never written again. A request that needs logits of one (a fork of
a finished context, a cached prompt) runs that token again and stores it in the null block.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from kernel import pager
from kernel.block import NOT_RESIDENT, Block, BlockPool
from kernel.policy import Policy
from kernel.request import Request, RequestState, Token
from kernel.step import Entry, Step, StepLimits, Write
from syscalls.errors import KernelError


class Scheduler:
    """The requests of one model."""

    def __init__(self, pool: BlockPool, policy: Policy, limits: StepLimits, contexts: Any) -> None:
        self.pool = pool
        self.policy = policy
        self.limits = limits
        self.requests: dict[int, Request] = {}  # by arrival
        self.step: Step | None = None
        self.steps = 0
        self.wasted = 0
        self._contexts = contexts  # () -> Iterable[Context], for the pager
        self._slots = list(range(limits.max_seqs - 1, -1, -1))
        self._generation = 0
        self._us_per_token = 0.0
        self._starved: tuple[Request, list[Block]] | None = None

    # --- requests -----------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Accept a request."""
        self.requests[request.arrival] = request
        request.ctx.request = request

    def remove(self, request: Request) -> None:
        """End a request; what it has in flight is discarded at its fence."""
        request.become(RequestState.DONE)
        self.requests.pop(request.arrival, None)
        if request.ctx.request is request:
            request.ctx.request = None
        self._give_slot(request)

    @property
    def crowded(self) -> bool:
        """Whether there are so many requests that no more are taken that nobody waits for."""
        return len(self.requests) >= self.limits.max_seqs

    # --- planning -----------------------------------------------------------------------------

    def plan(self) -> tuple[list[Entry], list[tuple[int, int]]]:
        """Choose the entries of the next step and the (src, dst) blocks to copy before it."""
        entries: list[Entry] = []
        copies: list[tuple[int, int]] = []
        tokens, refs, dry = self.limits.max_tokens, self.limits.max_block_refs, False
        self._starved = None  # of a plan that was never sent
        runnable = [r for r in self.requests.values() if not r.held]
        for request in runnable:
            request.start = request.ctx.planned
        decodes = sum(r.decoding for r in runnable)
        chunk = self._chunk(decodes)
        for item in self.policy.order(runnable):
            request = cast(Request, item)
            if tokens == 0 or len(entries) == self.limits.max_seqs:
                break
            start, end = self._span(request, min(chunk, tokens))
            if start == end:
                self.remove(request)  # a prefill that has nothing left to do
                continue
            size = self.pool.block_size
            if -(-end // size) > refs:
                if request.decoding:
                    continue  # there will never be more before it
                break  # there might: whoever is behind would decode, and go first
            if not self._reserve(request, start, end, dry, copies):
                if request.background:
                    self.remove(request)  # an infer will compute it, if there ever is one
                else:
                    dry = True
                continue
            self._take_slot(request, entries)
            entries.append(self._entry(request, start, end))
            tokens -= end - start
            refs -= -(-end // size)
        return entries, copies

    def _chunk(self, decodes: int) -> int:
        """Tokens of prefill per request: as many as keep a step with decodes near its target."""
        limits = self.limits
        if not (limits.target_us and decodes and self._us_per_token):
            return limits.prefill_chunk
        room = int(limits.target_us / self._us_per_token) - decodes
        return min(limits.prefill_chunk, max(self.pool.block_size, room))

    def _span(self, request: Request, budget: int) -> tuple[int, int]:
        """Return the positions to compute; for logits of a filled position, that one again.

        A span ends where a later block is filled already (its neighbour had lost its KV).
        """
        ctx, size = request.ctx, self.pool.block_size
        start, target = request.start, request.target
        if start < ctx.length and ctx.blocks[start // size].refs > 1:
            start = ctx.planned  # a sharer may have its part of this very step
        if start >= target:
            return (target - 1, target) if request.infer else (target, target)
        end = min(target, start + budget)
        for index in range(start // size + 1, -(-end // size)):
            if ctx.blocks[index].reach:
                return start, index * size
        return start, end

    def _take_slot(self, request: Request, entries: list[Entry]) -> None:
        """Give a request of this step a slot: there are more of them than entries so far."""
        if request.slot is not None:
            return
        if not self._slots:
            chosen = {entry.request for entry in entries}
            for other in self.requests.values():
                if other not in chosen:
                    self._give_slot(other)
        request.slot = self._slots.pop()
        self._generation = (self._generation + 1) & 0x7FFFFFFF
        request.generation = self._generation

    def _give_slot(self, request: Request) -> None:
        if request.slot is not None:
            self._slots.append(request.slot)
            request.slot = None

    def _reserve(
        self, request: Request, start: int, end: int, dry: bool, copies: list[tuple[int, int]]
    ) -> bool:
        """Give every block up to `end` a place; False (and nothing changed) if there is none."""
        ctx, size = request.ctx, self.pool.block_size
        wanted = [b for b in ctx.blocks[start // size : -(-end // size)] if b.id == NOT_RESIDENT]
        if wanted and (dry or len(wanted) > self.pool.num_free):
            if not dry and not request.background:
                self._starved = request, wanted
            request.become(RequestState.BLOCKED)
            return False
        for block in wanted:
            self.pool.alloc(block)
            if block.origin is not None:
                self._take_over(block, block.origin, copies)
        return True

    def _take_over(self, block: Block, origin: Block, copies: list[tuple[int, int]]) -> None:
        if origin.id != NOT_RESIDENT:
            copies.append((origin.id, block.id))
            block.filled = block.planned = block.origin_len
            self.pool.copied += 1
        self.pool.drop_origin(block)

    def _entry(self, request: Request, start: int, end: int) -> Entry:
        ctx, size = request.ctx, self.pool.block_size
        writes = []
        for index in range(start // size, -(-end // size)):
            block, upto = ctx.blocks[index], min(size, end - index * size)
            if upto > block.planned:
                block.planned = upto
                writes.append(Write(block, block.id, upto))
        samples = request.infer is not None and end == request.target
        decoding = samples and end - start == 1
        request.become(RequestState.DECODE if decoding else RequestState.PREFILL)
        return Entry(request, start, end, writes, samples)

    def make_room(self) -> None:
        """Let the pager find blocks for the first request of the last plan that got none.

        Only now that the plan is on its way: it may have named the blocks that go. Their scrub is
        queued behind it.
        """
        if self._starved is None:
            return
        (request, wanted), self._starved = self._starved, None
        found = pager.make_room(
            self.pool, self.policy, len(wanted), request, self._contexts(), self.requests.values()
        )
        if not found:
            for block in wanted:
                self.pool.drop_origin(block)  # computing again needs one block less

    def submitted(self, value: int, entries: list[Entry]) -> None:
        """Note that the step is on its way under fence `value`."""
        self.step = Step(value, entries)
        self.steps += 1

    # --- results ------------------------------------------------------------------------------

    @property
    def samplers(self) -> list[Request]:
        """The requests of the step in flight that get an id of it, in order."""
        return [entry.request for entry in self.step.entries if entry.samples] if self.step else []

    def commit(
        self, sampled: Sequence[Token | KernelError], took_us: int
    ) -> Iterator[tuple[Request, Token | KernelError]]:
        """Take the step's results: KV is filled, each live request gets its sampled id."""
        samplers, step = self.samplers, self._end_step()
        self._measure(step, took_us)
        for entry in step.entries:
            for write in entry.writes:
                if write.block.id == write.id:
                    write.block.filled = max(write.block.filled, write.upto)
        for request, token in zip(samplers, sampled, strict=True):
            if request.done:
                self.wasted += 1
            else:
                yield request, token

    def fail(self) -> list[Request]:
        """Undo the step that faulted; return its live requests."""
        step = self._end_step()
        for entry in step.entries:
            for write in entry.writes:
                if write.block.id == write.id:
                    write.block.planned = write.block.filled
        return [entry.request for entry in step.entries if not entry.request.done]

    def _end_step(self) -> Step:
        assert self.step is not None
        step, self.step = self.step, None
        for entry in step.entries:
            if not entry.request.done:
                entry.request.become(RequestState.QUEUED)
        return step

    def _measure(self, step: Step, took_us: int) -> None:
        tokens = sum(entry.end - entry.start for entry in step.entries)
        if tokens >= self.pool.block_size:
            per_token = took_us / tokens
            old = self._us_per_token or per_token
            self._us_per_token = 0.8 * old + 0.2 * per_token
