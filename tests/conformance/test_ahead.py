"""Steps ahead: Submits that wait on COMPUTE name what one before them will have sampled."""

import pytest

from drivers import base
from drivers.base import LAST_SAMPLE
from tests.helpers.device import Device
from tests.helpers.plans import Drawn, Part, drawn, reset, step_ops

BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)
LENGTH = 20
COUNT = 14
"""Ids, so that the sequence goes over the end of a block."""


def answers(device: Device, submits: list[base.Submit]) -> list[base.Complete]:
    """Send all, then read: each is answered once, in order."""
    for submit in submits:
        device.rig.send(submit)
    found = []
    for submit in submits:
        complete = device.rig.receive()
        assert isinstance(complete, base.Complete), complete
        assert complete[:3] == (submit.epoch, submit.queue, submit.value)
        found.append(complete)
    return found


@BOTH
def test_what_is_queued_behind_a_step_goes_on_from_its_sample(device: Device) -> None:
    assert "steps_ahead" in device.ready.features
    prompts = [device.prompt(LENGTH, seed) for seed in (1, 2)]
    expected = [device.generate(ids, COUNT) for ids in prompts]
    tables = [device.blocks_for(LENGTH + COUNT) for _ in prompts]
    rounds = [[Part(p, 0, t, slot=n + 3) for n, (p, t) in enumerate(zip(prompts, tables))]]  # noqa: B905
    for extra in range(COUNT - 1):
        rounds.append([part._replace(tokens=[LAST_SAMPLE], start=LENGTH + extra)
                       for part in rounds[0]])  # fmt: skip
    submits = [device.next_submit(*step_ops(parts, device.block_size)) for parts in rounds]
    got: list[list[Drawn]] = [[], []]
    for parts, complete in zip(rounds, answers(device, submits), strict=True):
        for run, row in zip(got, drawn(complete.results[0], parts), strict=True):
            run.append(row)
    assert all(device.same(run, want) for run, want in zip(got, expected, strict=True))


def test_a_row_that_is_no_number_does_not_fault_the_step_behind_it(device: Device) -> None:
    """The kernel cannot know of it when it sends that one; the other sequence goes on."""
    ids, other = device.prompt(LENGTH, 1), device.prompt(LENGTH, 2)
    expected = device.generate(other, 2)
    tables = [device.blocks_for(LENGTH + 2) for _ in range(2)]
    first = [Part(ids, 0, tables[0], slot=4, adjust=True), Part(other, 0, tables[1], slot=5)]
    behind = [part._replace(tokens=[LAST_SAMPLE], start=LENGTH) for part in first]
    huge = reset(4, ids, num_prompt=0, repetition=1e-38)
    submits = [
        device.next_submit(huge, *step_ops(first, device.block_size)),
        device.next_submit(*step_ops(behind, device.block_size)),
    ]
    one, two = answers(device, submits)
    if device.bench.name != "null":  # its logits are whole numbers
        assert list(one.results[0].flags) == [base.RowFlag.NUMERIC, 0]
    got = [drawn(answer.results[0], first)[1] for answer in (one, two)]
    assert device.same(got, expected)
