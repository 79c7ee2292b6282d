"""The host tier in the host memory: bytes out and in, across deaths, and what is refused."""

import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from drivers import base
from drivers.base import Direction, FaultKind, Queue, ints
from kernel.host_memory import HostMemory
from tests.helpers.device import Bench, Device, hello, load_of, open_rig
from tests.helpers.plans import Part

BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)
LENGTH, HOST_BLOCKS = 48, 9
OFFSET = 3 * mmap.PAGESIZE
Start = Callable[..., Device]


@pytest.fixture
def block_bytes(devices: Any, bench: Bench) -> int:
    if bench.name == "cpu":
        pytest.skip("not built yet")
    size: int = devices.device(bench, "loopback").loaded.block_bytes
    return size


@pytest.fixture
def tier(block_bytes: int) -> dict[str, int]:
    """Of a Load: HOST_BLOCKS blocks and a part of one that does not fit whole."""
    host_bytes = HOST_BLOCKS * block_bytes + block_bytes // 2
    return {"host_bytes": host_bytes, "host_offset": OFFSET, "num_host_blocks": 0}


@pytest.fixture
def memory(tier: dict[str, int]) -> Iterator[HostMemory]:
    """Host memory with room around what is loaded."""
    made = HostMemory("test", OFFSET + tier["host_bytes"] + 4 * mmap.PAGESIZE)
    yield made
    made.close()


@pytest.fixture
def start(
    bench: Bench, transport: str, model_path: str, memory: HostMemory, tier: dict[str, int]
) -> Iterator[Start]:
    """Start a driver on the same host memory, as the kernel does when the one before is gone."""
    opened: list[Device] = []

    def end() -> None:
        while opened:
            opened.pop().rig.close()

    def start() -> Device:
        end()
        opened.append(Device(open_rig(bench, transport, memory.fd), bench, model_path, **tier))
        return opened[0]

    yield start
    end()


@pytest.fixture
def fresh(start: Start) -> Device:
    return start()


def filled(device: Device) -> list[int]:
    """Return three full blocks."""
    blocks = device.blocks_for(LENGTH)
    device.prefill(device.prompt(LENGTH), blocks)
    return blocks


def out(device: Device, src: list[int], dst: list[int]) -> None:
    op = base.Copy(Direction.D2H, ints(src), ints(dst))
    device.submit(op, queue=Queue.COPY_OUT)


def back(device: Device, src: list[int], dst: list[int]) -> None:
    op = base.Copy(Direction.H2D, ints(src), ints(dst))
    device.submit(op, queue=Queue.COPY_IN)


def held(memory: HostMemory, offset: int, length: int) -> bytes:
    """Return bytes of the host memory, as the store host reads them."""
    return os.pread(memory.fd, length, offset)


@BOTH
def test_out_across_and_in_again_are_the_same_bytes(
    fresh: Device, memory: HostMemory, block_bytes: int
) -> None:
    assert "host_tier" in fresh.ready.features
    assert fresh.loaded.num_host_blocks == HOST_BLOCKS
    blocks = filled(fresh)
    want = fresh.generate([*fresh.prompt(LENGTH), 1, 2, 3], 4)
    sums, others = fresh.checksums(blocks), fresh.take(4)
    out(fresh, blocks, [4, 0, 8])
    fresh.submit(base.Scrub(ints(blocks)))
    fresh.submit(base.Copy(Direction.H2H, ints([4, 0, 8]), ints([0, 8, 5])))
    back(fresh, [0, 8, 5], others[:3])
    assert fresh.checksums(others[:3]) == sums
    got = fresh.decode(fresh.step(Part([1, 2, 3], LENGTH, others))[0], LENGTH + 3, others, 4)
    assert fresh.same(got, want)
    fresh.submit(base.Export(ints(others[:3]), 0))
    for index, at in enumerate((0, 8, 5)):
        canonical = fresh.rig.bulk[index * block_bytes : (index + 1) * block_bytes]
        assert held(memory, OFFSET + at * block_bytes, block_bytes) == canonical
    assert not any(held(memory, 0, OFFSET)), "nothing in front of its range"
    end = OFFSET + HOST_BLOCKS * block_bytes
    assert not any(held(memory, end, memory.num_bytes - end)), "nor behind it"


