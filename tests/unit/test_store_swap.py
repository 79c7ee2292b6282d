"""The swap file: what goes out comes back, only as what it was, only to its owner, only once."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from drivers.store import base, swap
from drivers.store.base import BlockState, FaultKind
from drivers.store.files import Files
from tests.helpers.disks import MemoryFiles, Stepped
from tests.helpers.store_client import Client, Refused, Window, client

SIZE = 4096
SLOTS = 64
AREA = base.Area(8192, SIZE, b"\x17" * 32, "bfloat16", "30,2,16,3,64")
SWAP_BYTES = AREA.offset + SLOTS * SIZE
OK, CORRUPT, FAILED = (bytes([state]) for state in BlockState)


@pytest.fixture
def window() -> Iterator[Window]:
    made = Window(1 << 20)
    yield made
    made.close()


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, window: Window, tmp_path: Path) -> Iterator[Client]:
    disk = request.param == "disk"
    with client(Files() if disk else MemoryFiles(), window) as made:
        made.open(*((f"{tmp_path}/s", f"{tmp_path}/k") if disk else ()), swap_bytes=SWAP_BYTES)
        yield made


def block(slot: int, **how: Any) -> base.Block:
    return base.Block(slot, slot * SIZE, 1000, b"chain", 1)._replace(**how)


def out(store: Client, *blocks: base.Block, area: base.Area = AREA) -> bytes:
    answer: base.Blocks = store.ask(base.SwapOut(store.job(), area, 0, blocks))
    return answer.states


def back(store: Client, *blocks: base.Block, area: base.Area = AREA) -> bytes:
    answer: base.Blocks = store.ask(base.SwapIn(store.job(), area, 0, blocks))
    return answer.states


def free(store: Client, *slots: int) -> None:
    store.ask(base.FreeSlots(store.job(), AREA, slots))


def fill(store: Client, seed: int = 1) -> list[bytes]:
    """Put a block for each slot into the window; return them."""
    random = Random(seed)
    blocks = [random.randbytes(SIZE) for _ in range(SLOTS)]
    store.window.put(0, b"".join(blocks))
    return blocks


def test_what_goes_out_comes_back_in_any_order(store: Client) -> None:
    blocks = fill(store)
    every = [block(slot, owner=slot % 3) for slot in range(SLOTS)]
    assert out(store, *every) == OK * SLOTS
    store.window.put(0, bytes(SLOTS * SIZE))
    Random(2).shuffle(every)
    assert back(store, *every[:40]) == OK * 40
    for one in every[:40]:
        assert store.window.take(one.window_offset, SIZE) == blocks[one.slot]
    for one in every[40:]:
        assert store.window.take(one.window_offset, SIZE) == bytes(SIZE)
    stats = store.stats()
    assert (stats.swap_slots, stats.swap_out_bytes, stats.swap_in_bytes) == (
        SLOTS, SLOTS * SIZE, 40 * SIZE,
    )  # fmt: skip


def test_it_may_come_back_more_than_once_and_elsewhere(store: Client) -> None:
    blocks = fill(store)
    out(store, block(3))
    for place in (0, 17, 90_000):
        assert back(store, block(3, window_offset=place)) == OK
        assert store.window.take(place, SIZE) == blocks[3]


OTHERS: dict[str, dict[str, Any]] = {
    "owner": {"owner": 1001}, "chain hash": {"chain_hash": b"chaim"},
    "no hash": {"chain_hash": b""}, "counter": {"counter": 2},
}  # fmt: skip
OTHER_AREAS: dict[str, dict[str, Any]] = {
    "digest": {"digest": b"\x18" * 32}, "dtype": {"kv_dtype": "float32"},
    "layout": {"layout": "30,2,16,64,3"}, "offset": {"offset": 8192 - SIZE},
    "block bytes": {"block_bytes": SIZE // 2},
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_as_something_else_it_does_not_come_back(store: Client, what: str) -> None:
    fill(store)
    out(store, block(3), block(4))
    store.window.put(0, b"\xa5" * SLOTS * SIZE)
    assert back(store, block(3, **OTHERS[what]), block(4)) == CORRUPT + OK
    assert store.window.take(3 * SIZE, SIZE) == b"\xa5" * SIZE, "the window is left alone"


@pytest.mark.parametrize("what", OTHER_AREAS)
def test_nor_in_another_area(store: Client, what: str) -> None:
    fill(store)
    out(store, *(block(slot) for slot in range(8)))
    area = AREA._replace(**OTHER_AREAS[what])
    blocks = [block(slot) for slot in range(1, 8)]
    assert back(store, *blocks, area=area) == CORRUPT * 7


def test_slots_that_hold_nothing(store: Client) -> None:
    fill(store)
    assert back(store, block(3)) == CORRUPT
    out(store, block(3), block(4))
    free(store, 3, 9)
    assert back(store, block(3), block(4), block(9)) == CORRUPT + OK + CORRUPT
    assert store.stats().swap_slots == 1
    out(store, block(3, counter=2))
    assert back(store, block(3, counter=2)) == OK


def test_a_slot_written_again_has_the_last_block_only(store: Client) -> None:
    fill(store, 1)
    out(store, block(3))
    newer = fill(store, 2)
    out(store, block(3, counter=2))
    assert back(store, block(3)) == CORRUPT
    assert back(store, block(3, counter=2)) == OK
    assert store.window.take(3 * SIZE, SIZE) == newer[3]


WRONG: dict[str, Any] = {
    "no blocks": lambda: base.SwapOut(1, AREA, 0, ()),
    "too many": lambda: base.SwapOut(1, AREA, 0, tuple(map(block, range(base.MAX_BLOCKS + 1)))),
    "a slot twice": lambda: base.SwapOut(1, AREA, 0, (block(1), block(1))),
    "a slot after the last": lambda: base.SwapIn(1, AREA, 0, (block(SLOTS, window_offset=0),)),
    "a slot before the first": lambda: base.SwapIn(1, AREA, 0, (block(-1, window_offset=0),)),
    "an area before the file": lambda: base.SwapIn(1, AREA._replace(offset=-1), 0, (block(1),)),
    "no block bytes": lambda: base.SwapIn(1, AREA._replace(block_bytes=0), 0, (block(1),)),
    "a window that is none": lambda: base.SwapOut(1, AREA, 1, (block(1),)),
    "a place after the window": lambda: base.SwapOut(
        1, AREA, 0, (block(1, window_offset=1 << 20),)
    ),
    "a hash that is too long": lambda: base.SwapOut(1, AREA, 0, (block(1, chain_hash=bytes(33)),)),
    "an owner below 0": lambda: base.SwapOut(1, AREA, 0, (block(1, owner=-1),)),
    "a long layout": lambda: base.SwapOut(1, AREA._replace(layout="x" * 65), 0, (block(1),)),
    "freeing nothing": lambda: base.FreeSlots(1, AREA, ()),
    "freeing beyond": lambda: base.FreeSlots(1, AREA, (1, SLOTS)),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_batch_that_is_wrong_is_refused_whole(store: Client, case: str) -> None:
    fill(store)
    out(store, block(1), block(2))
    with pytest.raises(Refused) as caught:
        store.ask(WRONG[case]())
    assert caught.value.kind == FaultKind.INVALID
    assert back(store, block(1), block(2)) == OK * 2


# --- the disk -------------------------------------------------------------------------------------


class Bad(Stepped):
    """A disk that refuses some writes and some reads, by the offset."""

    def __init__(self, inner: Files) -> None:
        super().__init__(inner, ("pwrite", "pread"))
        self.bad: dict[tuple[str, int], int] = {}

    def step(self, name: str, args: tuple[Any, ...]) -> Any:
        code = self.bad.get((name, args[2] // SIZE - 2))
        if code == 0:  # takes half
            fd, data, offset = args
            self.bad[name, offset // SIZE - 2] = errno.ENOSPC
            self.bad[name, (offset + SIZE // 2) // SIZE - 2] = errno.ENOSPC
            return self.inner.pwrite(fd, data[: SIZE // 2], offset)
        if code:
            raise OSError(code, os.strerror(code))
        return super().step(name, args)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, 0])
def test_blocks_that_the_disk_refuses(code: int, window: Window) -> None:
    disk = Bad(MemoryFiles())
    with client(disk, window) as store:
        store.open(swap_bytes=SWAP_BYTES)
        blocks = fill(store)
        out(store, block(2))
        disk.bad = {("pwrite", 2): code}
        answer = store.ask(base.SwapOut(store.job(), AREA, 0, (block(1), block(2), block(3))))
        assert answer.states == OK + FAILED + OK
        assert answer.why == os.strerror(code or errno.ENOSPC)
        assert back(store, block(1), block(2), block(3)) == OK + CORRUPT + OK
        assert store.window.take(2 * SIZE, SIZE) == blocks[2], "the kernel's copy is there"
        disk.bad = {("pread", 1): errno.EIO}
        assert back(store, block(1), block(3)) == FAILED + OK
        disk.bad = {}
        assert back(store, block(1), block(3)) == OK * 2
        assert out(store, block(2, counter=3)) == OK
        assert back(store, block(2, counter=3)) == OK


def raw_file(disk: MemoryFiles) -> bytearray:
    """Return the bytes of the swap file."""
    (inode,) = [i for i, data in disk.inodes.items() if len(data) == SWAP_BYTES]
    return disk.inodes[inode]


def test_bits_that_flip_and_blocks_that_change_places(window: Window) -> None:
    disk = MemoryFiles()
    random = Random(3)
    with client(disk, window) as store:
        store.open(swap_bytes=SWAP_BYTES)
        fill(store)
        every = [block(slot) for slot in range(SLOTS)]
        out(store, *every)
        file = raw_file(disk)
        good = bytes(file)
        for _ in range(200):
            at = random.randrange(AREA.offset, SWAP_BYTES)
            file[at] ^= 1 << random.randrange(8)
            slot = (at - AREA.offset) // SIZE
            assert back(store, block(slot)) == CORRUPT
            file[:] = good
        for _ in range(50):
            one, other = (AREA.offset + SIZE * slot for slot in random.sample(range(SLOTS), 2))
            file[one : one + SIZE] = good[other : other + SIZE]
            assert back(store, block((one - AREA.offset) // SIZE)) == CORRUPT
            file[:] = good
        fill(store, 2)
        out(store, *(block(slot, counter=2) for slot in range(SLOTS)))
        file[:] = good
        again = [block(slot, counter=2) for slot in range(SLOTS)]
        assert back(store, *again) == CORRUPT * SLOTS, "rolled back"
        del file[AREA.offset + 10 * SIZE :]
        assert back(store, block(20, counter=2)) == CORRUPT, "cut"


def test_nothing_in_the_file_is_what_went_out(window: Window) -> None:
    disk = MemoryFiles()
    with client(disk, window) as store:
        store.open(swap_bytes=SWAP_BYTES)
        blocks = fill(store)
        out(store, *map(block, range(SLOTS)))
        raw = bytes(raw_file(disk))
        for one in blocks:
            assert all(one[at : at + 16] not in raw for at in range(0, SIZE, 256))
        store.window.put(0, blocks[0] * 2)
        out(store, block(0), block(1))
        raw = bytes(raw_file(disk))
        at = AREA.offset
        assert raw[at : at + 64] != raw[at + SIZE : at + SIZE + 64], (
            "equal blocks do not look equal"
        )
        free(store, *range(10, 20))
        assert not any(raw_file(disk)[at + 10 * SIZE : at + 20 * SIZE])
        assert any(raw_file(disk)[at + 9 * SIZE : at + 10 * SIZE])


def test_the_file_has_no_name_and_its_place_is_taken(tmp_path: Path, window: Window) -> None:
    with client(Files(), window) as store:
        store.open(f"{tmp_path}/s", f"{tmp_path}/k", SWAP_BYTES)
        assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["saves"]
        (fd,) = deleted_below(tmp_path)
        found = fd.stat()
        assert found.st_size == SWAP_BYTES and found.st_nlink == 0
        assert found.st_blocks * 512 >= SWAP_BYTES, "preallocated"
        fill(store)
        out(store, *map(block, range(SLOTS)))
        free(store, *range(SLOTS))
        assert not any(fd.read_bytes()[AREA.offset :])
    assert not deleted_below(tmp_path), "given back"


def deleted_below(folder: Path) -> list[Path]:
    """Return the descriptors of files that have no name any more."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            name = str(fd.readlink())
        except FileNotFoundError:  # of this list itself
            continue
        if name.startswith(str(folder)) and name.endswith("(deleted)"):
            found.append(fd)
    return found


