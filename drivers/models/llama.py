"""The Llama family as a module: what stands between ids and logits, attention left to the driver.

RMSNorm, rotary positions, grouped-query attention, SwiGLU; the head may be the embedding. A step
is one packed row of tokens [T], whatever sequences they belong to; `attend` stores and reads KV.

    tokens [T], positions [T]  ->  Llama.forward(.., attend)  ->  logits [R, vocab]
    attend(layer, queries [T, heads * D], keys [T, kv_heads * D], values)  ->  [T, heads * D]

Queries and keys keep the pair order of GGUF files of this architecture: elements 2i and 2i+1 of a
head are one complex number, turned by the angle of pair i. That is also the order of the keys in
the KV pool. (Checkpoints of other tools have the halves of a head apart instead; whoever loads one
permutes its rows.)

With `tile` > 0 everything that works on rows runs on exactly `tile` of them at a time, padded, so
that a row's bits do not depend on how many others there are: matmuls choose their method by shape.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from drivers.models.config import ModelConfig

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Linear(nn.Module):
    """A matrix without bias, in the layout that oneDNN likes best where there is oneDNN.

    A packed weight is about twice as fast as a plain one in float32, and a third in bfloat16 for
    few rows; it cannot be read back.
    """

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight: Tensor | None = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        self._packed: Tensor | None = None

    def fill(self, weight: Tensor) -> None:
        """Take over a weight [outputs, inputs]."""
        self.weight = None
        if can_pack(weight.dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is None:
            assert self.weight is not None
            return nn.functional.linear(x, self.weight)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")
        return y

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """Return other + the product, in one call where that is possible."""
        if self._packed is None:
            return other + self.forward(x)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._packed, None, "add")
        return y


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight: Tensor = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
        self._shape, self._eps = (size,), eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self._shape, self.weight, self._eps)


class LlamaLayer(nn.Module):
    """One layer; q, k and v are one matrix, and so are gate and up."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        self.heads, self.kv_heads, self.dim = config.num_heads, config.num_kv_heads, dim
        self.attn_norm = Norm(hidden, config.norm_eps, dtype)
        self.qkv = Linear(hidden, (self.heads + 2 * self.kv_heads) * dim, dtype)
        self.out = Linear(self.heads * dim, hidden, dtype)
        self.mlp_norm = Norm(hidden, config.norm_eps, dtype)
        self.gate_up = Linear(hidden, 2 * config.intermediate_size, dtype)
        self.down = Linear(config.intermediate_size, hidden, dtype)

    def before(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, the first two turned to their positions."""
        qkv = self.qkv.forward(self.attn_norm.forward(x))
        count, num_turned = len(x), self.heads + self.kv_heads
        pairs = qkv[:, : num_turned * self.dim].float().view(count, num_turned, -1, 2)
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turn).view(count, -1).to(x.dtype)
        split = self.heads * self.dim
        return turned[:, :split], turned[:, split:], qkv[:, num_turned * self.dim :]

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's result from its input and what attention gave."""
        x = self.out.add(attended, x)
        gate, up = self.gate_up.forward(self.mlp_norm.forward(x)).chunk(2, -1)
        return self.down.add(nn.functional.silu(gate).mul_(up), x)


class Llama(nn.Module):
    """The whole model; its weights are filled in by `drivers.models.weights`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype, self.tile = config, dtype, 0
        self.embed: Tensor = nn.Parameter(
            torch.empty(config.vocab_size, config.hidden_size, dtype=dtype), requires_grad=False
        )
        self.layers = nn.ModuleList(LlamaLayer(config, dtype) for _ in range(config.num_layers))
        self.norm = Norm(config.hidden_size, config.norm_eps, dtype)
        self.head = Linear(config.hidden_size, config.vocab_size, dtype)
        self._turn = torch.empty(0)
        self._walk: list[LlamaLayer] = []

    def prepare(self, max_ctx: int, factors: Tensor | None = None, tile: int = 0) -> None:
        """Make the rotary table, with the frequencies divided by `factors` if there are any."""
        dim = self.config.head_dim
        exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        speed = 1.0 / torch.pow(torch.tensor(self.config.rope_theta), exponents)
        if factors is not None:
            speed = speed / factors
        angle = torch.outer(torch.arange(max_ctx, dtype=torch.float32), speed)
        self._turn = torch.polar(torch.ones(()).expand_as(angle), angle)[:, None]
        self._walk = [layer for layer in self.layers if isinstance(layer, LlamaLayer)]
        self.tile = tile

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        logit_rows: Tensor,
        attend: Attend,
        depth: int | None = None,
    ) -> Tensor:
        """Return the logits of `logit_rows`; with `depth` of so many layers only.

        After the keys and values of the last layer, only those rows matter.
        """
        walk = self._walk[:depth]
        if self.tile:
            return self._forward_tiled(walk, tokens, positions, logit_rows, attend)
        x, turn = self.embed[tokens], self._turn[positions]
        for index, layer in enumerate(walk[:-1]):
            x = layer.after(x, attend(index, *layer.before(x, turn)))
        attended = attend(len(walk) - 1, *walk[-1].before(x, turn))
        x = walk[-1].after(x[logit_rows], attended[logit_rows])
        return self.head.forward(self.norm.forward(x))

    def _forward_tiled(
        self,
        walk: Sequence[LlamaLayer],
        tokens: Tensor,
        positions: Tensor,
        logit_rows: Tensor,
        attend: Attend,
    ) -> Tensor:
        count = len(tokens)
        x, turn = list(self._tiles(self.embed[tokens])), list(self._tiles(self._turn[positions]))
        for index, layer in enumerate(walk):
            parts = [layer.before(*pair) for pair in zip(x, turn, strict=True)]
            q, k, v = (torch.cat(column)[:count] for column in zip(*parts, strict=True))
            attended = self._tiles(attend(index, q, k, v))
            x = [layer.after(*pair) for pair in zip(x, attended, strict=True)]
        rows = self._tiles(torch.cat(x)[logit_rows])
        logits = [self.head.forward(self.norm.forward(part)) for part in rows]
        return torch.cat(logits)[: len(logit_rows)]

    def _tiles(self, x: Tensor) -> Iterator[Tensor]:
        """Yield `tile` rows at a time, the last padded with zeros."""
        for part in torch.split(x, self.tile):
            missing = self.tile - len(part)
            if missing:
                part = torch.cat([part, part.new_zeros((missing, *part.shape[1:]))])
            yield part


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether weights of this type can be packed on this machine."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
