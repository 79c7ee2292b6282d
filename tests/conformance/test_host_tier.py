"""The host tier in the host memory: bytes out and in, across deaths, and what is refused."""

import mmap
import os
from collections.abc import Iterator
from typing import Any

import pytest

from drivers import base
from drivers.base import Direction, FaultKind, Queue, ints
from kernel.host_memory import HostMemory
from tests.helpers.device import Bench, Device, load_of, open_rig
from tests.helpers.plans import Part, step_ops

KV_DTYPES = True
BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)
LENGTH, HOST_BLOCKS = 48, 9
OFFSET = 3 * mmap.PAGESIZE


class Tiers:
    """Devices with host memory, by bench and transport; one is started again only where it must."""

    def __init__(self, devices: Any) -> None:
        self._devices = devices
        self._made: dict[tuple[str, str], Tier] = {}

    def tier(self, bench: Bench, transport: str) -> "Tier":
        key = bench.name, transport
        if key not in self._made:
            size = self._devices.device(bench, "loopback").loaded.block_bytes
            self._made[key] = Tier(bench, transport, self._devices.path(bench), size)
        return self._made[key]

    def close(self) -> None:
        for tier in self._made.values():
            tier.device.rig.close()
            tier.memory.close()


class Tier:
    """Host memory, and a device whose host tier lies in the middle of it."""

    def __init__(self, bench: Bench, transport: str, path: str, block_bytes: int) -> None:
        self.bench, self.transport, self.path = bench, transport, path
        self.block_bytes = block_bytes
        # and a part of a block that does not fit whole
        host_bytes = HOST_BLOCKS * block_bytes + block_bytes // 2
        self.load = {"host_bytes": host_bytes, "host_offset": OFFSET, "num_host_blocks": 0}
        self.memory = HostMemory("test", OFFSET + host_bytes + 4 * mmap.PAGESIZE)
        self.device = self.open()

    def open(self) -> Device:
        """Return a new device on the same memory."""
        rig = open_rig(self.bench, self.transport, self.memory.fd)
        return Device(rig, self.bench, self.path, **self.load)

    def restart(self) -> Device:
        """End the driver and start another one, as the kernel does."""
        self.device.rig.close()
        self.device = self.open()
        return self.device

    def block(self, block: int) -> tuple[int, int]:
        """Return where a host block lies, as offset and length."""
        return OFFSET + block * self.block_bytes, self.block_bytes

    def held(self, offset: int = 0, length: int = 1 << 30) -> bytes:
        """Return bytes of the host memory, as the store host reads them."""
        return os.pread(self.memory.fd, length, offset)


@pytest.fixture(scope="module")
def tiers(devices: Any) -> Iterator[Tiers]:
    made = Tiers(devices)
    yield made
    made.close()


@pytest.fixture
def tier(tiers: Tiers, bench: Bench, transport: str) -> Tier:
    """As good as new."""
    made = tiers.tier(bench, transport)
    made.device.renew()
    made.memory.zero([(0, made.memory.num_bytes)])
    return made


@pytest.fixture
def fresh(tier: Tier) -> Device:
    return tier.device


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


@BOTH
def test_out_across_and_in_again_are_the_same_bytes(tier: Tier, fresh: Device) -> None:
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
    size = tier.block_bytes
    for index, at in enumerate((0, 8, 5)):
        canonical = fresh.rig.bulk[index * size : (index + 1) * size]
        assert tier.held(*tier.block(at)) == canonical
    assert not any(tier.held(0, OFFSET)), "nothing in front of its range"
    assert not any(tier.held(sum(tier.block(HOST_BLOCKS - 1)))), "nor behind it"


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
def test_the_tier_outlives_the_driver(tier: Tier) -> None:
    """What the next driver gets is what the kernel has not zeroed."""
    first = tier.device
    blocks = filled(first)
    one, _, three = first.checksums(blocks)
    out(first, blocks, [1, 2, 3])
    tier.memory.zero([tier.block(2)])
    second = tier.restart()
    assert second is not first and second.loaded.num_host_blocks == HOST_BLOCKS
    others = second.take(4)
    (zero,) = second.checksums(others[:1])
    back(second, [1, 2, 3, 4], others)
    assert second.checksums(others) == [one, zero, three, zero]


