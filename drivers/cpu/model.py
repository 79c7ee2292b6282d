"""A loaded model on the CPU: weights, pool and scratch memory, and how a step runs on them.

Memory is counted before it is taken: weights, pool and `WORK_BYTES` for a step's temporaries must
fit into what is free, else the load is refused with the numbers and the largest budget that fits.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from drivers import base
from drivers.base import DriverFault, FaultKind
from drivers.cpu import machine
from drivers.cpu.attention import Arena, Attention, Heads, Part
from drivers.cpu.ordered import TILE, OrderedAttention
from drivers.models import weights
from drivers.models.config import ModelConfig
from drivers.plan import Plan
from drivers.pool import DTYPES, KvPool, PoolShape

MAX_TOKENS = 2048
MAX_SEQS = 256
MAX_BLOCK_REFS = 32768
MAX_BLOCK_SIZE = 4096
WORK_BYTES = 256 << 20


class CpuModel:
    """One model with its pool."""

    def __init__(self, load: base.Load, emit: base.Emit) -> None:
        start = time.monotonic_ns()
        source = weights.open_source(load.path)
        config = source.config
        max_ctx = _check(load, config)
        shape, weights_bytes = _fit(load, config, emit)
        machine.set_threads(load.threads, load.deterministic)

        def progress(done: int) -> None:
            emit(base.Progress(load.model, "weights", done, config.num_layers))

        tile = TILE if load.deterministic else 0
        self._model = weights.load(source, shape.dtype, max_ctx, tile, progress)
        self.pool = KvPool(shape)
        self._heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim)
        self._arena = Arena(shape.dtype)
        self._attention: Callable[..., Attention | OrderedAttention] = (
            OrderedAttention if load.deterministic else Attention
        )
        group = base.KvGroup(
            config.num_layers, "full", 0, config.num_kv_heads, config.head_dim, load.dtype
        )
        self.answer = base.Loaded(
            load.model, config.arch, config.num_layers, config.vocab_size, max_ctx, weights_bytes,
            tuple(config.eos_ids), (group,), load.block_size, shape.block_bytes, shape.num_blocks,
            load.dtype, MAX_TOKENS, MAX_SEQS, MAX_BLOCK_REFS, (time.monotonic_ns() - start) // 1000,
        )  # fmt: skip

    def execute(self, plan: Plan, last: dict[int, tuple[int, int]]) -> Tensor:
        """Run one forward step and return the logits of its logit rows."""
        tokens = torch.frombuffer(plan.tokens, dtype=torch.int32).long()
        for row in (tokens == base.LAST_SAMPLE).nonzero().view(-1).tolist():
            sequence = int(np.searchsorted(plan.qo_indptr, row, "right")) - 1
            tokens[row] = last[plan.slots[sequence]][1]
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


def _fit(load: base.Load, config: ModelConfig, emit: base.Emit) -> tuple[PoolShape, int]:
    """Emit the Estimate; return the pool that fits, or refuse."""
    dtype, free = DTYPES[load.dtype], machine.memory_free()
    budget = free - WORK_BYTES
    weights_bytes, placed = weights.measure(config, dtype, budget)

    def shape(num_blocks: int) -> PoolShape:
        return PoolShape(
            num_blocks, config.num_layers, load.block_size, config.num_kv_heads, config.head_dim,
            dtype,
        )  # fmt: skip

    block_bytes = shape(1).block_bytes
    num_blocks = load.num_blocks or load.kv_bytes // block_bytes
    emit(base.Estimate(load.model, weights_bytes, block_bytes, num_blocks, free))
    room = max(budget - weights_bytes, 0) if placed else 0
    if num_blocks < 2 or num_blocks * block_bytes > room:
        raise DriverFault(
            FaultKind.OOM,
            f"weights {weights_bytes} bytes, {num_blocks} blocks of {block_bytes} bytes and "
            f"{WORK_BYTES} to work in, with {free} bytes free; at least 2 blocks are needed, and "
            f"kv_bytes can be at most {room}",
        )
    return shape(num_blocks), weights_bytes
