"""The KV tensors of one model on one device, as torch sees them.

One allocation, made and touched at load, so that memory does not grow with contexts:

    [num_blocks, layers, 2 (k, v), block_size, kv_heads, head_dim]        block-major

A block is one contiguous run of bytes, already in the canonical order of `drivers.base`, so that
copying, exporting and checksumming a block is one memory copy. What a layer reads or writes are
rows of two flat views of the same storage, both shifted to the layer, so that one set of indexes
made per step serves every layer:

    slots(layer)   [.., kv_heads * head_dim]                 row = slot_base + offset
    spans(layer)   [.., block_size * kv_heads * head_dim]    row = span_base

The pool knows blocks and offsets only; who owns a block and what may be read is the plan's matter.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drivers.block_memory import BlockMemory
from drivers.sizes import SCALE_BYTES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class PoolShape:
    """Sizes of a pool; `block_bytes` is what one block costs."""

    num_blocks: int
    layers: int
    block_size: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype  # of what attention computes with
    int8: bool = False  # kept in 8 bit (drivers/int8_pool.py)

    @property
    def vector_bytes(self) -> int:
        """Of one head, of one token."""
        return self.head_dim + SCALE_BYTES if self.int8 else self.head_dim * self.dtype.itemsize

    @property
    def slot_bytes(self) -> int:
        return self.kv_heads * self.vector_bytes

    @property
    def block_bytes(self) -> int:
        return self.layers * 2 * self.block_size * self.slot_bytes

    @property
    def gathered_bytes(self) -> int:
        """Of one block of one layer, as attention has it."""
        return 2 * self.block_size * self.kv_heads * self.head_dim * self.dtype.itemsize


class KvPool:
    """Blocks of keys and values."""

    def __init__(self, shape: PoolShape, device: str = "cpu") -> None:
        self.shape = shape
        s = shape
        kept = torch.int8 if s.int8 else s.dtype
        width = s.vector_bytes // kept.itemsize
        size = (s.num_blocks, s.layers, 2, s.block_size, s.kv_heads, width)
        # empty and zero_, not zeros: a lazily mapped page would be paid for in the middle of a step
        self._blocks = torch.empty(size, dtype=kept, device=device).zero_()
        slot = s.kv_heads * width
        flat = self._blocks.view(-1, slot)
        span = self._blocks.view(-1, s.block_size * slot)
        self._slots = [flat[layer * 2 * s.block_size :] for layer in range(s.layers)]
        self._spans = [span[layer * 2 :] for layer in range(s.layers)]
        raw = self._blocks.view(-1).view(torch.uint8).numpy().data
        self.memory = BlockMemory(raw, s.block_bytes)  # the blocks as bytes

    @property
    def pool_bytes(self) -> int:
        return self._blocks.numel() * self._blocks.element_size()

    # --- what attention does, with rows from key_slots and key_spans --------------------------

    def key_slots(self, slots: Tensor) -> Tensor:
        """Return the rows of `store` for slots = block * block_size + offset."""
        size = self.shape.block_size
        block = torch.div(slots, size, rounding_mode="floor")
        return block * (self.shape.layers * 2 * size) + slots % size

    def key_spans(self, blocks: Tensor) -> Tensor:
        """Return the rows of `gather` for blocks."""
        return blocks * (self.shape.layers * 2)

    def store(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write keys and values [T, kv_heads * head_dim] at `rows` (of key_slots)."""
        slots = self._slots[layer]
        slots.index_copy_(0, rows, keys)
        slots[self.shape.block_size :].index_copy_(0, rows, values)

    def gather(self, layer: int, rows: Tensor, out: Tensor) -> Tensor:
        """Read whole blocks into out [2, len(rows) * block_size, kv_heads, head_dim]."""
        spans = self._spans[layer]
        flat = out.view(2, rows.numel(), -1)
        torch.index_select(spans, 0, rows, out=flat[0])
        torch.index_select(spans[1:], 0, rows, out=flat[1])
        return out

    # --- what the kernel does with whole blocks ---------------------------------------------------

    def copy(self, src: Tensor, dst: Tensor) -> None:
        """Copy block src[i] to dst[i]; all are read before any is written."""
        self._blocks.index_copy_(0, dst, self._blocks.index_select(0, src))

    def scrub(self, blocks: Tensor) -> None:
        """Zero these blocks."""
        self._blocks.index_fill_(0, blocks, 0)

    def export(self, blocks: Sequence[int], window: memoryview, offset: int) -> None:
        """Write blocks in canonical order to `window`, from byte `offset` on."""
        target = BlockMemory(window, self.shape.block_bytes, offset)
        self.memory.copy(blocks, target, range(len(blocks)))

    def restore(self, blocks: Sequence[int], window: memoryview, offset: int) -> None:
        """Read blocks in canonical order from `window`, from byte `offset` on."""
        source = BlockMemory(window, self.shape.block_bytes, offset)
        source.copy(range(len(blocks)), self.memory, blocks)

    def checksum(self, blocks: Sequence[int]) -> tuple[str, ...]:
        """Return the hex BLAKE2b-16 of each block's canonical bytes."""
        return tuple(
            hashlib.blake2b(self.memory.bytes(block), digest_size=16).hexdigest()
            for block in blocks
        )
