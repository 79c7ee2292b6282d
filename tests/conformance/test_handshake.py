"""Greeting and loading: what is refused, with which fault, and what the answers say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivers import base, registry, wire
from drivers.base import FaultKind
from tests.helpers.device import NUM_BLOCKS, Bench, Device, hello, load_of, open_rig
from tests.helpers.rig import Rig

BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)


@pytest.fixture
def rig(bench: Bench, transport: str) -> Iterator[Rig]:
    """A driver that nobody has greeted yet."""
    opened = open_rig(bench, transport)
    yield opened
    opened.close()


def refused(rig: Rig, message: object, kind: FaultKind) -> base.Fault:
    rig.send(message)
    fault = rig.receive()
    while isinstance(fault, base.Estimate | base.Progress):
        fault = rig.receive()
    assert isinstance(fault, base.Fault), fault
    assert (fault.kind, fault.value) == (kind, 0)
    assert fault.message
    return fault


@BOTH
@pytest.mark.parametrize("wrong", [{"major": base.ABI[0] + 1}, {"schema": "0" * 32}])
def test_another_abi_is_refused_and_the_right_one_still_taken(
    rig: Rig, wrong: dict[str, Any]
) -> None:
    refused(rig, hello()._replace(**wrong), FaultKind.UNSUPPORTED)
    rig.send(hello(epoch=8))
    assert rig.receive().epoch == 8


def test_a_newer_minor_version_is_no_obstacle(rig: Rig) -> None:
    rig.send(hello()._replace(minor=base.ABI[1] + 1))
    assert isinstance(rig.receive(), base.Ready)


@BOTH
def test_ready_says_what_it_is(device: Device, bench: Bench) -> None:
    ready = device.ready
    assert (ready.major, ready.minor, ready.schema) == (*base.ABI, wire.schema())
    assert (ready.driver, ready.device) == (bench.name, bench.device)
    assert bench.dtype in ready.dtypes
    assert 0 <= ready.mem_free <= ready.mem_total
    assert {"copy_d2d", "export", "import", "checksum", "scrub", "sample"} <= set(ready.features)
    assert ready.energy_source in ("nvml", "rapl", "estimate", "none")


def test_loaded_keeps_what_the_estimate_promised(device: Device) -> None:
    loaded, estimate = device.loaded, device.estimate
    assert loaded.num_blocks == estimate.num_blocks == NUM_BLOCKS
    assert loaded.num_host_blocks == device.bench.host_blocks
    assert loaded.block_bytes == estimate.block_bytes > 0
    assert loaded.weights_bytes <= estimate.weights_bytes
    assert loaded.max_ctx <= loaded.max_block_refs * loaded.block_size
    assert loaded.max_seqs <= loaded.max_tokens
    assert all(0 <= eos < loaded.vocab for eos in loaded.eos_ids)


def test_the_largest_plan_fits_into_a_message(device: Device) -> None:
    """With an eighth to spare for the copies and scrubs that ride along."""
    limits = device.loaded
    plan = 4 * (3 * limits.max_tokens + limits.max_block_refs)
    per_sequence = 4 * (2 + 3 + 1) + 4 * 9
    assert plan + limits.max_seqs * per_sequence <= wire.MAX_MESSAGE * 7 // 8


def test_canonical_blocks_have_the_size_that_their_groups_say(device: Device) -> None:
    width = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
    total = sum(
        g.layers * 2 * device.block_size * g.kv_heads * g.head_dim * width[g.dtype]
        for g in device.loaded.kv_groups
    )
    assert total == device.loaded.block_bytes


def test_a_budget_in_bytes_gives_as_many_blocks_as_fit(
    rig: Rig, bench: Bench, model_path: str, device: Device
) -> None:
    size = device.loaded.block_bytes
    rig.send(hello(device=bench.device))
    rig.receive()
    rig.send(load_of(bench, model_path, num_blocks=0, kv_bytes=10 * size + size - 1))
    answers = [rig.receive()]
    while not isinstance(answers[-1], base.Loaded | base.Fault):
        answers.append(rig.receive())
    assert isinstance(answers[-1], base.Loaded)
    assert answers[-1].num_blocks == 10
    assert any(isinstance(answer, base.Estimate) for answer in answers)


@BOTH
def test_what_cannot_be_loaded_is_refused_with_the_numbers(
    rig: Rig, bench: Bench, model_path: str, tmp_path: Path
) -> None:
    rig.send(hello(device=bench.device))
    assert isinstance(rig.receive(), base.Ready)
    refused(rig, load_of(bench, str(tmp_path / "nothing")), FaultKind.MODEL_LOAD)
    huge = 1 << 30
    fault = refused(rig, load_of(bench, model_path, num_blocks=huge), FaultKind.OOM)
    assert any(ch.isdigit() for ch in fault.message)
    # Nothing of that is left: the right Load works.
    rig.send(load_of(bench, model_path))
    answer = rig.receive()
    while isinstance(answer, base.Estimate | base.Progress):
        answer = rig.receive()
    assert isinstance(answer, base.Loaded), answer


@pytest.mark.parametrize("wish", [{"num_host_blocks": 8}, {"kv_dtype": "float8"}], ids=str)
def test_what_a_device_does_not_have_is_not_loaded_without_it(
    rig: Rig, bench: Bench, model_path: str, wish: dict[str, Any]
) -> None:
    if "num_host_blocks" in wish and bench.host_blocks:
        wish = {"kv_dtype": "float8"}
    rig.send(hello(device=bench.device))
    rig.receive()
    refused(rig, load_of(bench, model_path, **wish), FaultKind.UNSUPPORTED)


def test_a_second_model_is_refused_until_the_first_is_unloaded(
    rig: Rig, bench: Bench, model_path: str
) -> None:
    def load() -> object:
        rig.send(load_of(bench, model_path))
        answer = rig.receive()
        while isinstance(answer, base.Estimate | base.Progress):
            answer = rig.receive()
        return answer

    rig.send(hello(device=bench.device))
    rig.receive()
    assert isinstance(load(), base.Loaded)
    assert isinstance(load(), base.Fault)
    rig.send(base.Unload(0))
    assert isinstance(load(), base.Loaded)


def test_a_submit_without_a_model_is_refused(rig: Rig, bench: Bench) -> None:
    rig.send(hello(epoch=1, device=bench.device))
    rig.receive()
    rig.send(base.Submit(1, 0, 1, (), 0, (base.Scrub(base.ints([1])),)))
    fault = rig.receive()
    assert (fault.kind, fault.value) == (FaultKind.PLAN_INVALID, 1)


@pytest.mark.parametrize("options", ["speed=9", "vocab=", "vocab=x", "vocab=0", "step_us=-1"])
def test_unknown_options_of_the_null_model_are_refused(options: str) -> None:
    driver = registry.open_driver("null0", lambda message: None, memoryview(bytearray(64)), -1)
    driver.hello(hello())
    with pytest.raises(base.DriverFault) as caught:
        driver.load(base.Load(0, f"null:{options}", "float32", 16, 8, 0, 0, True, 0))
    assert caught.value.kind is FaultKind.MODEL_LOAD


@pytest.mark.parametrize("name", ["cuda0", "tpu0", "abacus0", "null", "", "null0; rm"])
def test_devices_without_a_driver_are_named_with_those_that_have_one(name: str) -> None:
    with pytest.raises(base.DriverFault, match="null0, cpu0") as caught:
        registry.open_driver(name, lambda message: None, memoryview(b""), -1)
    assert caught.value.kind is FaultKind.UNSUPPORTED
