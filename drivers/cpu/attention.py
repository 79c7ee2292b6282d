"""Paged attention on the CPU, for steps of mixed prefill and decode.

`Attention` is made once per step from the plan and then run once per layer: it stores the step's
keys and values, then reads only what the block tables name. Everything that does not change from
layer to layer (indexes, masks, views of scratch memory) is made in the constructor, because a
layer's part is some 100 us and a torch call costs several.

Decode (sequences with one new token) goes in groups of similar length, padded to the longest:

    keys [B, T, kv_heads * D]  x  queries [B, heads, kv_heads * D]   ->   scores [B, heads, T]

A query lies in its kv head's columns and is zero elsewhere, so that one matmul per sequence serves
all heads: kv_heads times the arithmetic, but several times faster than many small matmuls. Slots
behind a sequence's length (and the null block's, which pads) are zeroed after gathering, for what
lies there may be NaN, and 0 * NaN would be read after all.

Prefill goes sequence by sequence in tiles of queries, all queries of a kv head in one matmul; a
tile sees the keys up to its last token, and only the square at the end needs a mask.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drivers.base import NULL_BLOCK
from drivers.pool import KvPool, PoolShape

MAX_TILE = 128  # a power of two, as its halves are: tiles of other sizes are a fifth slower
MIN_TILE = 16
SCORES_BYTES = 16 << 20  # of a tile's scores
GATHER_BYTES = 8 << 20  # of a decode group's keys and values
PADDING = 0.75  # the shortest sequence of a group has at least this part of the longest's blocks,
MIN_WASTE = 4  # or lacks no more than so many


class Arena:
    """Scratch memory by name, kept from step to step: fresh pages cost more than the matmuls."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return uninitialised scratch; an earlier taker of the name loses its contents."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.zeros(size, dtype=self._dtype)
        return buffer[:size].view(shape)


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's part of a step: its rows of the batch, and its blocks."""

    start: int
    count: int
    kv_len: int
    blocks: "np.ndarray[tuple[int], np.dtype[np.int64]]"


@dataclass(frozen=True, slots=True)
class Heads:
    """Geometry of attention."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


class DecodeGroup:
    """Sequences of one new token each, attended together."""

    def __init__(self, pool: KvPool, arena: Arena, heads: Heads, parts: Sequence[Part]) -> None:
        self._pool, self._heads = pool, heads
        batch, blocks = len(parts), max(len(part.blocks) for part in parts)
        length = blocks * pool.shape.block_size
        table = np.full((batch, blocks), NULL_BLOCK, np.int64)
        for row, part in zip(table, parts, strict=True):
            row[: len(part.blocks)] = part.blocks
        self._spans = pool.key_spans(torch.from_numpy(table).view(-1))
        lengths = np.array([part.kv_len for part in parts])
        self._shortest = int(lengths.min())
        beyond = np.arange(length) >= lengths[:, None]
        tail = torch.from_numpy(np.flatnonzero(beyond))
        self._tail = torch.cat([tail, tail + batch * length])
        late = torch.from_numpy(beyond[:, None, self._shortest :])
        self._bias = torch.zeros(late.shape, dtype=pool.shape.dtype).masked_fill_(late, -math.inf)
        self._rows = torch.tensor([part.start for part in parts])
        first = parts[0].start
        adjacent = all(part.start == first + i for i, part in enumerate(parts))
        self._slice = slice(first, first + batch) if adjacent else None
        self._make_views(arena, batch, length)

    def _make_views(self, arena: Arena, batch: int, length: int) -> None:
        h = self._heads
        dim = h.kv_heads * h.head_dim
        self._kv = arena.take("kv", 2, batch * length, dim)
        self._flat = self._kv.view(2 * batch * length, dim)
        keys, values = self._kv.view(2, batch, length, dim)
        self._keys, self._values = keys.transpose(1, 2), values
        self._scores = arena.take("scores", batch, h.heads, length)
        self._late = self._scores[..., self._shortest :]
        # zero but for the diagonal, the only part ever written, which lies the same in every group
        self._queries = arena.take("queries", batch, h.heads, dim)
        self._diagonal = self._by_head(self._queries)
        self._sums = arena.take("sums", batch, h.heads, dim)
        self._result = self._by_head(self._sums)

    def _by_head(self, wide: Tensor) -> Tensor:
        """Return the part of [B, heads, kv_heads * D] where a head meets its own kv head."""
        h = self._heads
        square = wide.view(-1, h.kv_heads, h.group, h.kv_heads, h.head_dim)
        return square.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)

    def run(self, layer: int, queries: Tensor, out: Tensor) -> None:
        """Attend for this group's rows of queries and out, both [T, heads * head_dim]."""
        shape = self._diagonal.shape
        self._pool.gather(layer, self._spans, self._kv)
        if self._tail.numel():
            self._flat.index_fill_(0, self._tail, 0)
        rows = self._slice
        mine = queries.index_select(0, self._rows) if rows is None else queries[rows]
        torch.mul(mine.view(shape), self._heads.scale, out=self._diagonal)
        torch.bmm(self._queries, self._keys, out=self._scores)
        self._late += self._bias
        torch.softmax(self._scores, -1, out=self._scores)
        torch.bmm(self._scores, self._values, out=self._sums)
        if rows is None:
            out.index_copy_(0, self._rows, self._result.reshape(shape[0], -1))
        else:
            out[rows].view(shape).copy_(self._result)


