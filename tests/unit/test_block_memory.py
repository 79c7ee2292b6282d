"""Runs of neighbours in lists of blocks: as few as can be, none too large, nothing left out."""

from random import Random

from drivers.block_memory import RUN_BYTES, BlockMemory, runs

SIZE = 48


def test_runs_are_neighbours_on_both_sides() -> None:
    assert list(runs([], [], SIZE)) == []
    assert list(runs([3, 4, 5], [7, 8, 9], SIZE)) == [(3, 7, 3)]
    assert list(runs([3, 4, 5], [7, 9, 10], SIZE)) == [(3, 7, 1), (4, 9, 2)]
    assert list(runs([5, 4, 3], [7, 8, 9], SIZE)) == [(5, 7, 1), (4, 8, 1), (3, 9, 1)]
    assert list(runs(range(6), [0, 1, 2, 9, 10, 4], SIZE)) == [(0, 0, 3), (3, 9, 2), (5, 4, 1)]


def test_no_run_is_larger_than_a_piece() -> None:
    count = 100
    size = RUN_BYTES // 8 - 1
    found = list(runs(range(count), range(count), size))
    assert [piece[2] for piece in found] == [8] * 12 + [4]
    huge = list(runs(range(3), range(3), RUN_BYTES * 2))
    assert huge == [(0, 0, 1), (1, 1, 1), (2, 2, 1)], "a block is never cut"


def test_copies_are_those_that_were_asked_for() -> None:
    random = Random(3)
    for _ in range(200):
        source, target = bytearray(random.randbytes(20 * SIZE)), bytearray(7 + 20 * SIZE)
        want = bytearray(target)
        count = random.randrange(12)
        dst = random.sample(range(20), count)
        src = [random.randrange(20) for _ in dst]
        if random.random() < 0.5:
            src, dst = sorted(src), sorted(dst)
        one = BlockMemory(memoryview(source), SIZE)
        one.copy(src, BlockMemory(memoryview(target), SIZE, 7), dst)
        for block, to in zip(src, dst, strict=True):
            want[7 + to * SIZE : 7 + (to + 1) * SIZE] = source[block * SIZE : (block + 1) * SIZE]
        assert target == want


def test_a_window_with_nothing_behind_its_offset() -> None:
    empty = BlockMemory(memoryview(bytearray(SIZE)), SIZE, SIZE)
    BlockMemory(memoryview(bytearray(SIZE)), SIZE).copy([], empty, [])
    assert bytes(empty.bytes(0, 0)) == b""
