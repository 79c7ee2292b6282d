"""Sampling: a pure function of logits, parameters, seed and position; and the state of slots."""

import math

import pytest

from drivers import base
from drivers.base import LAST_SAMPLE, FaultKind, ints
from tests.helpers.device import Device
from tests.helpers.plans import Drawn, Part, step_ops

BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)
LENGTH = 20
SLOT = 7


class Again:
    """A filled sequence; `draw` samples after its last position as often as one likes."""

    def __init__(self, device: Device, seed: int = 1) -> None:
        self.device = device
        self.ids = device.prompt(LENGTH, seed)
        self.blocks = device.blocks_for(LENGTH + 8)
        device.prefill(self.ids, self.blocks)

    def part(self, **how: object) -> Part:
        last = Part(self.ids[-1:], LENGTH - 1, self.blocks, null_write=True)
        return last._replace(**how)  # type: ignore[arg-type]

    def draw(self, **how: object) -> Drawn:
        return self.device.step(self.part(**how))[0]


@pytest.fixture
def again(device: Device) -> Again:
    return Again(device)


@BOTH
def test_equal_seeds_draw_equal_ids_and_others_do_not(again: Again) -> None:
    def run() -> list[int]:
        return [again.draw(temperature=2.0, seed=seed).id for seed in range(12)]

    first = run()
    assert run() == first
    assert len(set(first)) > 2


def test_seeds_use_all_64_bits(again: Again) -> None:
    ids = [again.draw(temperature=2.0, seed=seed << 40 | 1 << 63).id for seed in range(12)]
    assert len(set(ids)) > 2


def test_the_position_is_part_of_the_noise(device: Device, again: Again) -> None:
    forward, sample = step_ops([again.part(temperature=2.0, seed=3)], device.block_size)
    ids = set()
    for position in range(100, 112):
        moved = sample._replace(position=ints([position]))
        ids.add(base.read_ints(device.submit(forward, moved).results[0].ids)[0])
    assert len(ids) > 2


def test_a_draw_does_not_depend_on_its_batch(device: Device) -> None:
    sequences = [Again(device, seed) for seed in range(5)]
    hows = [{"temperature": 0.5 + n, "seed": n, "top_k": 5 * n} for n in range(5)]
    alone = [s.draw(**how) for s, how in zip(sequences, hows, strict=True)]
    parts = [s.part(**how) for s, how in zip(sequences, hows, strict=True)]
    assert device.same(device.step(*parts), alone)
    assert device.same(device.step(*parts[::-1]), alone[::-1])


def test_one_candidate_is_greedy(again: Again) -> None:
    greedy = again.draw()
    for how in ({"top_k": 1}, {"top_p": 1e-6}, {"top_p": 0.0}, {"min_p": 1.0}):
        for seed in range(6):
            assert again.draw(temperature=1.5, seed=seed, **how).id == greedy.id


def test_top_k_draws_of_the_best_only(again: Again) -> None:
    best = [id for id, _ in again.draw(num_logprobs=4).top]
    drawn = {again.draw(temperature=50.0, seed=seed, top_k=4).id for seed in range(40)}
    assert len(drawn) > 1
    assert drawn <= set(best)


def test_logprobs(again: Again) -> None:
    greedy = again.draw(num_logprobs=5)
    assert len(greedy.top) == 5
    assert greedy.top[0] == (greedy.id, greedy.logprob)
    values = [value for _, value in greedy.top]
    assert values == sorted(values, reverse=True)
    assert len({id for id, _ in greedy.top}) == 5
    assert all(math.isfinite(value) and value <= 0 for value in values)
    assert sum(math.exp(value) for value in values) <= 1.0 + 1e-5
    drawn = again.draw(num_logprobs=5, temperature=9.0, seed=4)
    assert again.device.same([drawn._replace(id=0, logprob=0)], [greedy._replace(id=0, logprob=0)])
    assert [i for i, _ in drawn.top] == [i for i, _ in greedy.top], "of the model, not the draw"
    assert math.isfinite(drawn.logprob) and drawn.logprob <= greedy.logprob


def test_logprobs_are_per_row(device: Device) -> None:
    sequences = [Again(device, seed) for seed in range(4)]
    counts = [3, -1, 0, 1]
    rows = device.step(*(s.part(num_logprobs=n) for s, n in zip(sequences, counts, strict=True)))
    assert [len(row.top) for row in rows] == [3, 0, 0, 1]
    assert rows[1].logprob == 0.0
    assert rows[2].logprob < 0.0
    assert all(row.flags == 0 for row in rows)