class Prefill:
    """One sequence of several new tokens, the last of its positions."""

    def __init__(self, pool: KvPool, arena: Arena, heads: Heads, part: Part) -> None:
        self._pool, self._heads, self._arena, self._part = pool, heads, arena, part
        blocks = torch.from_numpy(part.blocks)
        self._spans = pool.key_spans(blocks)
        self._dim = heads.kv_heads * heads.head_dim
        self._kv = arena.take("kv", 2, blocks.numel() * pool.shape.block_size, self._dim)
        self._tiles = list(self._cut(part))
        longest = self._tiles[0][1] - self._tiles[0][0]
        # at once: growing from tile to tile, it would leave a hole of every size behind
        arena.take("scores", scores_numel(heads, part.kv_len, pool.shape.dtype))
        arena.take("keys", self._dim * part.kv_len)
        self._mask = torch.full((longest, longest), -math.inf, dtype=pool.shape.dtype).triu_(1)

    def _cut(self, part: Part) -> Iterator[tuple[int, int, int]]:
        """Yield tiles as (first row, row behind the last, number of keys)."""
        line = self._heads.heads * part.kv_len * self._pool.shape.dtype.itemsize
        size = MAX_TILE
        while size > MIN_TILE and size * line > SCORES_BYTES:
            size //= 2
        for at in range(0, part.count, size):
            end = min(at + size, part.count)
            yield part.start + at, part.start + end, part.kv_len - part.count + end

    def run(self, layer: int, queries: Tensor, out: Tensor) -> None:
        """Attend for this sequence's rows of queries and out, both [T, heads * head_dim]."""
        h = self._heads
        kv = self._pool.gather(layer, self._spans, self._kv)[:, : self._part.kv_len]
        keys, values = kv.view(2, -1, h.kv_heads, h.head_dim).transpose(1, 2)
        values = self._arena.take("values", *values.shape).copy_(values)
        for first, end, length in self._tiles:
            self._tile(queries[first:end], keys[:, :length], values[:, :length], out[first:end])

    def _tile(self, queries: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        h, count, length = self._heads, queries.shape[0], keys.shape[1]
        shape = (count, h.kv_heads, h.group, h.head_dim)
        mine = self._arena.take("tile", h.kv_heads, h.group, count, h.head_dim)
        torch.mul(queries.view(shape).permute(1, 2, 0, 3), h.scale, out=mine)
        scores = self._arena.take("scores", h.kv_heads, h.group * count, length)
        # In one piece: else a matmul would copy them itself, into memory that nobody has counted.
        keys = self._arena.take("keys", *keys.shape).copy_(keys)
        torch.bmm(mine.view(h.kv_heads, -1, h.head_dim), keys.transpose(1, 2), out=scores)
        square = scores.view(h.kv_heads, h.group, count, length)[..., length - count :]
        square += self._mask[:count, :count]
        torch.softmax(scores, -1, out=scores)
        sums = self._arena.take("sums", h.kv_heads, h.group * count, h.head_dim)
        torch.bmm(scores, values, out=sums)
        out.view(shape).copy_(sums.view(h.kv_heads, h.group, count, -1).permute(2, 0, 1, 3))


class Attention:
    """What one step stores and reads, layer by layer."""

    def __init__(
        self, pool: KvPool, arena: Arena, heads: Heads, slots: Tensor, parts: Sequence[Part]
    ) -> None:
        self._pool = pool
        self._rows = pool.key_slots(slots)
        short = sorted(
            (part for part in parts if part.count == 1), key=lambda part: -len(part.blocks)
        )
        groups = group(short, blocks_at_once(pool))
        self._work: list[DecodeGroup | Prefill] = [
            DecodeGroup(pool, arena, heads, sorted(members, key=lambda part: part.start))
            for members in groups
        ]
        self._work += (Prefill(pool, arena, heads, part) for part in parts if part.count > 1)

    @staticmethod
    def work_bytes(heads: Heads, shape: PoolShape, max_ctx: int, max_seqs: int) -> int:
        """Return what any step takes at most, of an arena and beside it."""
        length = -(-max_ctx // shape.block_size) * shape.block_size
        dim = heads.kv_heads * heads.head_dim
        gathered = max(length, GATHER_BYTES // (2 * dim * shape.dtype.itemsize))
        scores = max(scores_numel(heads, length, shape.dtype), gathered * heads.heads)
        wide = min(max_seqs, gathered // shape.block_size) * heads.heads * dim
        tiles = MAX_TILE * heads.heads * heads.head_dim
        elements = 2 * (gathered + length) * dim + scores + 2 * (wide + tiles)
        return elements * shape.dtype.itemsize

    def run(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store keys and values [T, kv_heads * D], then attend for queries [T, heads * D]."""
        self._pool.store(layer, self._rows, keys, values)
        out = torch.empty(queries.shape, dtype=queries.dtype)
        for work in self._work:
            work.run(layer, queries, out)
        return out


def scores_numel(heads: Heads, kv_len: int, dtype: torch.dtype) -> int:
    """Return how many scores a tile of a prefill has at most."""
    return max(SCORES_BYTES // dtype.itemsize, MIN_TILE * heads.heads * kv_len)


def blocks_at_once(pool: KvPool) -> int:
    """Return how many blocks a decode group may gather."""
    return max(1, GATHER_BYTES // (pool.shape.block_bytes // pool.shape.layers))


def group(parts: Sequence[Part], max_blocks: int) -> list[list[Part]]:
    """Cut sequences, the longest first, into groups that waste little on padding."""
    groups: list[list[Part]] = []
    for part in parts:
        if groups:
            longest = len(groups[-1][0].blocks)
            fits = (len(groups[-1]) + 1) * longest <= max_blocks
            if fits and len(part.blocks) >= min(PADDING * longest, longest - MIN_WASTE):
                groups[-1].append(part)
                continue
        groups.append([part])
    return groups
