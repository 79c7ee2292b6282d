"""A decoder as a module: what stands between ids and logits, attention left to the driver.

RMSNorm, rotary positions, grouped-query attention, a gated MLP; the head may be the embedding. What
models of this kind differ in is said by ModelConfig: biases, norms of heads and after each half of
a layer, the gate's function, scales, and whether layers that see only a window turn positions at
frequencies of their own. A step is one packed row of tokens [T], whatever sequences they belong to;
`attend` stores and reads KV, and knows the windows.

    tokens [T], positions [T]  ->  Decoder.forward(.., attend)  ->  logits [R, vocab]
    attend(layer, queries [T, heads * D], keys [T, kv_heads * D], values)  ->  [T, heads * D]

Queries and keys are in pair order: elements 2i and 2i+1 of a head are one complex number, turned by
the angle of pair i. That is also the order of the keys in the KV pool. (Most models have the halves
of a head apart instead; `drivers.models.weights` permutes their rows, which changes no product.)

With `tile` > 0 everything that works on rows runs on exactly `tile` of them at a time, padded, so
that a row's bits do not depend on how many others there are: matmuls choose their method by shape.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from drivers.models.config import ModelConfig
from drivers.sizes import num_turn_tables

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Linear(nn.Module):
    """A matrix, with a bias or without, in the layout that oneDNN likes best where there is oneDNN.

    A packed weight is about twice as fast as a plain one in float32, and a third in bfloat16 for
    few rows; it cannot be read back.
    """

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype, bias: bool = False) -> None:
        super().__init__()
        self.weight: Tensor | None = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        self.bias: Tensor | None = nn.Parameter(torch.empty(outputs, dtype=dtype)) if bias else None
        self._packed: Tensor | None = None

    def fill(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take over a weight [outputs, inputs], and a bias [outputs] if it was made with one."""
        assert (bias is None) == (self.bias is None)
        self.weight = None
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)
        if can_pack(weight.dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is None:
            assert self.weight is not None
            return nn.functional.linear(x, self.weight, self.bias)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """Return other + the product, in one call where that is possible."""
        if self._packed is None:
            return other + self.forward(x)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self._packed, self.bias, "add"
        )
        return y


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight: Tensor = nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
        self._shape, self._eps = (size,), eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self._shape, self.weight, self._eps)