@BOTH
def test_zeroing_reaches_a_driver_that_runs(tier: Tier, fresh: Device) -> None:
    blocks, others = filled(fresh), fresh.take(3)
    one, _, _ = fresh.checksums(blocks)
    (zero,) = fresh.checksums(others[:1])
    for _ in range(2):  # into pages that are not there, then into those that are
        out(fresh, blocks, [0, 1, 2])
    pages = os.fstat(tier.memory.fd).st_blocks
    tier.memory.zero(map(tier.block, (2, 1)))
    whole = 2 * tier.block_bytes // mmap.PAGESIZE - 1
    if whole > 0:  # else no page is theirs alone
        assert os.fstat(tier.memory.fd).st_blocks <= pages - whole * mmap.PAGESIZE // 512
    back(fresh, [0, 1, 2], others)
    assert fresh.checksums(others) == [one, zero, zero]
    out(fresh, others[:1], [2])
    back(fresh, [2], others[1:2])
    assert fresh.checksums(others[1:2]) == [one], "zeroed blocks can be used again"


def test_two_models_have_a_range_each(tier: Tier, fresh: Device) -> None:
    size = tier.block_bytes
    start = OFFSET + -(-2 * size // mmap.PAGESIZE) * mmap.PAGESIZE
    fields = {"host_offset": start, "host_bytes": 2 * size, "num_host_blocks": 0}
    fresh.rig.send(load_of(fresh.bench, tier.path, model=1, **fields))
    while not isinstance(answer := fresh.rig.receive(), base.Loaded):
        assert not isinstance(answer, base.Fault), answer
    assert answer.num_host_blocks == 2
    blocks = filled(fresh)
    copy = base.Copy(Direction.H2D, ints([0, 1]), ints([1, 2]))
    fresh.answer(fresh.next_submit(copy)._replace(model=1))
    submit = fresh.next_submit(base.Copy(Direction.D2H, ints([1, 2]), ints([1, 0])))
    assert isinstance(fresh.answer(submit._replace(model=1)), base.Complete)
    assert not any(tier.held()), "its blocks are fresh ones"
    out(fresh, blocks[:1], [0])
    assert any(tier.held(OFFSET, size)) and not any(tier.held(start, 2 * size))
    fresh.rig.send(base.Unload(1))
    fresh.stats()
    assert any(tier.held(OFFSET, size)), "an Unload leaves the bytes where they are"


# --- queues ------------------------------------------------------------------------------------


@BOTH
def test_copies_beside_steps_disturb_nothing(fresh: Device) -> None:
    """A sequence decodes while another one's blocks go out and come in, scrubbed in between."""
    blocks, count = filled(fresh), 24
    sums = fresh.checksums(blocks)
    prompt = fresh.prompt(20, seed=3)
    want = fresh.generate(prompt, count)
    table = fresh.blocks_for(len(prompt) + count)
    ids = [fresh.prefill(prompt, table).id]
    for number in range(count - 1):
        part = Part([base.LAST_SAMPLE], len(prompt) + number, table)
        submits = [fresh.next_submit(*step_ops([part], fresh.block_size))]
        if number % 2 == 0:
            host = ints([(number + at) % HOST_BLOCKS for at in range(3)])
            copy = base.Copy(Direction.D2H, ints(blocks), host)
            gone = fresh.next_submit(copy, queue=Queue.COPY_OUT)
            zero = fresh.next_submit(base.Scrub(ints(blocks)), queue=Queue.COPY_OUT)
            copy = base.Copy(Direction.H2D, host, ints(blocks))
            here = fresh.next_submit(copy, queue=Queue.COPY_IN, waits=[fence_of(zero)])
            submits = [gone, *submits, zero, here]
        for submit in submits:
            fresh.rig.send(submit)
        answers = {answer.queue: answer for answer in (fresh.rig.receive() for _ in submits)}
        assert all(isinstance(answer, base.Complete) for answer in answers.values()), answers
        ids += base.read_ints(answers[Queue.COMPUTE].results[0].ids)
        assert fresh.checksums(blocks) == sums
    assert ids == [drawn.id for drawn in want]


def fence_of(submit: base.Submit) -> base.Fence:
    return base.Fence(*submit[:3])


@BOTH
def test_waits_order_what_queues_do_to_one_block(fresh: Device) -> None:
    """Sent at once, in rounds: filled, out, zeroed, in again. Any overtaking changes a sum."""
    blocks, rounds = filled(fresh), 12
    (spare,) = fresh.take(1)
    want = fresh.checksums(blocks)
    submits: list[base.Submit] = []

    def add(queue: Queue, op: Any) -> None:
        waits = [fence_of(last) for last in submits[-1:] if last.queue != queue]
        submits.append(fresh.next_submit(op, queue=queue, waits=waits))

    for number in range(rounds):
        source, host = blocks[number % 3], number % HOST_BLOCKS
        add(Queue.COMPUTE, base.Copy(Direction.D2D, ints([source]), ints([spare])))
        add(Queue.COPY_OUT, base.Copy(Direction.D2H, ints([spare]), ints([host])))
        add(Queue.COMPUTE, base.Scrub(ints([spare])))
        add(Queue.COPY_IN, base.Copy(Direction.H2D, ints([host]), ints([spare])))
        add(Queue.COMPUTE, base.Checksum(ints([spare])))
    for submit in submits:
        fresh.rig.send(submit)
    answers = [fresh.rig.receive() for _ in submits]
    assert all(isinstance(answer, base.Complete) for answer in answers), answers
    sums = [answer.results[0][0] for answer in answers if answer.results]
    assert sums == [want[number % 3] for number in range(rounds)]


def test_an_unload_waits_for_the_copies_of_its_model(tier: Tier, fresh: Device) -> None:
    fields = {"host_offset": 0, "host_bytes": OFFSET, "num_host_blocks": 0}
    for _ in range(3):
        fresh.rig.send(load_of(fresh.bench, tier.path, model=1, **fields))
        while not isinstance(answer := fresh.rig.receive(), base.Loaded):
            assert isinstance(answer, base.Estimate | base.Progress), answer
        many = ints(range(1, fresh.loaded.num_blocks))
        copies = [
            fresh.next_submit(base.Copy(Direction.D2D, many, many), queue=queue)
            for queue in (Queue.COPY_OUT, Queue.COPY_IN) * 10
        ]
        for submit in copies:
            fresh.rig.send(submit._replace(model=1))
        fresh.rig.send(base.Unload(1))
        answers = [fresh.rig.receive() for _ in copies]
        assert all(isinstance(answer, base.Complete) for answer in answers), answers
    out(fresh, filled(fresh), [0, 1, 2])


def test_copies_that_fail_name_the_blocks(tier: Tier) -> None:
    """Where the driver can tell: the host memory has been cut off behind its back."""
    if tier.bench.name == "null":
        pytest.skip("it has the memory mapped, and would die of it")
    device = tier.device
    blocks, others = filled(device), device.take(3)
    out(device, blocks, [0, 1, 8])
    os.ftruncate(tier.memory.fd, OFFSET + 7 * tier.block_bytes)
    for copy, queue, lost in (
        (base.Copy(Direction.D2H, ints(blocks), ints([0, 8, 1])), Queue.COPY_OUT, (8, 1)),
        (base.Copy(Direction.H2D, ints([1, 0, 8]), ints(others)), Queue.COPY_IN, (others[2],)),
    ):
        fault = device.refuse(copy, queue=queue)
        assert (fault.kind, fault.items) == (FaultKind.COPY_FAILED, lost)
        assert str(len(lost)) in fault.message
    back(device, [0], others[:1])
    os.ftruncate(tier.memory.fd, tier.memory.num_bytes)
    out(device, blocks, [7, 8, 0])


# --- what is refused --------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("op", [
    (Direction.D2H, [1], [HOST_BLOCKS]), (Direction.D2H, [1], [-1]), (Direction.D2H, [0], [1]),
    (Direction.D2H, [1, 2], [3, 3]), (Direction.D2H, [1, 2], [3]),
    (Direction.H2D, [HOST_BLOCKS], [1]), (Direction.H2D, [-1], [1]), (Direction.H2D, [1], [0]),
    (Direction.H2H, [0], [HOST_BLOCKS]), (Direction.H2H, [HOST_BLOCKS], [0]),
], ids=str)  # fmt: skip
def test_blocks_that_are_not_there(
    tier: Tier, fresh: Device, op: tuple[int, list[int], list[int]]
) -> None:
    blocks = filled(fresh)
    out(fresh, blocks, [0, 1, 2])
    sums, host = fresh.checksums(), tier.held()
    bad = base.Copy(op[0], ints(op[1]), ints(op[2]))
    good = base.Copy(Direction.D2H, ints(blocks[:1]), ints([7]))
    for queue in (Queue.COPY_OUT, Queue.COPY_IN):
        assert fresh.refuse(good, bad, queue=queue).kind == FaultKind.PLAN_INVALID
    assert fresh.checksums() == sums and tier.held() == host
    out(fresh, blocks[:1], [7])