def test_rows_need_not_be_last_tokens(device: Device) -> None:
    """Logits of several positions of one sequence (score)."""
    ids, blocks = device.prompt(LENGTH), device.blocks_for(LENGTH)
    expected = [device.prefill(ids[:n], device.blocks_for(n)) for n in (5, 11, LENGTH)]
    part = Part(ids, 0, blocks)
    forward, _ = step_ops([part], device.block_size)
    _, sample = step_ops([part] * 3, device.block_size)
    sampled = device.submit(
        forward._replace(logit_rows=ints([4, 10, LENGTH - 1])),
        sample._replace(rows=ints([0, 0, 0]), position=ints([5, 11, LENGTH])),
    ).results[0]
    assert list(base.read_ints(sampled.ids)) == [row.id for row in expected]


# --- state of slots ---------------------------------------------------------------------------


@BOTH
def test_last_sample_equals_sending_the_id(device: Device) -> None:
    ids, blocks = device.prompt(LENGTH), device.blocks_for(LENGTH + 6)
    expected = device.generate(ids, 6)
    got = [device.step(Part(ids, 0, blocks, slot=SLOT, generation=100))[0]]
    while len(got) < 6:
        part = Part([LAST_SAMPLE], LENGTH + len(got) - 1, blocks, slot=SLOT, generation=100)
        got += device.step(part)
    assert device.same(got, expected)


def test_last_samples_are_kept_per_slot(device: Device) -> None:
    prompts = [device.prompt(LENGTH, seed=n) for n in range(3)]
    expected = [device.generate(ids, 3) for ids in prompts]
    tables = [device.blocks_for(LENGTH + 3) for _ in prompts]
    slots = [9, 2, 5]
    runs = [
        [row]
        for row in device.step(
            *(Part(p, 0, t, slot=s) for p, t, s in zip(prompts, tables, slots, strict=True))
        )
    ]
    for extra in range(2):
        order = [2, 0, 1] if extra else [1, 2, 0]
        rows = device.step(
            *(Part([LAST_SAMPLE], LENGTH + extra, tables[n], slot=slots[n]) for n in order)
        )
        for n, row in zip(order, rows, strict=True):
            runs[n].append(row)
    assert all(device.same(run, want) for run, want in zip(runs, expected, strict=True))


def test_a_last_sample_that_is_not_there_is_lost_never_guessed(device: Device) -> None:
    ids, blocks = device.prompt(LENGTH), device.blocks_for(LENGTH + 2)
    device.step(Part(ids, 0, blocks, slot=SLOT, generation=200))
    before = device.checksums()
    for slot, generation in ((SLOT, 201), (SLOT, 199), (SLOT + 1, 200), (SLOT + 90, -1)):
        part = Part([LAST_SAMPLE], LENGTH, blocks, slot=slot, generation=generation)
        fault = device.refuse(*step_ops([part], device.block_size))
        assert (fault.kind, fault.items) == (FaultKind.SLOT_LOST, (slot,))
    assert device.checksums() == before
    device.step(Part([LAST_SAMPLE], LENGTH, blocks, slot=SLOT, generation=200))


def test_reset_rebuilds_a_slot(device: Device) -> None:
    ids, blocks = device.prompt(LENGTH), device.blocks_for(LENGTH + 6)
    expected = device.generate(ids, 2)
    first = device.prefill(ids, blocks)
    part = Part([LAST_SAMPLE], LENGTH, blocks, slot=SLOT, generation=301)
    reset = base.Reset(SLOT, 301, ints([*ids, first.id]))
    result = device.submit(reset, *step_ops([part], device.block_size)).results[0]
    assert base.read_ints(result.ids)[0] == expected[1].id
    device.submit(base.Reset(SLOT, 302, ints([*ids, first.id])))
    lost = device.refuse(*step_ops([part._replace(start=LENGTH + 1)], device.block_size))
    assert lost.kind == FaultKind.SLOT_LOST, "the generation before is gone"


def test_a_refused_submit_leaves_the_slots_alone(device: Device) -> None:
    ids, blocks = device.prompt(LENGTH), device.blocks_for(LENGTH + 2)
    expected = device.generate(ids, 2)
    device.step(Part(ids, 0, blocks, slot=SLOT, generation=400))
    device.refuse(base.Reset(SLOT, 400, ints([1, 2, 3])), base.Scrub(ints([1 << 20])))
    got = device.step(Part([LAST_SAMPLE], LENGTH, blocks, slot=SLOT, generation=400))
    assert device.same(got, expected[1:])
