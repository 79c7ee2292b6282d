"""Score: the log-probabilities of given ids, of any rows of a step, beside samples."""

from typing import Any

import pytest

from drivers import base
from drivers.base import FaultKind, ints
from tests.helpers.device import Device
from tests.helpers.plans import Part, drawn, step_ops

BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)
LENGTH = 45


def score(rows: list[int], ids: list[int], top: int = 0) -> base.Score:
    return base.Score(ints(rows), ints(ids), ints([top] * len(rows)))


def forward(device: Device, part: Part) -> base.Execute:
    execute: base.Execute = step_ops([part._replace(draws=False)], device.block_size)[0]
    return execute


def alone(device: Device, ids: list[int]) -> list[float]:
    """Return the log-probability of each id from the second on, each by a prefill of its own."""
    values = []
    for length in range(1, len(ids)):
        blocks = device.blocks_for(length)
        part = Part(ids[:length], 0, blocks)
        scored = device.submit(forward(device, part), score([length - 1], [ids[length]])).results[0]
        values.append(base.read_reals(scored.logprobs)[0])
        device.renew()
    return values


@BOTH
def test_a_score_of_all_positions_equals_each_alone(device: Device) -> None:
    ids = device.prompt(24)
    expected = alone(device, ids)
    part = Part(ids, 0, device.blocks_for(24))
    scored = device.submit(forward(device, part), score(list(range(23)), ids[1:], 3)).results[0]
    assert isinstance(scored, base.Scored)
    got = list(base.read_reals(scored.logprobs))
    tolerance = device.bench.tolerance
    assert all(abs(a - b) <= tolerance for a, b in zip(got, expected, strict=True))
    assert list(scored.flags) == [0] * 23
    top, values = base.read_ints(scored.top_ids), base.read_reals(scored.top_logprobs)
    assert len(top) == len(values) == 3 * 23
    for n in range(23):
        best = dict(zip(top[3 * n : 3 * n + 3], values[3 * n : 3 * n + 3], strict=True))
        assert got[n] <= max(best.values())
        assert ids[n + 1] not in best or best[ids[n + 1]] == got[n]


def test_it_agrees_with_the_logprobs_of_samples(device: Device) -> None:
    ids, blocks = device.prompt(LENGTH), device.blocks_for(LENGTH)
    sampled = device.prefill(ids, blocks)
    again = Part(ids[-1:], LENGTH - 1, blocks, null_write=True)
    scored = device.submit(forward(device, again), score([0], [sampled.id])).results[0]
    assert base.read_reals(scored.logprobs)[0] == sampled.logprob


@pytest.mark.parametrize("order", ["sample first", "score first"])
def test_beside_samples_each_has_its_own_rows(device: Device, order: str) -> None:
    """Rows of the two are mixed in the step; neither reads the other's."""
    prompts = [device.prompt(length, seed=length) for length in (9, 20, 33)]
    want = [device.prefill(ids, device.blocks_for(len(ids))) for ids in prompts]
    scores = alone(device, prompts[1])
    tables = [device.blocks_for(len(ids)) for ids in prompts]
    parts = [
        Part(ids, 0, table, draws=n != 1)
        for n, (ids, table) in enumerate(zip(prompts, tables, strict=True))
    ]
    execute, sample = step_ops(parts, device.block_size)
    given = score(list(range(9, 28)), prompts[1][1:])
    ops = (sample, given) if order == "sample first" else (given, sample)
    results = device.submit(execute, *ops).results
    sampled, scored = results if order == "sample first" else results[::-1]
    assert device.same(drawn(sampled, parts), [want[0], want[2]])
    tolerance = device.bench.tolerance
    got = base.read_reals(scored.logprobs)
    assert all(abs(a - b) <= tolerance for a, b in zip(got, scores, strict=True))


