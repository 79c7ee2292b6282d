"""Host memory: zeroed where told and nowhere else, whole pages given back, nothing left open."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from kernel.host_memory import HostMemory

PAGE = mmap.PAGESIZE
PAGES = 16


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    made = HostMemory("null0", PAGES * PAGE)
    yield made
    made.close()


def fill(memory: HostMemory) -> mmap.mmap:
    """Map it as a driver does, without a zero byte in it."""
    mapped = mmap.mmap(memory.fd, 0)
    mapped[:] = b"\xaa" * (PAGES * PAGE)
    return mapped


def held(memory: HostMemory) -> int:
    """Return the pages that it takes."""
    return os.fstat(memory.fd).st_blocks * 512 // PAGE


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_it_takes_nothing_until_it_is_touched(memory: HostMemory) -> None:
    assert held(memory) == 0
    mapped = fill(memory)
    assert held(memory) == PAGES
    assert not os.get_inheritable(memory.fd)
    mapped.close()


@pytest.mark.parametrize("keep", [False, True])
def test_zeroed_is_what_was_told_to_the_byte(memory: HostMemory, keep: bool) -> None:
    """Whatever ranges: empty ones, torn pages, overlaps, neighbours, any order."""
    random = Random(7)
    for _ in range(200):
        mapped = fill(memory)
        want = bytearray(mapped[:])
        ranges = []
        for _ in range(random.randrange(6)):
            offset = random.randrange(PAGES * PAGE)
            length = min(
                random.choice((0, 1, PAGE, random.randrange(5 * PAGE))), len(want) - offset
            )
            ranges.append((offset, length))
            want[offset : offset + length] = bytes(length)
        memory.zero(iter(ranges), keep)
        assert not keep or held(memory) == PAGES
        assert mapped[:] == want, ranges
        mapped.close()


def test_neighbours_give_back_the_page_that_they_share(memory: HostMemory) -> None:
    """Blocks that are no multiple of a page, as those of most models."""
    mapped = fill(memory)
    size = PAGE * 3 // 4
    memory.zero([(block * size, size) for block in (3, 1, 0, 2)])
    assert held(memory) == PAGES - 3
    assert not any(os.pread(memory.fd, 3 * PAGE, 0)) and all(mapped[3 * PAGE :])
    memory.zero([(3 * PAGE, PAGE // 2)])
    memory.zero([(3 * PAGE + PAGE // 2, PAGE // 2)])
    assert held(memory) == PAGES - 3, "zero, but no range had all of the page"
    assert not any(mapped[3 * PAGE : 4 * PAGE])
    mapped[:PAGE] = b"\xbb" * PAGE
    assert held(memory) == PAGES - 2, "it can be used again"
    mapped.close()


def test_kept_pages_stay_and_no_others_come(memory: HostMemory) -> None:
    os.pwrite(memory.fd, b"\xaa" * PAGE * 5, 2 * PAGE)
    memory.zero([(2 * PAGE, 3 * PAGE), (5 * PAGE, PAGE)], keep=True)
    assert held(memory) == 5
    assert os.pread(memory.fd, 7 * PAGE, 0) == bytes(6 * PAGE) + b"\xaa" * PAGE


@pytest.mark.parametrize("where", [(PAGES * PAGE - 1, 2), (-1, 2), (PAGES * PAGE, 1)])
def test_a_range_of_another_memory_is_our_bug(memory: HostMemory, where: tuple[int, int]) -> None:
    mapped = fill(memory)
    with pytest.raises(AssertionError):
        memory.zero([where])
    assert all(mapped[:])
    mapped.close()


def test_a_device_without_host_memory() -> None:
    memory = HostMemory("null0", 0)
    assert memory.fd == -1
    memory.zero([])
    with pytest.raises(AssertionError):
        memory.zero([(0, 1)])
    memory.close()


def test_it_is_closed_once_and_also_when_it_is_forgotten(memory: HostMemory) -> None:
    before = open_files()
    other = HostMemory("null0", PAGE)
    assert len(open_files()) == len(before) + 1
    del other
    assert open_files() == before
    memory.close()
    memory.close()
    assert memory.fd == -1
