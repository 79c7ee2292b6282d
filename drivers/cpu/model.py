"""A loaded model on the CPU: weights, pool and scratch memory, and how a step runs on them.

Memory is counted before it is taken: weights, pool and `work_bytes` for temporaries must fit into
what is free, else the load is refused with the numbers and the largest budget that fits.
"""

import logging
import time
from array import array
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from drivers import base
from drivers.base import NULL_BLOCK, DriverFault, FaultKind
from drivers.cpu import machine
from drivers.cpu.attention import Arena, Attention, Heads, Part, blocks_at_once
from drivers.cpu.ordered import OrderedAttention
from drivers.host_tier import HostTier, host_range
from drivers.int8_pool import Int8Pool
from drivers.models import weights
from drivers.models.config import ModelConfig
from drivers.plan import Draws, Plan
from drivers.pool import DTYPES, KvPool, PoolShape
from drivers.sampling import sample
from drivers.sizes import MAX_SEQS, MAX_TOKENS, ORDERED_TILE, ROWS_AT_ONCE, work_bytes
from drivers.slots import Slot

log = logging.getLogger(__name__)

MAX_BLOCK_REFS = 32768
MAX_BLOCK_SIZE = 4096


class CpuModel:
    """One model with its pool."""

    def __init__(self, load: base.Load, emit: base.Emit, host: int = -1, promised: int = 0) -> None:
        """Load it; its host tier is in the host memory `host`. `promised` is free and others'."""
        start = time.monotonic_ns()
        self.last: dict[int, Slot] = {}
        source = weights.open_source(load.path)
        config = source.config
        max_ctx = _check(load, config)
        shape, weights_bytes = _fit(load, config, max_ctx, emit, host, promised)
        self.host_range = host_range(load, host, shape.block_bytes)
        self._threads = machine.set_threads(load.threads, load.deterministic)

        def progress(done: int) -> None:
            emit(base.Progress(load.model, "weights", done, config.num_layers))

        tile = ORDERED_TILE if load.deterministic else 0
        self._model = weights.load(source, shape.dtype, max_ctx, tile, progress)
        source.close()
        self.pool = Int8Pool(shape) if shape.int8 else KvPool(shape)
        self.tier = (
            HostTier(self.host_range, shape.block_bytes) if self.host_range.num_bytes else None
        )
        self._heads = Heads.of(config)
        self._arena = Arena(shape.dtype)
        self._attention: Callable[..., Attention | OrderedAttention] = _attention(load)
        self._warm_up(max_ctx)
        group = base.KvGroup(
            config.num_layers, "full", 0, config.num_kv_heads, config.head_dim,
            load.kv_dtype or load.dtype,
        )  # fmt: skip
        self.answer = base.Loaded(
            load.model, config.arch, config.num_layers, config.vocab_size, max_ctx, weights_bytes,
            tuple(config.eos_ids), (group,), load.block_size, shape.block_bytes, shape.num_blocks,
            load.dtype, MAX_TOKENS, MAX_SEQS, MAX_BLOCK_REFS, (time.monotonic_ns() - start) // 1000,
            num_host_blocks=self.host_range.num_bytes // shape.block_bytes,
            max_logit_rows=MAX_SEQS, digest=weights.digest_of(load.path),
        )  # fmt: skip

    def execute(self, plan: Plan) -> Tensor:
        """Run one forward step and return the logits of its logit rows."""
        machine.use_threads(self._threads)
        tokens = torch.frombuffer(plan.tokens, dtype=torch.int32).long()
        for row in (tokens == base.LAST_SAMPLE).nonzero().view(-1).tolist():
            sequence = int(np.searchsorted(plan.qo_indptr, row, "right")) - 1
            tokens[row] = self.last[plan.slots[sequence]].last
        positions = torch.frombuffer(plan.positions, dtype=torch.int32).long()
        slots = torch.frombuffer(plan.tables[0].write_slot, dtype=torch.int32).long()
        rows = torch.tensor(plan.logit_rows, dtype=torch.int64)
        attention = self._attention(self.pool, self._arena, self._heads, slots, self._parts(plan))
        return self._model.forward(tokens, positions, rows, attention.run)

    def _parts(self, plan: Plan) -> list[Part]:
        table, size = plan.tables[0], self.pool.shape.block_size
        blocks = np.frombuffer(table.blocks, np.int32).astype(np.int64)
        first = plan.qo_indptr
        return [
            Part(first[s], first[s + 1] - first[s], kv_len, blocks[at : at - (-kv_len // size)])
            for s, (kv_len, at) in enumerate(zip(plan.kv_len, table.indptr, strict=False))
        ]

    @torch.inference_mode()
    def _warm_up(self, max_ctx: int) -> None:
        """Run the largest step on the null block, so that later ones find their memory there.

        One layer of it, with the attention of one that sees most: the others would use the same
        memory again.
        """
        parts = list(self._largest_parts(max_ctx))
        positions = torch.cat([torch.arange(p.kv_len - p.count, p.kv_len) for p in parts])
        tokens = slots = torch.zeros_like(positions)
        rows = torch.arange(MAX_SEQS)
        attention = self._attention(self.pool, self._arena, self._heads, slots, parts)

        def attend(_: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return attention.run(self._heads.widest(self.pool.shape.layers), queries, keys, values)

        logits = self._model.forward(tokens, positions, rows, attend, depth=1)
        ones = array("f", [0.5] * ROWS_AT_ONCE)
        zeros = array("i", bytes(4 * ROWS_AT_ONCE))
        seeds = array("Q", bytes(8 * ROWS_AT_ONCE))
        sample(logits[:ROWS_AT_ONCE], Draws(zeros, ones, zeros, ones, ones, seeds, zeros, zeros))
        self.pool.scrub(torch.tensor([NULL_BLOCK]))

    def _largest_parts(self, max_ctx: int) -> Iterator[Part]:
        """Yield MAX_SEQS decodes that fill a group, then prefills at the end of a context."""
        size, row = self.pool.shape.block_size, 0
        while row < MAX_TOKENS:
            decodes = row < MAX_SEQS
            count = 1 if decodes else min(MAX_TOKENS - row, max_ctx)
            kv_len = min(max_ctx, max(1, blocks_at_once(self.pool) // MAX_SEQS) * size)
            if not decodes or row == 0:
                kv_len = max_ctx
            yield Part(row, count, kv_len, np.full(-(-kv_len // size), NULL_BLOCK, np.int64))
            row += count


def _check(load: base.Load, config: ModelConfig) -> int:
    """Refuse what no memory would help; return the longest context."""
    if load.dtype not in DTYPES:
        raise DriverFault(
            FaultKind.MODEL_LOAD, f"dtype {load.dtype}; this device has {', '.join(DTYPES)}"
        )
    if not 0 < load.block_size <= MAX_BLOCK_SIZE:
        raise DriverFault(
            FaultKind.MODEL_LOAD, f"block_size {load.block_size}, the limit is {MAX_BLOCK_SIZE}"
        )
    if not 0 <= load.max_ctx <= config.max_ctx:
        raise DriverFault(
            FaultKind.MODEL_LOAD, f"max_ctx {load.max_ctx}, the model was made for {config.max_ctx}"
        )
    return load.max_ctx or config.max_ctx


def _attention(load: base.Load) -> type[Attention] | type[OrderedAttention]:
    return OrderedAttention if load.deterministic else Attention


def _pool_shape(config: ModelConfig, load: base.Load, num_blocks: int) -> PoolShape:
    return PoolShape(
        num_blocks, config.num_layers, load.block_size, config.num_kv_heads, config.head_dim,
        DTYPES[load.dtype], load.kv_dtype == "int8",
    )  # fmt: skip


def _fit(
    load: base.Load, config: ModelConfig, max_ctx: int, emit: base.Emit, host: int, promised: int
) -> tuple[PoolShape, int]:
    """Emit and log the Estimate; return the pool that fits, or refuse.

    Memory of a host tier is taken when it is used: what has none yet is counted as if it had, that
    of the models before (`promised`) as well.
    """
    dtype, free = DTYPES[load.dtype], max(machine.memory_free() - promised, 0)
    work = work_bytes(
        config, dtype.itemsize, load.block_size, max_ctx, load.deterministic,
        load.kv_dtype == "int8",
    )  # fmt: skip
    weights_bytes, places = measured = weights.measure(config, dtype, max_ctx, free - work)
    block_bytes = _pool_shape(config, load, 1).block_bytes
    num_blocks = load.num_blocks or load.kv_bytes // block_bytes
    tier = host_range(load, host, block_bytes)
    unused = tier.untouched() if tier.num_bytes else 0
    emit(base.Estimate(load.model, weights_bytes, block_bytes, num_blocks, free))
    needs = (
        f"weights {_mib(weights_bytes)}, {num_blocks} KV blocks of {block_bytes} bytes "
        f"{_mib(num_blocks * block_bytes)}, to work in {_mib(work)}, free {_mib(free)}"
    )
    if tier.num_bytes:
        needs += f", of which the host tier takes {_mib(unused)}"
    log.info("estimate: %s; modules placed: %s", needs, dict(places))
    room = max(free - unused - work - weights_bytes, 0) if measured.fits else 0
    if num_blocks < 2 or num_blocks * block_bytes > room:
        advice = _advice(room, block_bytes, max_ctx)
        raise DriverFault(FaultKind.OOM, f"the model does not fit: {needs}; {advice}")
    return _pool_shape(config, load, num_blocks), weights_bytes


def _advice(room: int, block_bytes: int, max_ctx: int) -> str:
    need = 2 * block_bytes
    if room < need:
        return (
            f"{_mib(need)} for 2 blocks is the least; free some memory, take a smaller model, or "
            f"a max_ctx below {max_ctx}"
        )
    return f"kv_bytes can be {need} to {room}, that is 2 to {room // block_bytes} blocks"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
