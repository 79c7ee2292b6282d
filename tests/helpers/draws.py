"""Rows of logits and how to draw from them, for tests of the ops on logits."""

from array import array
from typing import Any

import torch

from drivers import base
from drivers.plan import Draws

VOCAB = 1000


def logits_of(rows: int, seed: int = 1, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def draws(rows: int, **columns: Any) -> Draws:
    """Return parameters of so many rows; a column is one value for all, or a list."""

    def column(name: str, kind: str, value: float) -> "array[Any]":
        given = columns.pop(name, value)
        return array(kind, given if isinstance(given, list) else [given] * rows)

    result = Draws(
        array("i", range(rows)), column("temperature", "f", 1.0), column("top_k", "i", 0),
        column("top_p", "f", 1.0), column("min_p", "f", 0.0), column("seed", "Q", 7),
        column("position", "i", 11), column("num_logprobs", "i", -1),
    )  # fmt: skip
    assert not columns
    return result


def ids_of(sampled: base.Sampled) -> list[int]:
    return list(base.read_ints(sampled.ids))
