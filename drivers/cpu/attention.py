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
tile sees the keys up to its last token, and only the square at the end needs a mask. Queries are
filled up to a multiple of ROWS, keys to whole blocks: oneDNN writes code for each shape that it
meets, which takes a millisecond, and some hundred kilobytes that it keeps.

Layers that slide see only a window, a query the last `window` positions up to its own. They have
work of their own, on what is left of each sequence when the blocks that no query of the step can
see are taken off its front (`within`); what still lies before a query's window is masked:

    decode    keys  [. . . x x x x x x]      the first `lead` of the gathered keys
    prefill   tile  [. x x x x x 0 0 0]      one triangle at the front, one at the end
                    [. . x x x x x 0 0]
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drivers.base import NULL_BLOCK
from drivers.models.config import ModelConfig
from drivers.pool import KvPool
from drivers.sizes import GATHER_BYTES, MAX_TILE, MIN_TILE, SCORES_BYTES, scores_numel

ROWS = 8  # of queries in a tile, or a multiple
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
    """Geometry of attention: heads, what scores are scaled by, and which layers see a window."""

    heads: int
    kv_heads: int
    head_dim: int
    attention_scale: float = 0.0
    window: int = 0
    sliding: frozenset[int] = frozenset()

    @classmethod
    def of(cls, config: ModelConfig) -> "Heads":
        """Return the geometry of a model."""
        layers = range(config.num_layers)
        return cls(
            config.num_heads, config.num_kv_heads, config.head_dim, config.attention_scale,
            config.window, frozenset(filter(config.slides, layers)),
        )  # fmt: skip

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def scale(self) -> float:
        return self.attention_scale or float(self.head_dim**-0.5)

    def widest(self, layers: int) -> int:
        """Return a layer of so many that sees as much as any other."""
        return next((layer for layer in range(layers) if layer not in self.sliding), 0)

    def windows(self, layers: int) -> set[int]:
        """Return the windows that so many layers have; 0 for layers that see all."""
        return {self.window_of(layer) for layer in range(layers)}

    def window_of(self, layer: int) -> int:
        """Return the positions that a query sees in a layer, 0 if all up to its own."""
        return self.window if layer in self.sliding else 0


class DecodeGroup:
    """Sequences of one new token each, attended together."""

    def __init__(
        self, pool: KvPool, arena: Arena, heads: Heads, window: int, parts: Sequence[Part]
    ) -> None:
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
        self._bias = _hiding(beyond[:, None, self._shortest :], pool.shape.dtype)
        leads = np.maximum(lengths - window, 0) if window else np.zeros_like(lengths)
        self._lead = int(leads.max())
        before = np.arange(self._lead) < leads[:, None]
        self._lead_bias = _hiding(before[:, None], pool.shape.dtype)
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
        self._early = self._scores[..., : self._lead]
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
        if self._lead:
            self._early += self._lead_bias
        torch.softmax(self._scores, -1, out=self._scores)
        torch.bmm(self._scores, self._values, out=self._sums)
        if rows is None:
            out.index_copy_(0, self._rows, self._result.reshape(shape[0], -1))
        else:
            out[rows].view(shape).copy_(self._result)