def test_where_no_file_can_be_without_a_name(tmp_path: Path, window: Window) -> None:
    class Named(Files):
        def create_unnamed(self, folder: str) -> int:
            raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE here")

    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "s" / "swap").write_bytes(b"of a process that was killed")
    with client(Named(), window) as store:
        store.open(f"{tmp_path}/s", "", SWAP_BYTES)
        assert list((tmp_path / "s").iterdir()) == []
        fill(store)
        assert out(store, block(1)) == back(store, block(1)) == OK


def test_a_key_gives_way_to_a_new_one(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []
    real = swap.new_key

    def new_key() -> bytes:
        drawn.append(real())
        return drawn[-1]

    monkeypatch.setattr(swap, "new_key", new_key)
    with client(MemoryFiles(), window) as store:
        store.open(swap_bytes=SWAP_BYTES)
        fill(store)
        every = [block(slot) for slot in range(SLOTS)]
        monkeypatch.setattr(swap, "REKEY_BLOCKS", 10)
        out(store, *every[:30])
        assert len(drawn) == 3
        monkeypatch.setattr(swap, "REKEY_BLOCKS", 1 << 31)
        monkeypatch.setattr(swap, "REKEY_BYTES", 4 * SIZE)
        out(store, *every[30:])
        assert len(drawn) == 3 + 9 and len(set(drawn)) == len(drawn)
        out(store, block(0, owner=7, counter=2))
        assert len(drawn) == 13, "each owner has keys of their own"
        assert back(store, *every[1:]) == OK * (SLOTS - 1), "blocks keep the key they have"
        out(store, block(1, owner=7, counter=2))
        assert len(drawn) == 13
        free(store, 0, 1)
        out(store, block(0, owner=7, counter=3))
        assert len(drawn) == 14, "a key goes with the last block that it has sealed"
        free(store, *range(SLOTS))
        assert back(store, *every) == CORRUPT * SLOTS


def test_a_store_that_died_has_shredded_it(window: Window) -> None:
    disk = MemoryFiles()
    with client(disk, window) as store:
        store.open(swap_bytes=SWAP_BYTES)
        fill(store)
        out(store, block(1))
        store.link.die()
        assert not disk.open_files
        store.link.start()
        store.open(swap_bytes=SWAP_BYTES)
        assert back(store, block(1)) == CORRUPT