@BOTH
def test_a_batch_of_many_blocks_in_any_order(fresh: Device) -> None:
    """Runs of neighbours on one side, on both, on none, and backwards."""
    free = sorted(fresh.take(HOST_BLOCKS))
    fresh.prefill(fresh.prompt(HOST_BLOCKS * fresh.block_size), free)
    sums = dict(zip(free, fresh.checksums(free), strict=True))
    host = list(range(HOST_BLOCKS))
    for src, dst in (
        (free, host), (free, host[::-1]), (free[::-1], host[::-1]),
        (free[1:4] + free[6:8], host[4:9]), (free[::2], host[:5]), (free[4:5], host[8:]),
    ):  # fmt: skip
        others = fresh.take(len(src))
        out(fresh, src, dst)
        back(fresh, dst, others)
        assert fresh.checksums(others) == [sums[block] for block in src]
        fresh.submit(base.Scrub(ints(others)))
        back(fresh, dst[::-1], others)
        assert fresh.checksums(others) == [sums[block] for block in src[::-1]]
        fresh._free += others


def test_copies_within_the_tier_read_all_before_they_write(fresh: Device) -> None:
    blocks, others = filled(fresh), fresh.take(3)
    one, two, three = fresh.checksums(blocks)
    out(fresh, blocks, [0, 1, 2])
    fresh.submit(base.Copy(Direction.H2H, ints([0, 1, 2]), ints([1, 2, 0])))
    back(fresh, [0, 1, 2], others)
    assert fresh.checksums(others) == [three, one, two]


@BOTH
def test_the_tier_outlives_the_driver(start: Start, memory: HostMemory, block_bytes: int) -> None:
    """What the next driver gets is what the kernel has not zeroed."""
    first = start()
    blocks = filled(first)
    one, _, three = first.checksums(blocks)
    out(first, blocks, [1, 2, 3])
    memory.zero([(OFFSET + 2 * block_bytes, block_bytes)])
    second = start()
    assert second.loaded.num_host_blocks == HOST_BLOCKS
    others = second.take(4)
    (zero,) = second.checksums(others[:1])
    back(second, [1, 2, 3, 4], others)
    assert second.checksums(others) == [one, zero, three, zero]


@BOTH
def test_zeroing_reaches_a_driver_that_runs(
    fresh: Device, memory: HostMemory, block_bytes: int
) -> None:
    blocks, others = filled(fresh), fresh.take(3)
    one, _, _ = fresh.checksums(blocks)
    (zero,) = fresh.checksums(others[:1])
    out(fresh, blocks, [0, 1, 2])
    pages = os.fstat(memory.fd).st_blocks
    memory.zero([(OFFSET + block * block_bytes, block_bytes) for block in (2, 1)])
    whole = 2 * block_bytes // mmap.PAGESIZE - 1
    if whole > 0:  # else no page is theirs alone
        assert os.fstat(memory.fd).st_blocks <= pages - whole * mmap.PAGESIZE // 512
    back(fresh, [0, 1, 2], others)
    assert fresh.checksums(others) == [one, zero, zero]
    out(fresh, others[:1], [2])
    back(fresh, [2], others[1:2])
    assert fresh.checksums(others[1:2]) == [one], "zeroed blocks can be used again"


