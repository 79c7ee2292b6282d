"""Drawing ids from logits: the right distribution, the right candidates, every row for itself."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from drivers import base
from drivers.base import RowFlag
from drivers.plan import Draws
from drivers.sampling import NOISE_MAX, ROWS_AT_ONCE, hash64, noise, sample
from tests.helpers.draws import VOCAB, draws, ids_of, logits_of

WORD = (1 << 64) - 1


def drawn(row: torch.Tensor, count: int, **how: Any) -> Counter[int]:
    """Draw from one row with `count` seeds."""
    rows = row.expand(count, -1)
    return Counter(ids_of(sample(rows, draws(count, seed=list(range(count)), **how))))


# --- the noise ------------------------------------------------------------------------------------


def mix(x: int) -> int:
    """splitmix64, as its paper has it."""
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & WORD
    return x ^ x >> 31


@pytest.mark.parametrize("seed", [0, 1, 1 << 63, WORD])
def test_the_noise_is_splitmix64_of_seed_position_and_id(seed: int) -> None:
    """Written down here, for every driver must draw the same."""
    ids, position = torch.tensor([0, 1, 49151]), 4096
    signed = seed - (1 << 64) if seed >> 63 else seed
    bits = hash64(torch.tensor(signed), torch.tensor(position), ids)
    right = [mix((mix((mix(seed) + position) & WORD) + i) & WORD) for i in ids.tolist()]
    assert [b & WORD for b in bits.tolist()] == right
    gumbel = noise(torch.tensor(signed), torch.tensor(position), ids)
    for value, word in zip(gumbel.tolist(), right, strict=True):
        uniform = ((word >> 32) + 0.5) / (1 << 32)
        assert value == pytest.approx(-math.log(-math.log(uniform)), rel=1e-12)
        assert value <= NOISE_MAX


# --- the distribution -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_those_of_the_softmax(temperature: float) -> None:
    row, count = torch.tensor([2.0, 1.0, 0.5, -1.0, -9.0]), 4000
    got = drawn(row, count, temperature=temperature)
    for token, p in enumerate((row / temperature).softmax(-1).tolist()):
        deviation = math.sqrt(p * (1 - p) / count)
        assert abs(got[token] / count - p) < 5 * deviation + 1e-9


def test_greedy_is_the_first_of_equal_maxima() -> None:
    rows = torch.zeros(2, VOCAB)
    rows[0, 400], rows[0, 90], rows[1, 3] = 5.0, 5.0, 1.0
    assert ids_of(sample(rows, draws(2, temperature=0.0))) == [90, 3]


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-30])
def test_a_tiny_temperature_draws_the_best(temperature: float) -> None:
    for logits in ([5.0, 30.0, 1.0, 20.0], [-50.0, -3.0, -90.0, -4.0]):
        row = torch.tensor(logits)
        for how in ({}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}):
            assert set(drawn(row, 20, temperature=temperature, **how)) == {1}
    assert set(drawn(torch.tensor([1.0, 2.0, 2.0]), 60, temperature=temperature)) == {1, 2}


def test_top_k_keeps_the_k_best_and_what_equals_the_last() -> None:
    row = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    assert set(drawn(row, 400, top_k=2, temperature=5.0)) == {1, 2, 3}
    assert set(drawn(row, 200, top_k=1, temperature=5.0)) == {1}
    assert set(drawn(row, 600, top_k=99, temperature=9.0)) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    row = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for p, kept in ((0.45, {0}), (0.55, {0, 1}), (0.81, {0, 1, 2}), (0.96, {0, 1, 2, 3})):
        assert set(drawn(row, 600, top_p=p)) == kept
    assert set(drawn(row, 50, top_p=0.0)) == {0}


def test_top_p_reaches_beyond_the_first_candidates() -> None:
    """Of 1000 equal logits, 0.9 keeps all, for they are ties; with a slope it keeps 900."""
    assert max(drawn(torch.zeros(VOCAB), 500, top_p=0.9)) > 920
    seen = drawn(torch.linspace(1e-3, 0, VOCAB), 500, top_p=0.9)
    assert 850 < max(seen) < 910


def test_top_p_is_of_what_top_k_left() -> None:
    row = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert set(drawn(row, 300, top_k=2, top_p=0.56)) == {0}
    assert set(drawn(row, 300, top_k=2, top_p=0.58)) == {0, 1}


def test_min_p_is_relative_to_the_best() -> None:
    row = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for p, kept in ((0.61, {0}), (0.59, {0, 1}), (0.29, {0, 1, 2}), (0.09, {0, 1, 2, 3})):
        assert set(drawn(row, 600, min_p=p)) == kept


# --- rows -----------------------------------------------------------------------------------------


def mixed(rows: int) -> Draws:
    """Return parameters that differ from row to row."""
    return draws(
        rows,
        temperature=[[0.0, 0.7, 1.0, 1.9][n % 4] for n in range(rows)],
        top_k=[[0, 5, 300][n % 3] for n in range(rows)],
        top_p=[[1.0, 0.9, 0.3, 0.99, 0.999][n % 5] for n in range(rows)],
        min_p=[[0.0, 0.05][n % 2] for n in range(rows)],
        seed=[n * 0x123456789ABCDEF & WORD for n in range(rows)],
        position=[n * 13 for n in range(rows)],
        num_logprobs=[[-1, 0, 3][n % 3] for n in range(rows)],
    )


def test_a_row_gives_the_same_bits_alone_and_in_a_batch() -> None:
    rows = 2 * ROWS_AT_ONCE + 5
    logits, how = logits_of(rows), mixed(rows)
    alone = [
        sample(logits[n : n + 1], Draws._make(values[n : n + 1] for values in how))
        for n in range(rows)
    ]
    assert sample(logits, how) == base.Sampled(*(b"".join(c) for c in zip(*alone, strict=True)))


def test_no_rows_give_nothing() -> None:
    assert sample(torch.empty(0, VOCAB), draws(0)) == base.Sampled(b"", b"", b"", b"", b"")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_no_number_is_flagged_and_others_are_not(bad: float) -> None:
    logits = logits_of(3)
    right = sample(logits, draws(3, num_logprobs=0))
    logits[1, 500] = bad
    got = sample(logits, draws(3, num_logprobs=0))
    assert list(got.flags) == [0, RowFlag.NUMERIC, 0]
    for before, after in ((right.ids, got.ids), (right.logprobs, got.logprobs)):
        assert (after[:4], after[8:]) == (before[:4], before[8:])
        assert after[4:8] == bytes(4)


def test_logprobs_are_of_the_model_and_the_best_come_in_order() -> None:
    logits = logits_of(2)
    logits[0, 10] = logits[0, 20] = 30.0  # equal ones by id
    sampled = sample(logits, draws(2, temperature=1.7, num_logprobs=4))
    right = logits.log_softmax(-1)
    top = list(base.read_ints(sampled.top_ids))
    assert top[:2] == [10, 20] and top[4:] == right[1].topk(4).indices.tolist()
    values = list(base.read_reals(sampled.top_logprobs))
    assert values == pytest.approx([float(right[n // 4, i]) for n, i in enumerate(top)], abs=1e-6)
    own = [float(right[n, i]) for n, i in enumerate(ids_of(sampled))]
    assert list(base.read_reals(sampled.logprobs)) == pytest.approx(own, abs=1e-6)


def test_bfloat16_logits_are_drawn_as_their_float32_values() -> None:
    logits = logits_of(8).bfloat16()
    assert sample(logits, mixed(8)) == sample(logits.float(), mixed(8))