def test_computed_positions_again_through_the_null_block(device: Device) -> None:
    """Several at once, and nothing real is written."""
    ids, blocks = device.prompt(LENGTH), device.blocks_for(LENGTH)
    whole = Part(ids, 0, blocks)
    scored = device.submit(forward(device, whole), score(list(range(44)), ids[1:])).results[0]
    right = list(base.read_reals(scored.logprobs))
    before = device.checksums()
    for first, end in ((0, 44), (10, 40), (43, 44), (15, 17)):
        again = Part(ids[first:end], first, blocks, null_write=True)
        rows = list(range(end - first))
        scored = device.submit(
            forward(device, again), score(rows, ids[first + 1 : end + 1])
        ).results[0]
        got = list(base.read_reals(scored.logprobs))
        tolerance = device.bench.tolerance
        assert all(abs(a - b) <= tolerance for a, b in zip(got, right[first:end], strict=True))
    assert device.checksums() == before


def test_another_id_or_another_past_scores_otherwise(device: Device) -> None:
    ids, blocks = device.prompt(LENGTH), device.blocks_for(LENGTH)
    part = Part(ids, 0, blocks)
    row = LENGTH - 1
    values = {}
    for token in range(12):
        scored = device.submit(forward(device, part), score([row], [token])).results[0]
        values[token] = base.read_reals(scored.logprobs)[0]
    assert len(set(values.values())) == 12
    other = Part([*ids[:3], (ids[3] + 1) % device.loaded.vocab, *ids[4:]], 0, blocks)
    scored = device.submit(forward(device, other), score([row], [5])).results[0]
    assert base.read_reals(scored.logprobs)[0] != values[5]


def test_as_many_rows_as_the_device_says(device: Device) -> None:
    most = device.loaded.max_logit_rows
    assert most >= device.loaded.max_seqs, "all sequences of a step may sample"
    ids = device.prompt(250)
    parts = [Part(ids, 0, device.blocks_for(250), draws=False) for _ in range(2)]
    execute = step_ops(parts, device.block_size)[0]
    rows = list(range(most))
    scored = device.submit(execute, score(rows, (ids * 2)[:most])).results[0]
    assert len(scored.flags) == most
    fault = device.refuse(execute, score([*rows, most], (ids * 2)[: most + 1]))
    assert fault.kind == FaultKind.PLAN_INVALID and str(most) in fault.message
    _, sample = step_ops([parts[0]._replace(draws=True)], device.block_size)
    both = device.refuse(execute._replace(logit_rows=ints([9])), sample, score(rows, [1] * most))
    assert both.kind == FaultKind.PLAN_INVALID and str(most + 1) in both.message


def test_refused(device: Device) -> None:
    ids, blocks = device.prompt(20), device.blocks_for(20)
    execute = forward(device, Part(ids, 0, blocks))
    vocab = device.loaded.vocab
    good = score([3, 9], [1, 2])
    refused: list[tuple[Any, ...]] = [
        (good,),
        (execute, good, good),
        (execute, score([20], [1])),
        (execute, score([-1], [1])),
        (execute, score([9, 3], [1, 2])),
        (execute, score([3, 3], [1, 2])),
        (execute, score([3], [vocab])),
        (execute, score([3], [-1])),
        (execute, score([3], [1], -1)),
        (execute, score([3], [1], base.MAX_LOGPROBS + 1)),
        (execute, good._replace(ids=ints([1]))),
        (execute, good._replace(num_logprobs=ints([0]))),
        (execute, good._replace(rows=good.rows[:-1])),
    ]
    before = device.checksums()
    for ops in refused:
        assert device.refuse(*ops).kind == FaultKind.PLAN_INVALID, ops[1:]
    wrong = device.refuse(execute, good, queue=base.Queue.COPY_OUT)
    assert wrong.kind == FaultKind.PLAN_INVALID
    assert device.checksums() == before
    assert len(device.submit(execute, good).results[0].flags) == 2
    assert device.submit(execute, score([], [])).results[0].flags == b""