def test_two_models_have_a_range_each(
    fresh: Device, model_path: str, memory: HostMemory, block_bytes: int
) -> None:
    pages = -(-2 * block_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    start = OFFSET + pages
    fields = {"host_offset": start, "host_bytes": 2 * block_bytes, "num_host_blocks": 0}
    fresh.rig.send(load_of(fresh.bench, model_path, model=1, **fields))
    while not isinstance(answer := fresh.rig.receive(), base.Loaded):
        assert not isinstance(answer, base.Fault), answer
    assert answer.num_host_blocks == 2
    blocks = filled(fresh)
    copy = base.Copy(Direction.H2D, ints([0, 1]), ints([1, 2]))
    fresh.answer(fresh.next_submit(copy)._replace(model=1))
    submit = fresh.next_submit(base.Copy(Direction.D2H, ints([1, 2]), ints([1, 0])))
    assert isinstance(fresh.answer(submit._replace(model=1)), base.Complete)
    assert not any(held(memory, OFFSET, memory.num_bytes - OFFSET)), "its blocks are fresh ones"
    out(fresh, blocks[:1], [0])
    assert any(held(memory, OFFSET, pages)) and not any(held(memory, start, 2 * block_bytes))
    fresh.rig.send(base.Unload(1))
    assert any(held(memory, OFFSET, pages)), "an Unload leaves the bytes where they are"


# --- what is refused --------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("op", [
    (Direction.D2H, [1], [HOST_BLOCKS]), (Direction.D2H, [1], [-1]), (Direction.D2H, [0], [1]),
    (Direction.D2H, [1, 2], [3, 3]), (Direction.D2H, [1, 2], [3]),
    (Direction.H2D, [HOST_BLOCKS], [1]), (Direction.H2D, [-1], [1]), (Direction.H2D, [1], [0]),
    (Direction.H2H, [0], [HOST_BLOCKS]), (Direction.H2H, [HOST_BLOCKS], [0]),
], ids=str)  # fmt: skip
def test_blocks_that_are_not_there(
    fresh: Device, memory: HostMemory, op: tuple[int, list[int], list[int]]
) -> None:
    blocks = filled(fresh)
    out(fresh, blocks, [0, 1, 2])
    sums, host = fresh.checksums(), held(memory, 0, memory.num_bytes)
    bad = base.Copy(op[0], ints(op[1]), ints(op[2]))
    good = base.Copy(Direction.D2H, ints(blocks[:1]), ints([7]))
    for queue in (Queue.COPY_OUT, Queue.COPY_IN):
        assert fresh.refuse(good, bad, queue=queue).kind == FaultKind.PLAN_INVALID
    assert fresh.checksums() == sums and held(memory, 0, memory.num_bytes) == host
    out(fresh, blocks[:1], [7])


@BOTH
@pytest.mark.parametrize(("change", "says"), [
    ({"host_offset": 1}, "multiple of"), ({"host_offset": OFFSET + 512}, "multiple of"),
    ({"host_offset": 1 << 40}, "the host memory has"),
    ({"host_bytes": 1 << 40}, "the host memory has"),
    ({"host_offset": -mmap.PAGESIZE}, "the host memory has"),
    ({"host_bytes": -1}, "the host memory has"),
    ({"num_host_blocks": 2}, "host"),
], ids=str)  # fmt: skip
def test_ranges_that_cannot_be(
    bench: Bench,
    transport: str,
    model_path: str,
    memory: HostMemory,
    tier: dict[str, int],
    change: dict[str, int],
    says: str,
) -> None:
    rig = open_rig(bench, transport, memory.fd)
    rig.send(hello(device=bench.device))
    rig.receive()
    rig.send(load_of(bench, model_path, **{**tier, **change}))
    while not isinstance(fault := rig.receive(), base.Fault):
        assert isinstance(fault, base.Estimate | base.Progress), fault
    assert fault.kind in (FaultKind.MODEL_LOAD, FaultKind.UNSUPPORTED) and says in fault.message
    rig.send(load_of(bench, model_path, **tier))
    while not isinstance(answer := rig.receive(), base.Loaded):
        assert isinstance(answer, base.Estimate | base.Progress), answer
    rig.close()


@BOTH
def test_without_host_memory_a_host_tier_in_it_is_unsupported(
    bench: Bench, transport: str, model_path: str, tier: dict[str, int]
) -> None:
    rig = open_rig(bench, transport)
    rig.send(hello(device=bench.device))
    rig.receive()
    rig.send(load_of(bench, model_path, **tier))
    fault = rig.receive()
    assert isinstance(fault, base.Fault) and fault.kind == FaultKind.UNSUPPORTED
    assert "no host memory" in fault.message
    rig.close()


def test_a_range_that_holds_no_block_is_no_host_tier(
    bench: Bench, model_path: str, memory: HostMemory, block_bytes: int
) -> None:
    rig = open_rig(bench, "loopback", memory.fd)
    device = Device(rig, bench, model_path, num_host_blocks=0, host_bytes=block_bytes - 1)
    assert device.loaded.num_host_blocks == 0
    copy = base.Copy(Direction.D2H, ints([1]), ints([0]))
    assert device.refuse(copy, queue=Queue.COPY_OUT).kind == FaultKind.UNSUPPORTED
    rig.close()
