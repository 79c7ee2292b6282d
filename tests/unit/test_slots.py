"""What a driver remembers of sequences: counts against counting, and rows of logits by hand."""

from collections import Counter
from random import Random
from typing import Any

import pytest
import torch

from drivers import base, slots
from drivers.base import RowFlag, ints
from drivers.sampling import ROWS_AT_ONCE, adjust, sample
from drivers.slots import COUNT_BYTES, Adjust, Counts
from tests.helpers.draws import VOCAB, draws, ids_of, logits_of
from tests.helpers.plans import reset


@pytest.mark.parametrize("seed", range(6))
def test_counts_are_those_of_counting(seed: int) -> None:
    """In parts of any size, one by one, across the border of prompt and output."""
    random = Random(seed)
    ids = [random.randrange(60) for _ in range(400)]
    num_prompt = random.choice([0, 1, 150, 399, 400, 1000])
    counts, done = Counts(num_prompt), 0
    while done < len(ids):
        part = ids[done : done + random.choice([1, 1, 2, 30, 170])]
        counts.add(part)
        done += len(part)
        output = Counter(ids[num_prompt:done])
        assert counts.length == done
        assert list(counts.ids) == sorted(set(ids[:done]))
        assert list(counts.output) == [output[token] for token in counts.ids]


def test_a_copy_is_its_own() -> None:
    known: dict[int, slots.Slot] = {}
    op = reset(3, [1, 2, 2], num_prompt=1, presence=1.0, bias={5: 2.0})
    slots.reset(known, op, base.read_ints(op.ids))
    before = slots.copy(known)
    slots.drew(known, 3, 1, 3, 9)
    old, new = before[3].adjust, known[3].adjust
    assert old is not None and new is not None and old.counts and new.counts
    assert (list(old.counts.ids), list(new.counts.ids)) == ([1, 2], [1, 2, 9])
    assert (before[3].last, known[3].last) == (2, 9)
    assert new.bias_ids is old.bias_ids


def test_a_slot_takes_what_admission_counts() -> None:
    counts = Counts(0)
    counts.add(range(5000))
    assert counts.ids.itemsize + counts.output.itemsize == COUNT_BYTES
    assert len(counts.ids) == len(counts.output) == 5000


def test_a_draw_that_was_not_told_of_ends_the_adjustments() -> None:
    known: dict[int, slots.Slot] = {}
    for generation, position in ((1, 4), (1, 2), (2, 3)):
        op = reset(0, [1, 2, 2], num_prompt=0)
        slots.reset(known, op, base.read_ints(op.ids))
        slots.drew(known, 0, generation, position, 7)
        assert known[0] == slots.Slot(generation, 7, None)


# --- rows of logits ---------------------------------------------------------------------------


def how(**fields: Any) -> Adjust:
    """Return adjustments; `ids` are counted, `num_prompt` of them as prompt."""
    ids, bias = fields.pop("ids", None), fields.pop("bias", {})
    counts = None
    if ids is not None:
        counts = Counts(fields.pop("num_prompt", 0))
        counts.add(ids)
    values = {"repetition": 1.0, "presence": 0.0, "frequency": 0.0, **fields}
    raw = base.read_ints(ints(bias)), base.read_reals(base.reals(bias.values()))
    return Adjust(*values.values(), *raw, counts)


ROW = [2.0, -2.0, 4.0, 0.0, -8.0, 1.0]
CASES: dict[str, tuple[Adjust, list[float]]] = {
    "nothing": (how(ids=[0, 1]), ROW),
    "bias": (how(bias={0: -3.0, 4: 100.0}), [-1.0, -2.0, 4.0, 0.0, 92.0, 1.0]),
    "repetition above and below 0": (
        how(ids=[0, 1, 1, 3], repetition=2.0), [1.0, -4.0, 4.0, 0.0, -8.0, 1.0],
    ),
    "repetition of the prompt": (
        how(ids=[0, 1], num_prompt=9, repetition=2.0), [1.0, -4.0, 4.0, 0.0, -8.0, 1.0],
    ),
    "presence once": (how(ids=[2, 2, 2, 5], presence=1.5), [2.0, -2.0, 2.5, 0.0, -8.0, -0.5]),
    "frequency each time": (how(ids=[2, 2, 2, 5], frequency=0.5), [2, -2, 2.5, 0, -8, 0.5]),
    "of the output only": (
        how(ids=[2, 2, 2, 5], num_prompt=2, presence=1.0, frequency=0.5), [2, -2, 2.5, 0, -8, -0.5],
    ),
    "negative ones reward": (how(ids=[3], presence=-1.0, frequency=-0.5), [2, -2, 4, 1.5, -8, 1]),
    # 2 - 4 = -2 by the bias, so it is multiplied: -4; then 1 + 0.5 less
    "in this order": (
        how(ids=[0], bias={0: -4.0}, repetition=2.0, presence=1.0, frequency=0.5),
        [-5.5, -2.0, 4.0, 0.0, -8.0, 1.0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_adjusted_by_hand(case: str) -> None:
    given, expected = CASES[case]
    row = torch.tensor([ROW, ROW])
    got = adjust(row, [given, None])
    assert got.tolist() == [expected, ROW]
    assert row.tolist() == [ROW, ROW], "the model's logits are as they were"


def test_adjusted_rows_give_the_same_bits_alone_and_in_a_batch() -> None:
    random, rows = Random(3), 2 * ROWS_AT_ONCE + 3
    logits = logits_of(rows)
    adjusts = [
        how(
            ids=[random.randrange(VOCAB) for _ in range(300)], num_prompt=100, repetition=1.3,
            presence=0.7, frequency=0.3, bias={random.randrange(VOCAB): 5.0},
        ) if n % 3 else None
        for n in range(rows)
    ]  # fmt: skip
    drawn = draws(rows, temperature=1.5, seed=list(range(rows)), num_logprobs=2, top_p=0.9)
    whole = sample(logits, drawn, adjusts)
    alone = [
        sample(logits[n : n + 1], drawn._make(v[n : n + 1] for v in drawn), adjusts[n : n + 1])
        for n in range(rows)
    ]
    assert whole == base.Sampled(*(b"".join(c) for c in zip(*alone, strict=True)))
    plain = sample(logits, drawn)
    assert whole.top_logprobs == plain.top_logprobs and whole.ids != plain.ids
    for n in range(0, rows, 3):
        assert ids_of(whole)[n] == ids_of(plain)[n]


def test_what_adjusting_makes_no_number_is_flagged() -> None:
    logits = torch.tensor([[1e38, 3e38, 0.0], [1.0, 2.0, 3.0]])
    adjusts = [how(ids=[1], repetition=1e-3), how(bias={0: 9.0})]
    sampled = sample(logits, draws(2, temperature=1.0), adjusts)
    assert list(sampled.flags) == [RowFlag.NUMERIC, 0]
