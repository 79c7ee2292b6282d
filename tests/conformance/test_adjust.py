"""Adjusted logits: what a Reset tells a slot, what a Sample makes of it, and when it is lost."""

from math import exp
from typing import Any

import pytest

from drivers import base, wire
from drivers.base import FaultKind, ints, reals
from tests.helpers.device import MAX_CTX, Device
from tests.helpers.plans import Drawn, Part, drawn, reset, step_ops

BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)
LENGTH = 20
SLOT = 7


class Row:
    """A filled sequence; `draw` sends a Reset and samples after its last position."""

    def __init__(self, device: Device, seed: int = 1) -> None:
        self.device = device
        self.ids = device.prompt(LENGTH, seed)
        self.blocks = device.blocks_for(LENGTH + 8)
        device.prefill(self.ids, self.blocks)
        self.plain = self.draw(adjust=False, num_logprobs=5)
        self.best = [token for token, _ in self.plain.top]
        self.logits = [logit for _, logit in self.plain.top]

    def part(self, **how: Any) -> Part:
        last = Part(self.ids[-1:], LENGTH - 1, self.blocks, slot=SLOT, null_write=True, adjust=True)
        return last._replace(**how)

    def draw(self, *resets: base.Reset, **how: Any) -> Drawn:
        parts = [self.part(**how)]
        ops = step_ops(parts, self.device.block_size)
        return drawn(self.device.submit(*resets, *ops).results[0], parts)[0]

    def counted(self, ids: list[int] | None = None, **how: Any) -> base.Reset:
        """Return a Reset that counts the sequence, as output unless it is said otherwise."""
        return reset(SLOT, self.ids if ids is None else ids, **{"num_prompt": 0, **how})


@pytest.fixture
def row(device: Device) -> Row:
    return Row(device)


def test_features_are_named(device: Device) -> None:
    assert {"penalties", "bias", "score"} <= set(device.ready.features)
    assert (device.ready.major, device.ready.minor) >= (1, 1)


# --- what it does -----------------------------------------------------------------------------


@BOTH
def test_a_bias_moves_the_greedy_id_exactly_where_it_says(row: Row) -> None:
    gap = row.logits[0] - row.logits[3]
    for bias, winner in ((gap - 0.01, 0), (gap + 0.01, 3)):
        assert row.draw(reset(SLOT, [1], bias={row.best[3]: bias})).id == row.best[winner]
    assert (
        row.draw(reset(SLOT, [1], bias={row.best[0]: -100.0, row.best[1]: -100.0})).id
        == (row.best[2])
    )


def test_a_bias_of_minus_100_is_no_ban(row: Row) -> None:
    """At temperature 100 it costs a factor e."""
    others = dict.fromkeys(row.best[:4], -100.0)
    op = reset(SLOT, [1], bias=others)
    seen = {row.draw(op, temperature=100.0, seed=seed, top_k=300).id for seed in range(300)}
    assert seen & set(others), "still drawn"
    cold = {row.draw(op, temperature=0.5, seed=seed, top_k=20).id for seed in range(50)}
    assert not cold & set(others)


def test_logprobs_are_those_of_the_model(row: Row) -> None:
    moved = row.draw(reset(SLOT, [1], bias={row.best[2]: 60.0}), num_logprobs=5)
    assert (moved.id, moved.logprob) == (row.best[2], row.logits[2])
    assert moved.top == row.plain.top


def test_presence_and_frequency_move_exactly_what_they_say(row: Row) -> None:
    best, second = row.best[:2]
    gap = row.logits[0] - row.logits[1]
    filler = [t for t in range(50) if t not in row.best]
    for times in (1, 2, 5):
        ids = ([best] * times + filler)[:LENGTH]
        for extra, winner in ((-0.01, best), (0.01, second)):
            assert row.draw(row.counted(ids, presence=gap + extra)).id == winner
            share = (gap + extra) / times
            assert row.draw(row.counted(ids, frequency=share)).id == winner
            both = row.counted(ids, presence=gap / 2, frequency=(gap / 2 + extra) / times)
            assert row.draw(both).id == winner


def test_the_prompt_is_not_output(row: Row) -> None:
    best, filler = row.best[0], [t for t in range(50) if t not in row.best]
    ids = [best, *filler][:LENGTH]
    for num_prompt, winner in ((0, row.best[1]), (1, best), (LENGTH, best)):
        op = row.counted(ids, num_prompt=num_prompt, presence=row.logits[0] - row.logits[1] + 0.01)
        assert row.draw(op).id == winner