class Prefill:
    """One sequence of several new tokens, the last of its positions."""

    def __init__(self, pool: KvPool, arena: Arena, heads: Heads, window: int, part: Part) -> None:
        self._pool, self._heads, self._arena = pool, heads, arena
        self._window, self._part = window, part
        blocks = torch.from_numpy(part.blocks)
        self._spans = pool.key_spans(blocks)
        self._dim = heads.kv_heads * heads.head_dim
        self._length = blocks.numel() * pool.shape.block_size
        self._kv = arena.take("kv", 2, self._length, self._dim)
        self._tiles = list(self._cut(part))
        longest = _whole(self._tiles[0][1] - self._tiles[0][0], ROWS)
        # at once: growing from tile to tile, it would leave a hole of every size behind
        arena.take("scores", scores_numel(heads.heads, self._length, pool.shape.dtype.itemsize))
        arena.take("keys", self._dim * self._length)
        width = longest + pool.shape.block_size
        whole = torch.full((longest, width), -math.inf, dtype=pool.shape.dtype)
        self._mask = whole.triu(1)
        self._lead_mask = whole.tril_(-1) if window else None

    def _cut(self, part: Part) -> Iterator[tuple[int, int, int]]:
        """Yield tiles as (first row, row behind the last, number of keys)."""
        line = self._heads.heads * self._length * self._pool.shape.dtype.itemsize
        size = MAX_TILE
        while size > MIN_TILE and size * line > SCORES_BYTES:
            size //= 2
        for at in range(0, part.count, size):
            end = min(at + size, part.count)
            yield part.start + at, part.start + end, part.kv_len - part.count + end

    def run(self, layer: int, queries: Tensor, out: Tensor) -> None:
        """Attend for this sequence's rows of queries and out, both [T, heads * head_dim]."""
        h = self._heads
        kv = self._pool.gather(layer, self._spans, self._kv)
        kv[:, self._part.kv_len :] = 0  # it is seen, if only with no weight: see DecodeGroup
        keys, values = kv.view(2, -1, h.kv_heads, h.head_dim).transpose(1, 2)
        values = self._arena.take("values", *values.shape).copy_(values)
        for first, end, length in self._tiles:
            start = self._first_seen(first, end, length)
            seen = slice(start, _whole(length, self._pool.shape.block_size))
            tile = queries[first:end], keys[:, seen], values[:, seen]
            self._tile(*tile, length - start, out[first:end])

    def _first_seen(self, first: int, end: int, length: int) -> int:
        """Return the first key that a tile's first query sees."""
        return max(0, length - (end - first) + 1 - self._window) if self._window else 0

    def _tile(
        self, queries: Tensor, keys: Tensor, values: Tensor, length: int, out: Tensor
    ) -> None:
        """Attend for a tile that sees the first `length` of the keys, the last query all of them.

        The rows are filled up with zeros, the keys with what follows.
        """
        h, count, width = self._heads, queries.shape[0], keys.shape[1]
        shape, rows = (count, h.kv_heads, h.group, h.head_dim), _whole(count, ROWS)
        mine = self._arena.take("tile", h.kv_heads, h.group, rows, h.head_dim)
        mine[:, :, count:] = 0
        torch.mul(queries.view(shape).permute(1, 2, 0, 3), h.scale, out=mine[:, :, :count])
        scores = self._arena.take("scores", h.kv_heads, h.group * rows, width)
        # In one piece: else a matmul would copy them itself, into memory that nobody has counted.
        keys = self._arena.take("keys", *keys.shape).copy_(keys)
        torch.bmm(mine.view(h.kv_heads, -1, h.head_dim), keys.transpose(1, 2), out=scores)
        by_query = scores.view(h.kv_heads, h.group, rows, width)
        square = by_query[..., length - count :]
        square += self._mask[:rows, : width - length + count]
        if self._lead_mask is not None:
            # query i does not see the first i keys, less what the window is not filled with
            missing = max(0, self._window - (length - count + 1))
            front = by_query[:, :, :count, : max(0, count - missing)]
            front += self._lead_mask[:count, missing:count]
        torch.softmax(scores, -1, out=scores)
        sums = self._arena.take("sums", h.kv_heads, h.group * rows, h.head_dim)
        torch.bmm(scores, values, out=sums)
        found = sums.view(h.kv_heads, h.group, rows, -1)[:, :, :count]
        out.view(shape).copy_(found.permute(2, 0, 1, 3))


def _whole(count: int, size: int) -> int:
    """Return a count, rounded up to a multiple of a size."""
    return -(-count // size) * size


class Attention:
    """What one step stores and reads, layer by layer."""

    def __init__(
        self, pool: KvPool, arena: Arena, heads: Heads, slots: Tensor, parts: Sequence[Part]
    ) -> None:
        self._pool, self._heads = pool, heads
        self._rows = pool.key_slots(slots)
        self._work = {
            window: list(_work(pool, arena, heads, window, parts))
            for window in heads.windows(pool.shape.layers)
        }

    def run(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store keys and values [T, kv_heads * D], then attend for queries [T, heads * D]."""
        self._pool.store(layer, self._rows, keys, values)
        out = torch.empty(queries.shape, dtype=queries.dtype)
        for work in self._work[self._heads.window_of(layer)]:
            work.run(layer, queries, out)
        return out


def _work(
    pool: KvPool, arena: Arena, heads: Heads, window: int, parts: Sequence[Part]
) -> Iterator[DecodeGroup | Prefill]:
    """Yield what the layers with a window have to do in a step; 0 for those that see all."""
    parts = [within(part, window, pool.shape.block_size) for part in parts]
    short = sorted((part for part in parts if part.count == 1), key=lambda part: -len(part.blocks))
    for members in group(short, blocks_at_once(pool)):
        members.sort(key=lambda part: part.start)
        yield DecodeGroup(pool, arena, heads, window, members)
    for part in parts:
        if part.count > 1:
            yield Prefill(pool, arena, heads, window, part)


def within(part: Part, window: int, block_size: int) -> Part:
    """Return a part without the blocks that its queries cannot see, its positions moved along."""
    skip = max(0, part.kv_len - part.count + 1 - window) // block_size if window else 0
    return Part(part.start, part.count, part.kv_len - skip * block_size, part.blocks[skip:])


def _hiding(hidden: "np.ndarray[Any, np.dtype[np.bool_]]", dtype: torch.dtype) -> Tensor:
    """Return what is added to scores: nothing, or so much that what is hidden weighs nothing."""
    mask = torch.from_numpy(hidden)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(mask, -math.inf)


def blocks_at_once(pool: KvPool) -> int:
    """Return how many blocks a decode group may gather."""
    return max(1, GATHER_BYTES // pool.shape.gathered_bytes)


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
