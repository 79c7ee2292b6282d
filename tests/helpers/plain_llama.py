"""A Llama as one would write it down: float64, one sequence, all positions at once, no blocks."""

import math
from typing import Any

import numpy as np

from tests.helpers.tiny_model import HEADS, HIDDEN, KV_HEADS, LAYERS

Array = np.ndarray[Any, Any]


class Plain:
    """The tiny model, from its weights."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}

    def logprobs(self, ids: list[int], factors: Array | None = None) -> Array:
        """Return the log-probabilities after each position, [T, vocab]."""
        w = self.weights
        x = w["token_embd.weight"][ids]
        for layer in range(LAYERS):
            x = x + self._attention(x, f"blk.{layer}.", factors)
            x = x + self._mlp(x, f"blk.{layer}.")
        head = w.get("output.weight", w["token_embd.weight"])
        logits = norm(x, w["output_norm.weight"]) @ head.T
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def _attention(self, x: Array, blk: str, factors: Array | None) -> Array:
        h, w = norm(x, self.weights[f"{blk}attn_norm.weight"]), self.weights
        q, k, v = (self._heads(h @ w[f"{blk}attn_{name}.weight"].T) for name in "qkv")
        q, k = turn(q, factors), turn(k, factors)
        out = np.empty_like(q)
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            scores = q[:, head] @ k[:, shared].T / math.sqrt(q.shape[-1])
            scores[np.triu_indices(len(x), 1)] = -np.inf
            odds = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = odds / odds.sum(-1, keepdims=True) @ v[:, shared]
        return out.reshape(len(x), -1) @ w[f"{blk}attn_output.weight"].T

    def _heads(self, x: Array) -> Array:
        return x.reshape(len(x), -1, HIDDEN // HEADS)

    def _mlp(self, x: Array, blk: str) -> Array:
        w = self.weights
        h = norm(x, w[f"{blk}ffn_norm.weight"])
        gate, up = h @ w[f"{blk}ffn_gate.weight"].T, h @ w[f"{blk}ffn_up.weight"].T
        return gate / (1 + np.exp(-gate)) * up @ w[f"{blk}ffn_down.weight"].T


def norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight


def turn(x: Array, factors: Array | None) -> Array:
    """Turn elements 2i and 2i + 1 of each head by position * 10000^(-2i / dim)."""
    dim = x.shape[-1]
    speed = 10000.0 ** (-np.arange(0, dim, 2) / dim) / (1 if factors is None else factors)
    angle = np.arange(len(x))[:, None, None] * speed
    even, odd = x[..., ::2], x[..., 1::2]
    turned = np.empty_like(x)
    turned[..., ::2] = even * np.cos(angle) - odd * np.sin(angle)
    turned[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return turned
