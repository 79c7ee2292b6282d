"""Blocks as bytes: copy, scrub, checksum, export, import, and the host tier."""

import pytest

from drivers import base
from drivers.base import Direction, FaultKind, Queue, ints
from tests.helpers.device import Device
from tests.helpers.plans import Part

KV_DTYPES = True
BOTH = pytest.mark.parametrize("transport", ["loopback", "host"], indirect=True)
LENGTH = 48


@pytest.fixture
def blocks(device: Device) -> list[int]:
    """Three full blocks."""
    taken = device.blocks_for(LENGTH)
    device.prefill(device.prompt(LENGTH), taken)
    return taken


@BOTH
def test_equal_bytes_have_equal_checksums_and_others_have_not(
    device: Device, blocks: list[int]
) -> None:
    again = device.blocks_for(LENGTH)
    device.prefill(device.prompt(LENGTH), again)
    sums = device.checksums(blocks)
    assert len(set(sums)) == 3
    assert device.checksums(again) == sums
    assert device.checksums(blocks[::-1]) == sums[::-1]
    assert all(len(text) == 32 and int(text, 16) >= 0 for text in sums)


def test_scrubbed_blocks_are_like_fresh_ones(device: Device, blocks: list[int]) -> None:
    kept = device.checksums(blocks[:1])
    (fresh,) = device.checksums(device.take(1))
    device.submit(base.Scrub(ints(blocks[1:])))
    assert device.checksums(blocks) == [*kept, fresh, fresh]


def test_copies_read_all_before_they_write(device: Device, blocks: list[int]) -> None:
    one, two, three = device.checksums(blocks)
    device.copy(blocks, [blocks[1], blocks[2], blocks[0]])
    assert device.checksums(blocks) == [three, one, two]


def test_ops_of_a_submit_run_in_order(device: Device, blocks: list[int]) -> None:
    (spare,) = device.take(1)
    (fresh,) = device.checksums([spare])
    sums = device.checksums(blocks)
    results = device.submit(
        base.Copy(Direction.D2D, ints(blocks[:1]), ints([spare])),
        base.Checksum(ints([spare])),
        base.Scrub(ints(blocks[:1])),
        base.Checksum(ints([blocks[0], spare])),
    ).results
    assert [list(r) for r in results] == [[sums[0]], [fresh, sums[0]]]


@BOTH
def test_export_and_import_into_other_blocks(device: Device, blocks: list[int]) -> None:
    prompt, size = device.prompt(LENGTH), device.loaded.block_bytes
    sums = device.checksums(blocks)
    expected = device.generate([*prompt, 1, 2, 3], 4)
    device.submit(base.Export(ints(blocks), 0), queue=Queue.COPY_OUT)
    exported = device.rig.bulk[: 3 * size]
    device.submit(base.Scrub(ints(blocks)))
    others = device.take(4)
    device.submit(base.Import(ints(others[:3]), 0), queue=Queue.COPY_IN)
    assert device.checksums(others[:3]) == sums
    got = device.decode(device.step(Part([1, 2, 3], LENGTH, others))[0], LENGTH + 3, others, 4)
    assert device.same(got, expected)
    device.submit(base.Export(ints(others[:3][::-1]), size))
    assert device.rig.bulk[size : 2 * size] == exported[2 * size :], "canonical, block by block"
    device.submit(base.Import(ints(blocks[:1]), 2 * size))
    assert device.checksums(blocks[:1]) == sums[1:2]


def test_a_flipped_bit_is_seen_after_import(device: Device, blocks: list[int]) -> None:
    sums = device.checksums(blocks)
    device.submit(base.Export(ints(blocks), 0))
    device.rig.bulk[5] ^= 0x40
    device.submit(base.Import(ints(blocks), 0))
    assert [a == b for a, b in zip(device.checksums(blocks), sums, strict=True)] == [
        False, True, True,
    ]  # fmt: skip


def test_host_tier(device: Device, blocks: list[int]) -> None:
    """Out, across and back in gives the same bytes; without the tier it is UNSUPPORTED."""
    out = base.Copy(Direction.D2H, ints(blocks), ints([1, 0, 2]))
    if not device.bench.host_blocks:
        assert device.refuse(out).kind == FaultKind.UNSUPPORTED
        return
    sums, others = device.checksums(blocks), device.take(3)
    device.submit(out, queue=Queue.COPY_OUT)
    device.submit(base.Scrub(ints(blocks)))
    device.submit(base.Copy(Direction.H2H, ints([1, 0, 2]), ints([5, 6, 7])))
    device.submit(base.Copy(Direction.H2D, ints([5, 6, 7]), ints(others)), queue=Queue.COPY_IN)
    assert device.checksums(others) == sums
    beyond = base.Copy(Direction.D2H, ints(others[:1]), ints([device.bench.host_blocks]))
    assert device.refuse(beyond).kind == FaultKind.PLAN_INVALID
