"""What the null driver must sample, from ids alone: written apart from its pool and tables."""

from functools import lru_cache

from drivers.null_model import SLOT, Draw, draw, slot_digest

VOCAB = 251
"""Of the null model that the tests use."""


@lru_cache(maxsize=200_000)
def _history(ids: tuple[int, ...]) -> bytes:
    if not ids:
        return b""
    before = _history(ids[:-1]) if len(ids) % 16 else _fold(ids[:-1])
    return before + slot_digest(ids[-1], len(ids) - 1, before[-SLOT:] or bytes(SLOT))


def _fold(ids: tuple[int, ...]) -> bytes:
    """The same without deep recursion: sixteen positions at a time."""
    history = b""
    for position, token in enumerate(ids):
        history += slot_digest(token, position, history[-SLOT:] or bytes(SLOT))
    return history


def next_id(ids: list[int], temperature: float, seed: int, vocab: int) -> int:
    """Return the id that follows `ids`."""
    return draw(_history(tuple(ids)), Draw(temperature, seed, len(ids)), vocab)


def expected(ids: list[int], count: int) -> list[int]:
    """Return the `count` greedy ids that follow `ids`."""
    ids = list(ids)
    for _ in range(count):
        ids.append(next_id(ids, 0.0, 0, VOCAB))
    return ids[-count:]
