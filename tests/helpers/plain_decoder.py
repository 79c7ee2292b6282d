"""A decoder as one would write it down: float64, one sequence, all positions at once, no blocks.

Written from the published descriptions of the models, apart from the drivers: rotary halves are
turned as halves here, and each layer masks the whole square of scores.
"""

import math
from typing import Any

import numpy as np

from drivers.models.config import ModelConfig
from tests.helpers.tiny_model import LLAMA

Array = np.ndarray[Any, Any]


class Plain:
    """A tiny model, from its weights and its numbers."""

    def __init__(self, weights: dict[str, Array], config: ModelConfig = LLAMA) -> None:
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self.config = config

    def logprobs(self, ids: list[int], factors: Array | None = None) -> Array:
        """Return the log-probabilities after each position, [T, vocab]."""
        logits = self.logits(ids, factors)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def logits(self, ids: list[int], factors: Array | None = None) -> Array:
        """Return the logits after each position, [T, vocab]."""
        w = self.weights
        x = w["token_embd.weight"][ids] * self.config.embedding_scale
        for layer in range(self.config.num_layers):
            x = x + self._attention(x, layer, factors)
            x = x + self._mlp(x, f"blk.{layer}.")
        head = w.get("output.weight", w["token_embd.weight"])
        logits: Array = norm(x, w["output_norm.weight"]) @ head.T
        return logits

    def _attention(self, x: Array, layer: int, factors: Array | None) -> Array:
        c, w, blk = self.config, self.weights, f"blk.{layer}."
        h = norm(x, w[f"{blk}attn_norm.weight"])
        q, k, v = (self._project(h, f"{blk}attn_{name}") for name in "qkv")
        if c.qk_norm:
            q, k = norm(q, w[f"{blk}attn_q_norm.weight"]), norm(k, w[f"{blk}attn_k_norm.weight"])
        speed = self._speed(layer, factors)
        q, k = turn(q, speed, c.halves), turn(k, speed, c.halves)
        out = np.empty_like(q)
        for head in range(c.num_heads):
            shared = head // (c.num_heads // c.num_kv_heads)
            scores = q[:, head] @ k[:, shared].T * (c.attention_scale or c.head_dim**-0.5)
            scores[~self._seen(layer, len(x))] = -np.inf
            odds = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = odds / odds.sum(-1, keepdims=True) @ v[:, shared]
        out = out.reshape(len(x), -1) @ w[f"{blk}attn_output.weight"].T
        return norm(out, w[f"{blk}post_attention_norm.weight"]) if c.post_norms else out

    def _project(self, x: Array, name: str) -> Array:
        y = x @ self.weights[f"{name}.weight"].T
        if self.config.qkv_bias:
            y = y + self.weights[f"{name}.bias"]
        return y.reshape(len(x), -1, self.config.head_dim)

    def _slides(self, layer: int) -> bool:
        every = self.config.global_every
        return self.config.window > 0 and not (every and layer % every == every - 1)

    def _seen(self, layer: int, length: int) -> Array:
        """Return which keys each query sees, [T, T]."""
        distance = np.arange(length)[:, None] - np.arange(length)
        seen = distance >= 0
        return seen & (distance < self.config.window) if self._slides(layer) else seen

    def _speed(self, layer: int, factors: Array | None) -> Array:
        """Return the angle of each pair per position: 10000^(-2i / dim), or as the model has it."""
        c, powers = self.config, -np.arange(0, self.config.head_dim, 2) / self.config.head_dim
        if self._slides(layer) and c.local_rope_theta:
            return np.asarray(c.local_rope_theta**powers)
        return np.asarray(
            c.rope_theta**powers / c.rope_factor / (1 if factors is None else factors)
        )

    def _mlp(self, x: Array, blk: str) -> Array:
        w = self.weights
        h = norm(x, w[f"{blk}ffn_norm.weight"])
        gate, up = h @ w[f"{blk}ffn_gate.weight"].T, h @ w[f"{blk}ffn_up.weight"].T
        out = ACTIVATIONS[self.config.activation](gate) * up @ w[f"{blk}ffn_down.weight"].T
        return norm(out, w[f"{blk}post_ffw_norm.weight"]) if self.config.post_norms else out


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def norm(x: Array, weight: Array) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight)


def turn(x: Array, speed: Array, halves: bool) -> Array:
    """Turn the pairs of each head: elements i and i + D/2, or 2i and 2i + 1."""
    angle = np.arange(len(x))[:, None, None] * speed
    half = x.shape[-1] // 2
    one, two = (
        (slice(half), slice(half, None)) if halves else (slice(0, None, 2), slice(1, None, 2))
    )
    turned = np.empty_like(x)
    turned[..., one] = x[..., one] * np.cos(angle) - x[..., two] * np.sin(angle)
    turned[..., two] = x[..., one] * np.sin(angle) + x[..., two] * np.cos(angle)
    return turned
