"""Attention whose bits depend on the sequence alone: what `deterministic` mode runs on.

Queries go in tiles of TILE rows that lie at fixed positions (0 to TILE - 1, and so on), each at its
own row of the tile, the others zero, over all keys up to the tile's end, rounded up to SPAN_BLOCKS
blocks. So whichever step computes a position, alone or among others, and whatever else is in the
batch, its matmuls have the same shapes and it lies at the same row of them. Keys behind a position
have weight zero exactly: they are zeroed or masked. A step of one token costs as much as one of
TILE.

Where a layer sees a window only, a tile's keys begin SPAN_BLOCKS-aligned before the first key that
its first position sees; that, too, is a matter of positions alone.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from drivers.base import NULL_BLOCK
from drivers.cpu.attention import Arena, Heads, Part
from drivers.pool import KvPool
from drivers.sizes import ORDERED_TILE as TILE
from drivers.sizes import SPAN_BLOCKS


class Masks:
    """What hides keys from the rows of a tile: those behind a row, and those before its window.

    What lies between is seen by all rows, so that two bands serve every tile:

        behind [TILE, TILE + span]   -inf above the diagonal; begins at the tile's first position
        before [TILE, span + TILE]   -inf below the diagonal of its last TILE columns and in front
    """

    def __init__(self, span: int, dtype: torch.dtype) -> None:
        self.span = span
        whole = torch.full((TILE, TILE + span), -math.inf, dtype=dtype)
        self.behind, self._before = whole.triu(1), whole.tril_(span - 1)

    def before(self, lead: int) -> Tensor:
        """Return the band for keys that begin `lead` before what the tile's first row sees.

        A negative lead is that of a window which the first rows do not fill.
        """
        return self._before[:, self.span - lead :]


class OrderedTile:
    """The rows of one sequence that lie within one tile of positions."""

    def __init__(
        self,
        pool: KvPool,
        arena: Arena,
        heads: Heads,
        masks: Masks,
        window: int,
        part: Part,
        first: int,
        end: int,
    ) -> None:
        self._pool, self._arena, self._heads = pool, arena, heads
        size, start, span = pool.shape.block_size, part.kv_len - part.count, masks.span
        base = first // TILE * TILE
        seen = base + 1 - window if window else 0  # by the first row; below 0 if all is
        front = max(0, seen) // span * span
        self._length = -(-(base + TILE) // span) * span - front
        blocks = np.full(self._length // size, NULL_BLOCK, np.int64)
        used = part.blocks[front // size : -(-end // size)]
        blocks[: len(used)] = used
        self._spans = pool.key_spans(torch.from_numpy(blocks))
        self._rows = slice(part.start + first - start, part.start + end - start)
        self._inside, self._stored = slice(first - base, end - base), end - front
        self._base = base - front
        self._behind = masks.behind[:, : self._length - self._base]
        self._before = masks.before(seen - front) if window else None

    def run(self, layer: int, queries: Tensor, out: Tensor) -> None:
        """Attend for this tile's rows of queries and out, both [T, heads * head_dim]."""
        h, take = self._heads, self._arena.take
        kv = take("kv", 2, self._length, h.kv_heads * h.head_dim)
        self._pool.gather(layer, self._spans, kv)
        kv[:, self._stored :] = 0
        keys, values = kv.view(2, -1, h.kv_heads, h.head_dim).transpose(1, 2)
        tile = take("tile", h.kv_heads, h.group, TILE, h.head_dim).zero_()
        mine = queries[self._rows].view(-1, h.kv_heads, h.group, h.head_dim).permute(1, 2, 0, 3)
        torch.mul(mine, h.scale, out=tile[:, :, self._inside])
        scores = take("scores", h.kv_heads, h.group * TILE, self._length)
        torch.bmm(tile.view(h.kv_heads, -1, h.head_dim), keys.transpose(1, 2), out=scores)
        self._hide(scores.view(h.kv_heads, h.group, TILE, -1))
        torch.softmax(scores, -1, out=scores)
        sums = take("sums", h.kv_heads, h.group * TILE, h.head_dim)
        torch.bmm(scores, values, out=sums)
        result = sums.view(h.kv_heads, h.group, TILE, -1)[:, :, self._inside].permute(2, 0, 1, 3)
        out[self._rows].view(result.shape).copy_(result)

    def _hide(self, scores: Tensor) -> None:
        scores[..., self._base :] += self._behind
        if self._before is not None:
            scores[..., : self._before.shape[1]] += self._before


class OrderedAttention:
    """What one step stores and reads, layer by layer, in deterministic mode."""

    def __init__(
        self, pool: KvPool, arena: Arena, heads: Heads, slots: Tensor, parts: Sequence[Part]
    ) -> None:
        self._pool, self._heads = pool, heads
        self._rows = pool.key_slots(slots)
        masks = Masks(pool.shape.block_size * SPAN_BLOCKS, pool.shape.dtype)
        self._tiles = {
            window: [
                OrderedTile(pool, arena, heads, masks, window, part, first, end)
                for part in parts
                for first, end in _cut(part.kv_len - part.count, part.kv_len)
            ]
            for window in heads.windows(pool.shape.layers)
        }

    def run(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store keys and values [T, kv_heads * D], then attend for queries [T, heads * D]."""
        self._pool.store(layer, self._rows, keys, values)
        out = torch.empty(queries.shape, dtype=queries.dtype)
        for tile in self._tiles[self._heads.window_of(layer)]:
            tile.run(layer, queries, out)
        return out


def _cut(start: int, end: int) -> list[tuple[int, int]]:
    """Cut positions at multiples of TILE."""
    edges = [start, *range(start // TILE * TILE + TILE, end, TILE), end]
    return list(pairwise(edges))