class HeadNorm(nn.Module):
    """RMSNorm over each head of queries and keys, in float32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._heads, self._kv_heads = config.num_heads, config.num_kv_heads
        size = self._heads + self._kv_heads, config.head_dim
        self.weight: Tensor = nn.Parameter(torch.empty(size), requires_grad=False)
        self._shape, self._eps = (config.head_dim,), config.norm_eps

    def fill(self, queries: Tensor, keys: Tensor) -> None:
        """Take over the weights of query heads and of key heads, [D] each."""
        rows = [queries.expand(self._heads, -1), keys.expand(self._kv_heads, -1)]
        self.weight = nn.Parameter(torch.cat(rows).float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self._shape, None, self._eps).mul_(self.weight)


def silu(x: Tensor) -> Tensor:
    return nn.functional.silu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh}


class DecoderLayer(nn.Module):
    """One layer; q, k and v are one matrix, and so are gate and up."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, slides: bool) -> None:
        super().__init__()
        hidden, dim, eps = config.hidden_size, config.head_dim, config.norm_eps
        self.heads, self.kv_heads, self.dim = config.num_heads, config.num_kv_heads, dim
        self.slides = slides
        self._activation = ACTIVATIONS[config.activation]
        self.attn_norm = Norm(hidden, eps, dtype)
        rows = (self.heads + 2 * self.kv_heads) * dim
        self.qkv = Linear(hidden, rows, dtype, config.qkv_bias)
        self.head_norm = HeadNorm(config) if config.qk_norm else None
        self.out = Linear(self.heads * dim, hidden, dtype)
        self.mlp_norm = Norm(hidden, eps, dtype)
        self.gate_up = Linear(hidden, 2 * config.intermediate_size, dtype)
        self.down = Linear(config.intermediate_size, hidden, dtype)
        self.attn_post_norm = Norm(hidden, eps, dtype) if config.post_norms else None
        self.mlp_post_norm = Norm(hidden, eps, dtype) if config.post_norms else None

    def before(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, the first two turned to their positions."""
        qkv = self.qkv.forward(self.attn_norm.forward(x))
        count, num_turned = len(x), self.heads + self.kv_heads
        heads = qkv[:, : num_turned * self.dim].float().view(count, num_turned, self.dim)
        if self.head_norm is not None:
            heads = self.head_norm.forward(heads)
        pairs = heads.view(count, num_turned, -1, 2)
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turn).view(count, -1).to(x.dtype)
        split = self.heads * self.dim
        return turned[:, :split], turned[:, split:], qkv[:, num_turned * self.dim :]

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's result from its input and what attention gave."""
        x = _added(self.out, attended, self.attn_post_norm, x)
        gate, up = self.gate_up.forward(self.mlp_norm.forward(x)).chunk(2, -1)
        return _added(self.down, self._activation(gate).mul_(up), self.mlp_post_norm, x)


def _added(linear: Linear, x: Tensor, norm: Norm | None, other: Tensor) -> Tensor:
    """Return other + the product, normed if there is a norm."""
    if norm is None:
        return linear.add(x, other)
    return norm.forward(linear.forward(x)).add_(other)


class Decoder(nn.Module):
    """The whole model; its weights are filled in by `drivers.models.weights`."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype, self.tile = config, dtype, 0
        self.embed: Tensor = nn.Parameter(
            torch.empty(config.vocab_size, config.hidden_size, dtype=dtype), requires_grad=False
        )
        # rounded as the embedding is: models are trained with a scale of their own type
        self._scale = torch.tensor(config.embedding_scale, dtype=dtype).item()
        self.layers = nn.ModuleList(
            DecoderLayer(config, dtype, config.slides(layer)) for layer in range(config.num_layers)
        )
        self.norm = Norm(config.hidden_size, config.norm_eps, dtype)
        self.head = Linear(config.hidden_size, config.vocab_size, dtype)
        self._turns: list[Tensor] = []
        self._walk: list[DecoderLayer] = []

    def prepare(self, max_ctx: int, factors: Tensor | None = None, tile: int = 0) -> None:
        """Make the rotary tables, with the frequencies divided by `factors` if there are any.

        There is one for the layers that see all and one for those that slide, often the same.
        """
        c = self.config
        theta = torch.tensor(c.rope_theta)
        self._turns = [_turn(max_ctx, c.head_dim, theta, c.rope_factor, factors)] * 2
        if num_turn_tables(c) > 1:
            local = torch.tensor(c.local_rope_theta)
            self._turns[True] = _turn(max_ctx, c.head_dim, local, 1.0, None)
        self._walk = [layer for layer in self.layers if isinstance(layer, DecoderLayer)]
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
        x, turns = self._embedded(tokens), self._turned(positions)
        for index, layer in enumerate(walk[:-1]):
            x = layer.after(x, attend(index, *layer.before(x, turns[layer.slides])))
        attended = attend(len(walk) - 1, *walk[-1].before(x, turns[walk[-1].slides]))
        x = walk[-1].after(x[logit_rows], attended[logit_rows])
        return self.head.forward(self.norm.forward(x))

    def _forward_tiled(
        self,
        walk: Sequence[DecoderLayer],
        tokens: Tensor,
        positions: Tensor,
        logit_rows: Tensor,
        attend: Attend,
    ) -> Tensor:
        count = len(tokens)
        x = list(self._tiles(self._embedded(tokens)))
        turns = [list(self._tiles(turn)) for turn in self._turned(positions)]
        for index, layer in enumerate(walk):
            parts = [layer.before(*pair) for pair in zip(x, turns[layer.slides], strict=True)]
            q, k, v = (torch.cat(column)[:count] for column in zip(*parts, strict=True))
            attended = self._tiles(attend(index, q, k, v))
            x = [layer.after(*pair) for pair in zip(x, attended, strict=True)]
        rows = self._tiles(torch.cat(x)[logit_rows])
        logits = [self.head.forward(self.norm.forward(part)) for part in rows]
        return torch.cat(logits)[: len(logit_rows)]

    def _embedded(self, tokens: Tensor) -> Tensor:
        x = self.embed[tokens]
        return x if self._scale == 1.0 else x.mul_(self._scale)

    def _turned(self, positions: Tensor) -> list[Tensor]:
        """Return the turns of positions, for layers that see all and for those that slide."""
        wide, local = self._turns
        turn = wide[positions]
        return [turn, turn if local is wide else local[positions]]

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


def _turn(max_ctx: int, dim: int, theta: Tensor, factor: float, factors: Tensor | None) -> Tensor:
    """Return unit complex numbers [max_ctx, 1, dim / 2] that turn pairs to their positions."""
    speed = 1.0 / torch.pow(theta, torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if factors is not None:
        speed = speed / factors
    if factor != 1.0:
        speed = speed / factor
    angle = torch.outer(torch.arange(max_ctx, dtype=torch.float32), speed)
    return torch.polar(torch.ones(()).expand_as(angle), angle)[:, None]
