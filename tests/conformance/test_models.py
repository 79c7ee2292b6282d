"""Several models in one driver: each has its own memory and slots, and an Unload gives it back."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from drivers import base
from drivers.base import FaultKind, ints
from tests.helpers.device import MAX_CTX, NUM_BLOCKS, Bench, Device, load_of, open_rig
from tests.helpers.plans import Drawn, Part, drawn, step_ops

BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)
SECOND = 5
LARGE = "random:layers=4,hidden=1024,heads=8,kv_heads=8,vocab=32000"


@pytest.fixture
def fresh(bench: Bench, transport: str, model_path: str) -> Iterator[Device]:
    """A driver of this test's own, with model 0."""
    device = Device(open_rig(bench, transport), bench, model_path)
    yield device
    device.rig.close()


def load(device: Device, path: str, number: int = SECOND, **fields: Any) -> Any:
    """Load another model; return the answer, Loaded or Fault."""
    device.rig.send(load_of(device.bench, path, model=number, **fields))
    while isinstance(answer := device.rig.receive(), base.Estimate | base.Progress):
        pass
    return answer


def submit(device: Device, number: int, *ops: Any) -> Any:
    return device.answer(device.next_submit(*ops)._replace(model=number))


def step(device: Device, number: int, *parts: Part) -> list[Drawn]:
    ops = [
        op._replace(model=number) if isinstance(op, base.Execute) else op
        for op in step_ops(parts, device.block_size)
    ]
    complete = submit(device, number, *ops)
    assert isinstance(complete, base.Complete), complete
    return drawn(complete.results[0], parts) if complete.results else []


@BOTH
def test_models_do_not_see_each_other(fresh: Device, model_path: str) -> None:
    """The same blocks, slots and generations, in turns: each gives what it gives alone."""
    alone = {n: fresh.generate(fresh.prompt(20, n), 12, list(range(1, 5))) for n in (1, 2)}
    assert isinstance(load(fresh, path=model_path), base.Loaded)
    ids = {0: fresh.prompt(20, 1), SECOND: fresh.prompt(20, 2)}
    out: dict[int, list[Drawn]] = {0: [], SECOND: []}
    for index in range(12):
        for number in (0, SECOND):
            new = [out[number][-1].id] if index else ids[number]
            start = len(ids[number]) + index - 1 if index else 0
            out[number] += step(fresh, number, Part(new, start, list(range(1, 5))))
    assert fresh.same(out[0], alone[1])
    assert fresh.same(out[SECOND], alone[2])


def test_a_last_sample_is_of_its_model(fresh: Device, model_path: str) -> None:
    load(fresh, model_path)
    first = step(fresh, 0, Part(fresh.prompt(4), 0, [1]))
    ops = list(step_ops([Part([base.LAST_SAMPLE], 4, [1])], fresh.block_size))
    other = [op._replace(model=SECOND) if isinstance(op, base.Execute) else op for op in ops]
    assert submit(fresh, SECOND, *other).kind == FaultKind.SLOT_LOST
    assert fresh.step(Part([base.LAST_SAMPLE], 4, [1])) == fresh.step(Part([first[0].id], 4, [1]))


@BOTH
def test_an_unloaded_model_is_not_there_and_its_number_is_free(
    fresh: Device, model_path: str
) -> None:
    load(fresh, model_path)
    step(fresh, SECOND, Part(fresh.prompt(4), 0, [1]))
    fresh.rig.send(base.Unload(SECOND))
    fresh.rig.send(base.Unload(77))  # it never was
    gone = submit(fresh, SECOND, base.Checksum(ints([1])))
    assert gone.kind == FaultKind.PLAN_INVALID and str(SECOND) in gone.message
    assert isinstance(load(fresh, model_path), base.Loaded)
    zero, used = submit(fresh, SECOND, base.Checksum(ints([1, 2]))).results[0]
    assert zero == used, "nothing of the model before is left"
    fresh.generate(fresh.prompt(5), 3)


def test_a_number_is_taken_once(fresh: Device, model_path: str) -> None:
    fault = load(fresh, model_path, number=0)
    assert (fault.kind, fault.value) == (FaultKind.MODEL_LOAD, 0)
    fresh.generate(fresh.prompt(5), 3)


def test_a_load_that_fails_leaves_the_others_alone(fresh: Device, model_path: str) -> None:
    want = fresh.generate(fresh.prompt(9), 5, [1])
    assert load(fresh, "/nowhere").kind == FaultKind.MODEL_LOAD
    assert load(fresh, model_path, num_blocks=1 << 30).kind == FaultKind.OOM
    assert fresh.same(fresh.generate(fresh.prompt(9), 5, [2]), want)
    assert isinstance(load(fresh, model_path), base.Loaded)


def test_models_of_different_sizes(fresh: Device, model_path: str) -> None:
    """Each is checked against its own limits."""
    small = load(fresh, model_path, num_blocks=4, max_ctx=32)
    assert (small.num_blocks, small.max_ctx) == (4, 32)
    assert submit(fresh, SECOND, base.Scrub(ints([4]))).kind == FaultKind.PLAN_INVALID
    fresh.submit(base.Scrub(ints([4, NUM_BLOCKS - 1])))
    assert fresh.loaded.max_ctx == MAX_CTX


def test_steps_go_on_while_a_model_is_loaded(bench: Bench, model_path: str) -> None:
    """Where the driver says so: Submits sent behind the Load are answered before it."""
    device = Device(open_rig(bench, "host"), bench, model_path)
    if "load_beside" not in device.ready.features:
        device.rig.close()
        pytest.skip("it loads first and steps then")
    want = device.generate(device.prompt(9), 8, [1])
    device.rig.send(load_of(bench, LARGE, model=SECOND))
    answers, drawn_before = Counter[str](), 0
    ids = [*device.prompt(9)]
    device.rig.send(step_of(device, ids, 0))
    out: list[int] = []
    while len(out) < 8 or not answers["Loaded"]:
        message = device.rig.receive()
        answers[type(message).__name__] += 1
        if isinstance(message, base.Loaded):
            drawn_before = len(out)
        if isinstance(message, base.Complete):
            out += base.read_ints(message.results[0].ids)
            if len(out) < 8:
                device.rig.send(step_of(device, out[-1:], len(ids) + len(out) - 1))
    assert out == [drawn.id for drawn in want]
    assert drawn_before == 8, "all of them came before the model was loaded"
    device.rig.close()


def step_of(device: Device, ids: list[int], start: int) -> base.Submit:
    return device.next_submit(*step_ops([Part(ids, start, [1, 2])], device.block_size))


def test_pools_are_counted_and_given_back(fresh: Device, model_path: str) -> None:
    one = fresh.stats().pool_bytes
    load(fresh, model_path)
    assert fresh.stats().pool_bytes == 2 * one
    fresh.rig.send(base.Unload(SECOND))
    assert fresh.stats().pool_bytes == one