def test_repetition_is_of_prompt_and_output(row: Row) -> None:
    """Strong enough, no id that is there wins again; below 1, one of those does."""
    filler = [t for t in range(60) if t not in row.best]
    for num_prompt in (0, 2, LENGTH):
        ids = [*row.best[:2], *filler][:LENGTH]
        assert row.draw(row.counted(ids, num_prompt=num_prompt, repetition=1e6)).id != row.best[0]
        worst = [*filler][:LENGTH]
        again = row.draw(row.counted(worst, num_prompt=num_prompt, repetition=1e-6)).id
        assert again in worst or row.logits[0] > 0


def test_neutral_adjustments_change_nothing(row: Row) -> None:
    for how in ({}, {"temperature": 2.0, "seed": 5}, {"temperature": 9.0, "seed": 6, "top_k": 40}):
        plain = row.draw(adjust=False, **how)
        assert row.draw(row.counted(), **how) == plain
        assert row.draw(reset(SLOT, [1], bias={3: 0.0}), **how) == plain


def test_rows_of_a_batch_do_not_see_each_other(device: Device) -> None:
    rows = [Row(device, seed) for seed in range(6)]
    hows: list[dict[str, Any]] = [
        {"adjust": False}, {"temperature": 3.0, "seed": 4}, {"top_k": 30, "temperature": 5.0},
        {"adjust": False, "temperature": 2.0}, {}, {"temperature": 1.5, "seed": 2**63},
    ]  # fmt: skip
    ops = [
        None, rows[1].counted(presence=2.0, repetition=1.5), rows[2].counted(frequency=-1.5),
        None, reset(SLOT, [1], bias={rows[4].best[4]: 30.0}),
        rows[5].counted(repetition=0.5, bias={5: 8.0}),
    ]  # fmt: skip
    alone = [
        r.draw(*([op] if op else []), **how) for r, op, how in zip(rows, ops, hows, strict=True)
    ]
    parts = [r.part(slot=n, **how) for n, (r, how) in enumerate(zip(rows, hows, strict=True))]
    resets = [op._replace(slot=n) for n, op in enumerate(ops) if op]
    sampled = device.submit(*resets, *step_ops(parts, device.block_size)).results[0]
    assert device.same(drawn(sampled, parts), alone)


# --- counting goes on -------------------------------------------------------------------------


@BOTH
def test_drawn_ids_are_counted(device: Device) -> None:
    """Going on from the slot's own counts equals telling them again before each draw."""
    ids = device.prompt(LENGTH, seed=8)
    how: dict[str, Any] = {"num_prompt": LENGTH, "presence": 3.0, "frequency": 2.0, "repetition": 2}
    runs: list[list[int]] = []
    for again in (False, True):
        blocks, seen = device.blocks_for(LENGTH + 12), list(ids)
        for n in range(12):
            tokens, start = (ids, 0) if n == 0 else (seen[-1:], len(seen) - 1)
            part = Part(tokens, start, blocks, slot=SLOT, adjust=True, temperature=0.5, seed=4)
            op = reset(SLOT, seen, **{**how, "repetition": 2.0})
            told = [op] if again or n == 0 else []
            sampled = device.submit(*told, *step_ops([part], device.block_size)).results[0]
            seen.append(base.read_ints(sampled.ids)[0])
        runs.append(seen)
    assert runs[0] == runs[1]


def test_long_sequences_come_in_parts(device: Device, row: Row) -> None:
    best, filler = row.best[0], [t for t in range(50) if t not in row.best]
    ids = ([best] * 3 + filler)[:LENGTH]
    gap = row.logits[0] - row.logits[1]
    whole = row.counted(ids, num_prompt=1, frequency=gap / 2 + 0.01)
    for cuts in ([1], [2], [3, 7], [1, 2, 3, 19]):
        edges = [*cuts, LENGTH]
        parts = [whole._replace(ids=ints(ids[: cuts[0]]))]
        parts += [
            base.Reset(SLOT, 1, ints(ids[a:b]), a) for a, b in zip(cuts, edges[1:], strict=True)
        ]
        device.submit(*parts[:1])
        assert row.draw(*parts[1:]).id == row.best[1], "two of three are output"
    device.submit(row.counted(ids, num_prompt=2, frequency=gap / 2 + 0.01)._replace(ids=ints(ids)))
    assert row.draw().id == best, "one of three is"


def test_a_reset_begins_anew(row: Row) -> None:
    best = row.best[0]
    gap = row.logits[0] - row.logits[1]
    filler = [t for t in range(50) if t not in row.best]
    row.draw(row.counted([best] * LENGTH, presence=gap + 0.01))
    assert row.draw(row.counted(filler[:LENGTH], presence=gap + 0.01)).id == best
    row.draw(reset(SLOT, [1], bias={row.best[1]: 50.0}))
    assert row.draw(row.counted(presence=0.001)).id == best, "the bias is gone, too"


# --- what is lost -----------------------------------------------------------------------------


