"""Contexts on a driver in this process: just enough of a kernel to generate with.

`Engine` opens a driver, loads a model and turns calls into Submits; `Ctx` is ids and a block table.
Blocks are handed out in an order that is not ascending, so that tables are never accidentally
contiguous. `step` computes the given number of each context's ids and samples where asked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from queue import SimpleQueue
from typing import Any

from drivers import base, registry, wire
from drivers.base import ints, reals, seeds
from tests.helpers.rig import PATIENCE_S

BLOCK_SIZE = 16


@dataclass(frozen=True)
class How:
    """Sampling parameters of one row."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    logprobs: int = -1


GREEDY = How()


@dataclass(eq=False)
class Ctx:
    """Ids with their block table; `computed` of them have KV."""

    slot: int
    ids: list[int]
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    generation: int = 1


class Engine:
    """One opened driver with one loaded model."""

    def __init__(self, load: base.Load, device: str = "cpu0", bulk: int = 1 << 24) -> None:
        self.messages: list[Any] = []
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self.bulk = memoryview(bytearray(bulk))
        self.driver = registry.open_driver(device, self._take, self.bulk, -1)
        self.ready = self.driver.hello(base.Hello(*base.ABI, wire.schema(), 1, device))
        self.loaded = self.driver.load(load)
        self._model, self._size, self._value, self._step = load.model, load.block_size, 0, 0
        blocks = range(1, self.loaded.num_blocks)
        self._free = [*blocks[1::2], *blocks[::2]]
        self._slots = list(range(self.loaded.max_seqs))

    # --- contexts -----------------------------------------------------------------------------

    def ctx(self, ids: Iterable[int]) -> Ctx:
        return Ctx(self._slots.pop(), list(ids))

    def fork(self, ctx: Ctx) -> Ctx:
        """Share the full blocks, copy the partial one."""
        child = self.ctx(ctx.ids)
        full = ctx.computed // self._size
        child.blocks, child.computed = ctx.blocks[:full], ctx.computed
        if ctx.computed % self._size:
            child.blocks.append(self._free.pop())
            src, dst = ctx.blocks[full], child.blocks[full]
            self.submit(base.Copy(base.Direction.D2D, ints([src]), ints([dst])))
        return child

    def trim(self, ctx: Ctx, length: int) -> None:
        """Shorten; the blocks behind are not given back, for a fork may share them."""
        del ctx.ids[length:]
        ctx.computed = min(ctx.computed, length)
        del ctx.blocks[-(-ctx.computed // self._size) :]

    def free(self, *ctxs: Ctx) -> None:
        """Give back slots and blocks; of contexts that share, only free one."""
        for ctx in ctxs:
            self._free += ctx.blocks
            self._slots.append(ctx.slot)

    # --- submits ------------------------------------------------------------------------------

    def _take(self, message: Any) -> None:
        answers = isinstance(message, base.Complete | base.Fault)
        (self._answers.put if answers else self.messages.append)(message)

    def submit(self, *ops: Any) -> tuple[Any, ...]:
        """Run ops; return the results, raise the Fault as DriverFault."""
        self._value += 1
        self.driver.submit(base.Submit(1, base.Queue.COMPUTE, self._value, (), self._model, ops))
        answer = self._answers.get(timeout=PATIENCE_S)
        if isinstance(answer, base.Fault):
            raise base.DriverFault(base.FaultKind(answer.kind), answer.message, answer.items)
        results: tuple[Any, ...] = answer.results
        return results

    def step(
        self, work: Sequence[tuple[Ctx, int]], how: Sequence[How | None] | How = GREEDY
    ) -> base.Sampled:
        """Compute `count` further ids of each context and sample after those that `how` is for."""
        hows = [how] * len(work) if isinstance(how, How) else how
        ops = self.plan(work, hows)
        for ctx, count in work:
            ctx.computed += count
        (sampled,) = self.submit(*ops)
        assert isinstance(sampled, base.Sampled)
        return sampled

    def plan(
        self, work: Sequence[tuple[Ctx, int]], hows: Sequence[How | None]
    ) -> tuple[base.Execute, base.Sample]:
        """Return the ops of a step, taking the blocks that it needs."""
        size = self._size
        spans = [(ctx, range(ctx.computed, ctx.computed + count)) for ctx, count in work]
        for ctx, span in spans:
            while len(ctx.blocks) * size < span.stop:
                ctx.blocks.append(self._free.pop())
        ends = list(accumulate((count for _, count in work), initial=0))
        rows = [(s, h) for s, h in enumerate(hows) if h is not None]
        table = base.BlockTable(
            ints(accumulate((len(ctx.blocks) for ctx, _ in work), initial=0)),
            ints(block for ctx, _ in work for block in ctx.blocks),
            ints(c.blocks[p // size] * size + p % size for c, span in spans for p in span),
        )
        self._step += 1
        execute = base.Execute(
            self._model, self._step,
            ints(ctx.ids[p] for ctx, span in spans for p in span),
            ints(p for _, span in spans for p in span),
            ints(ends), ints(span.stop for _, span in spans),
            ints(ctx.slot for ctx, _ in work), ints(ctx.generation for ctx, _ in work),
            ints(ends[s + 1] - 1 for s, _ in rows), (table,),
        )  # fmt: skip
        sample = base.Sample(
            ints(s for s, _ in rows), reals(h.temperature for _, h in rows),
            ints(h.top_k for _, h in rows), reals(h.top_p for _, h in rows),
            reals(h.min_p for _, h in rows), seeds(h.seed for _, h in rows),
            ints(spans[s][1].stop for s, _ in rows), ints(h.logprobs for _, h in rows),
        )  # fmt: skip
        return execute, sample

    # --- whole runs ---------------------------------------------------------------------------

    def generate(
        self, ctxs: Sequence[Ctx], count: int, how: How = GREEDY, chunk: int = 0
    ) -> list[list[int]]:
        """Prefill what is not computed (in chunks), then decode together; return the new ids."""
        starts = [len(ctx.ids) for ctx in ctxs]
        while any(len(ctx.ids) - start < count for ctx, start in zip(ctxs, starts, strict=True)):
            self._advance(ctxs, starts, count, how, chunk)
        return [ctx.ids[start:] for ctx, start in zip(ctxs, starts, strict=True)]

    def _advance(
        self, ctxs: Sequence[Ctx], starts: Sequence[int], count: int, how: How, chunk: int
    ) -> None:
        """One step: every unfinished context prefills a chunk or decodes."""
        room, work = self.loaded.max_tokens, list[tuple[Ctx, int]]()
        for ctx, start in zip(ctxs, starts, strict=True):
            left = len(ctx.ids) - ctx.computed
            take = min(left, chunk or left, room)
            if len(ctx.ids) - start < count and take:
                work.append((ctx, take))
                room -= take
        hows = [how if c.computed + n == len(c.ids) else None for c, n in work]
        sampled = iter(base.read_ints(self.step(work, hows).ids))
        for (ctx, _), wanted in zip(work, hows, strict=True):
            if wanted is not None:
                ctx.ids.append(next(sampled))


def load_of(path: str, dtype: str = "float32", **changes: Any) -> base.Load:
    """Return a Load with the usual values."""
    load = base.Load(
        1, path, dtype, BLOCK_SIZE, num_blocks=512, kv_bytes=0, max_ctx=0,
        deterministic=False, threads=0,
    )  # fmt: skip
    return load._replace(**changes)