CHANGES: list[tuple[dict[str, int], str]] = [
    ({"host_offset": 1}, "multiple of"),
    ({"host_offset": OFFSET + 512}, "multiple of"),
    ({"host_offset": 1 << 40}, "the host memory has"),
    ({"host_bytes": 1 << 40}, "the host memory has"),
    ({"host_offset": -mmap.PAGESIZE}, "the host memory has"),
    ({"host_bytes": -1}, "the host memory has"),
    ({"num_host_blocks": 2}, ""),
]


@pytest.mark.parametrize(("change", "says"), CHANGES, ids=str)
def test_ranges_that_cannot_be(tier: Tier, change: dict[str, int], says: str) -> None:
    """The Load fails, and what is loaded goes on."""
    device = tier.device
    device.rig.send(load_of(tier.bench, tier.path, model=1, **{**tier.load, **change}))
    while not isinstance(fault := device.rig.receive(), base.Fault):
        assert isinstance(fault, base.Estimate | base.Progress), fault
    assert fault.kind in (FaultKind.MODEL_LOAD, FaultKind.UNSUPPORTED) and says in fault.message
    out(device, filled(device), [0, 1, 2])


@BOTH
def test_without_host_memory_a_host_tier_in_it_is_unsupported(
    tier: Tier, devices: Any, bench: Bench, transport: str
) -> None:
    device = devices.device(bench, transport)
    device.rig.send(load_of(bench, tier.path, model=1, **tier.load))
    fault = device.rig.receive()
    assert isinstance(fault, base.Fault) and fault.kind == FaultKind.UNSUPPORTED
    assert "no host memory" in fault.message


def test_a_range_that_holds_no_block_is_no_host_tier(tier: Tier) -> None:
    rig = open_rig(tier.bench, "loopback", tier.memory.fd)
    none = {"num_host_blocks": 0, "host_bytes": tier.block_bytes - 1}
    device = Device(rig, tier.bench, tier.path, **none)
    assert device.loaded.num_host_blocks == 0
    copy = base.Copy(Direction.D2H, ints([1]), ints([0]))
    assert device.refuse(copy, queue=Queue.COPY_OUT).kind == FaultKind.UNSUPPORTED
    rig.close()
