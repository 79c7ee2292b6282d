"""A pool that keeps KV in 8 bit: half the bytes of bfloat16, and attention computes as before.

Each vector of a head, of one token, is kept as `head_dim` numbers from -127 to 127 and behind them
what they are multiples of, as a bfloat16:

    [num_blocks, layers, 2 (k, v), block_size, kv_heads, head_dim int8 | scale bfloat16]

So a slot is a row of bytes like any other, and whatever moves whole blocks does not know the
difference. A vector is rounded when it is stored, by itself: it is the same in whichever batch it
was computed. The scale is rounded first and the numbers are taken of what it then is, so that eight
bits of it lose nothing; its range is that of float32. What is no number stays none: NaN, and Inf as
NaN.
"""

import torch
from torch import Tensor

from drivers.pool import KvPool, PoolShape

LARGEST = 127
TINY = torch.finfo(torch.float32).tiny


class Int8Pool(KvPool):
    """Blocks of keys and values in 8 bit; keys and values go in and come out as `shape.dtype`."""

    def __init__(self, shape: PoolShape, device: str = "cpu") -> None:
        super().__init__(shape, device)
        self._raw = torch.empty(0, dtype=torch.int8, device=device)

    def store(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        s = self.shape
        exact = torch.stack((keys, values)).view(2, -1, s.kv_heads, s.head_dim).float()
        packed = torch.empty(*exact.shape[:3], s.vector_bytes, dtype=torch.int8)
        numbers, scales = self._parts(packed)
        scales.copy_(exact.abs().amax(-1, keepdim=True).div_(LARGEST))
        exact.div_(scales.float().clamp_min_(TINY)).round_()
        numbers.copy_(exact.clamp_(-LARGEST, LARGEST))
        super().store(layer, rows, *packed.view(2, -1, s.slot_bytes))

    def gather(self, layer: int, rows: Tensor, out: Tensor) -> Tensor:
        s = self.shape
        size = 2 * rows.numel() * s.block_size * s.slot_bytes
        if self._raw.numel() < size:
            self._raw = torch.zeros(size, dtype=torch.int8)
        raw = self._raw[:size].view(2, -1, s.kv_heads, s.vector_bytes)
        super().gather(layer, rows, raw)
        numbers, scales = self._parts(raw)
        values = out.view(numbers.shape)
        values.copy_(numbers)
        values.mul_(scales)
        return out

    def _parts(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers and the scales of [..., vector_bytes]."""
        dim = self.shape.head_dim
        return packed[..., :dim], packed[..., dim:].view(torch.bfloat16)