def lost(row: Row, *resets: base.Reset, **how: Any) -> base.Fault:
    ops = step_ops([row.part(**how)], row.device.block_size)
    fault = row.device.refuse(*resets, *ops)
    assert (fault.kind, fault.items) == (FaultKind.SLOT_LOST, (how.get("slot", SLOT),))
    return fault


def test_what_is_not_there_is_lost_never_guessed(row: Row) -> None:
    row.device.submit(reset(SLOT, [1]))
    lost(row)  # a Reset that says nothing of adjustments
    row.device.submit(row.counted())
    lost(row, generation=2)
    lost(row, slot=SLOT + 1)
    lost(row, row.counted(row.ids[:-1]))  # one id too few
    lost(row, row.counted([*row.ids, 3]))
    row.draw()  # and none of that has touched it


def test_counts_that_missed_an_id_are_lost(row: Row) -> None:
    """The slot draws for another position without being told: it is behind from then on."""
    row.draw(row.counted())
    lost(row)  # that draw was counted, and the position is now that of the next id
    row.draw(adjust=False)
    lost(row)
    row.draw(row.counted())


def test_parts_that_do_not_join_are_lost(row: Row) -> None:
    device = row.device
    device.submit(row.counted(row.ids[:5]))
    for start, generation in ((4, 1), (6, 1), (5, 2)):
        fault = device.refuse(base.Reset(SLOT, generation, ints([1]), start))
        assert (fault.kind, fault.items) == (FaultKind.SLOT_LOST, (SLOT,))
    fault = device.refuse(base.Reset(SLOT + 1, 1, ints([1]), 5))
    assert fault.kind == FaultKind.SLOT_LOST
    row.draw(base.Reset(SLOT, 1, ints(row.ids[5:]), 5))


REFUSED: dict[str, dict[str, Any]] = {
    "repetition zero": {"repetition": 0.0},
    "repetition negative": {"repetition": -1.0},
    "repetition not finite": {"repetition": float("nan")},
    "presence not finite": {"presence": float("inf")},
    "frequency not finite": {"frequency": float("-inf")},
    "penalties without counts": {"num_prompt": -1, "presence": 1.0},
    "bias not finite": {"bias": {3: float("nan")}},
    "bias of no id": {"bias": {-1: 1.0}},
    "bias beyond the vocabulary": {"bias": {1 << 20: 1.0}},
    "start negative": {"start": -1},
    "beyond max_ctx": {"start": MAX_CTX},
    "goes on with penalties": {"start": 20, "presence": 1.0},
    "goes on with a bias": {"start": 20, "num_prompt": -1, "bias": {1: 1.0}},
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_resets(row: Row, case: str) -> None:
    row.device.submit(row.counted())
    fault = row.device.refuse(row.counted(**REFUSED[case]))
    assert fault.kind == FaultKind.PLAN_INVALID
    row.draw()  # the slot is as it was


def test_refused_biases_and_rows(row: Row) -> None:
    device, op = row.device, row.counted()
    refused = [
        op._replace(bias_ids=ints([1, 1]), bias=reals([1, 1])),
        op._replace(bias_ids=ints([1, 2]), bias=reals([1])),
        op._replace(bias_ids=ints([1])[:3], bias=reals([1])),
        op._replace(bias_ids=ints(range(301)), bias=reals([0.5] * 301)),
    ]
    for bad in refused:
        assert device.refuse(bad).kind == FaultKind.PLAN_INVALID
    forward, sample = step_ops([row.part()], device.block_size)
    for adjust in (ints([2]), ints([-1]), ints([1, 1]), ints([1])[:3]):
        fault = device.refuse(op, forward, sample._replace(adjust=adjust))
        assert fault.kind == FaultKind.PLAN_INVALID
    twice = [values * 2 for values in sample[:-1]]
    rows = ints([0, 0])
    fault = device.refuse(op, forward._replace(logit_rows=rows), base.Sample(*twice, ints([1, 1])))
    assert fault.kind == FaultKind.PLAN_INVALID, "which of the two is counted first?"


def test_a_refused_submit_leaves_the_counts_alone(row: Row) -> None:
    device = row.device
    device.submit(row.counted())
    device.refuse(row.counted([5] * 9), base.Scrub(ints([1 << 20])))
    device.refuse(*step_ops([row.part()], device.block_size), base.Scrub(ints([1 << 20])))
    row.draw()


def test_a_reset_of_any_context_fits_in_messages() -> None:
    ids = (wire.MAX_MESSAGE - 4096) // 4
    largest = reset(1, [1 << 30] * ids, num_prompt=1, bias=dict.fromkeys(range(300), 1.0))
    submit = base.Submit(1 << 40, 0, 1 << 40, (), 0, (largest,))
    assert len(wire.encode(submit)) <= wire.MAX_MESSAGE
    assert exp(-100) > 0
