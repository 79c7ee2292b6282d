"""KV in 8 bit: what is stored is what was computed, rounded as the format says, nothing else."""

from collections.abc import Iterator

import numpy as np
import pytest

from drivers import base
from drivers.base import FaultKind, ints
from tests.helpers import tiny_model
from tests.helpers.device import BLOCK_SIZE, Bench, Device, load_of, open_rig
from tests.helpers.plans import Part, step_ops

LENGTH = 40
L, H, D = tiny_model.LAYERS, tiny_model.KV_HEADS, tiny_model.HIDDEN // tiny_model.HEADS
Floats = "np.ndarray[Any, np.dtype[np.float32]]"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model.install(tmp_path_factory.mktemp("tiny"))


def opened(path: str, kv_dtype: str, dtype: str = "float32") -> Device:
    bench = Bench("cpu", "cpu0", lambda folder: path, dtype=dtype, kv_dtype=kv_dtype)
    return Device(open_rig(bench, "loopback"), bench, path)


@pytest.fixture(scope="module")
def exact(path: str) -> Iterator[Device]:
    device = opened(path, "")
    yield device
    device.rig.close()


@pytest.fixture(scope="module")
def small(path: str) -> Iterator[Device]:
    device = opened(path, "int8")
    yield device
    device.rig.close()


def exported(device: Device, blocks: list[int]) -> bytes:
    device.submit(base.Export(ints(blocks), 0))
    return bytes(device.rig.bulk[: len(blocks) * device.loaded.block_bytes])


def read_int8(raw: bytes) -> tuple[Floats, Floats]:
    """Return numbers and scales of blocks, read as the documents say."""
    rows = np.frombuffer(raw, np.uint8).reshape(-1, L, 2, BLOCK_SIZE, H, D + 2)
    numbers = np.ascontiguousarray(rows[..., :D]).view(np.int8).astype(np.float32)
    halves = np.ascontiguousarray(rows[..., D:]).view(np.uint16)
    return numbers, (halves.astype(np.uint32) << 16).view(np.float32)


def test_what_a_load_with_it_says(small: Device, exact: Device) -> None:
    assert "kv_int8" in small.ready.features
    (group,) = small.loaded.kv_groups
    assert (group.dtype, small.loaded.dtype) == ("int8", "float32")
    assert small.loaded.block_bytes == L * 2 * BLOCK_SIZE * H * (D + 2)
    assert exact.loaded.kv_groups[0].dtype == "float32"


def test_the_first_layer_is_that_of_exact_kv_rounded(small: Device, exact: Device) -> None:
    """Nothing was rounded before it, so each number is within half a step of the exact one."""
    blocks = [5, 9, 3]
    for device in (small, exact):
        device.renew()
        device.prefill(device.prompt(LENGTH), blocks)
    numbers, scales = read_int8(exported(small, blocks))
    want = np.frombuffer(exported(exact, blocks), np.float32).reshape(-1, L, 2, BLOCK_SIZE, H, D)
    numbers, scales, want = numbers[:, 0], scales[:, 0], want[:, 0]
    assert np.abs(numbers).max() == 127
    written = np.abs(want).max(-1, keepdims=True) > 0
    assert written.sum() == 2 * LENGTH * H
    assert (scales > 0).tolist() == written.tolist(), "what is not written is zero"
    assert (np.abs(numbers * scales - want) <= 0.501 * scales).all()
    largest = np.abs(want).max(-1, keepdims=True) / 127
    assert (np.abs(scales - largest) <= largest / 256).all(), "no coarser than it must be"


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_drawn_is_nearly_the_same(path: str, dtype: str, deterministic: bool) -> None:
    logprobs = {}
    for kv_dtype in ("", "int8"):
        bench = Bench("cpu", "cpu0", lambda folder: path, dtype=dtype, kv_dtype=kv_dtype)
        device = Device(open_rig(bench, "loopback"), bench, path, deterministic=deterministic)
        blocks, prompt = device.blocks_for(LENGTH), device.prompt(LENGTH)
        rows = base.Score(ints(range(LENGTH)), ints([*prompt[1:], 0]), ints([0] * LENGTH))
        part = Part(prompt, 0, blocks, draws=False)
        (execute,) = step_ops([part], device.block_size)
        (scored,) = device.submit(execute, rows).results
        logprobs[kv_dtype] = np.frombuffer(scored.logprobs, np.float32)
        device.rig.close()
    off = np.abs(logprobs[""] - logprobs["int8"])
    assert off.max() > 0, "KV in 8 bit was read"
    assert off.mean() < 0.05 and off.max() < 0.5


def test_it_is_kept_as_it_was_across_drivers_of_the_same_kind_only(
    small: Device, path: str
) -> None:
    """Blocks of one driver are the blocks of another; those of another dtype have another size."""
    small.renew()
    prompt, blocks = small.prompt(LENGTH), [7, 2, 11]
    want = small.generate([*prompt, 4], 4, [20, 21, 22])
    small.prefill(prompt, blocks)
    raw = exported(small, blocks)
    other = opened(path, "int8")
    other.rig.bulk[: len(raw)] = raw
    other.submit(base.Import(ints([4, 6, 8]), 0))
    assert other.checksums([4, 6, 8]) == small.checksums(blocks)
    first = other.step(Part([4], LENGTH, [4, 6, 8]))[0]
    assert other.same(other.decode(first, LENGTH + 1, [4, 6, 8], 4), want)
    other.rig.close()


@pytest.mark.parametrize("kv_dtype", ["int4", "float16", "INT8", "bfloat16"])
def test_other_dtypes_are_unsupported(small: Device, path: str, kv_dtype: str) -> None:
    small.rig.send(load_of(small.bench, path, model=1, kv_dtype=kv_dtype))
    fault = small.rig.receive()
    assert fault.kind == FaultKind.UNSUPPORTED and "int8" in fault.message


def test_the_null_driver_has_none() -> None:
    bench = Bench("null", "null0", lambda folder: "null")
    device = Device(open_rig(bench, "loopback"), bench, "null")
    device.rig.send(load_of(bench, "null", model=1, kv_dtype="int8"))
    assert device.rig.receive().kind == FaultKind.UNSUPPORTED
    assert "kv_int8" not in device.ready.features
