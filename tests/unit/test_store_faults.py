"""A disk that fails: each operation of each scenario in turn, once and from then on, in every way.

Whatever fails, the store lives and says so; what was answered stays; what was not is as before or
as it was to be; no file stays open; and a store that is opened on the disk afterwards is sound."""

import errno
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from drivers.store.base import BlockState, FaultKind, SaveState
from drivers.store.files import Files
from tests.helpers.disks import FailingFiles, MemoryFiles, Stepped, crashes
from tests.helpers.store_client import (
    OWNER,
    Client,
    Content,
    Refused,
    Window,
    client,
    content,
)

OTHER = OWNER + 1
CODES = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, "short")
Named = tuple[int, str]
Names = dict[Named, Content]


@pytest.fixture(scope="module")
def window() -> Iterator[Window]:
    made = Window()
    yield made
    made.close()


class Teller:
    """Asks for one thing after the other, and keeps what may be there under each name."""

    def __init__(self, store: Client) -> None:
        self.store = store
        self.possible: dict[Named, set[Content | None]] = {(OWNER, "mine"): {content(0)}}
        self.refused: list[Refused] = []

    def save(self, name: str, what: Content, owner: int = OWNER) -> None:
        self._attempt(lambda: self.store.save(name, what, owner), (owner, name), what)

    def drop(self, name: str) -> None:
        self._attempt(lambda: self.store.drop(name), (OWNER, name), None)

    def _attempt(self, do: Callable[[], object], named: Named, then: Content | None) -> None:
        try:
            do()
            self.possible[named] = {then}
        except Refused as refused:
            self.refused.append(refused)
            self.possible.setdefault(named, {None}).add(then)

    def fits(self, found: Names) -> bool:
        """Whether these saves may be there."""
        named = self.possible.keys() | found.keys()
        return all(found.get(one) in self.possible.get(one, {None}) for one in named)


def story(teller: Teller) -> None:
    """Replace, save, save as another owner, twice, drop."""
    teller.save("mine", content(1))
    teller.save("more", content(2))
    teller.save("mine", content(3), OTHER)
    teller.save("more", content(4), OTHER)
    teller.drop("mine")


def held(store: Client) -> Names:
    """Return what can be loaded; it must be whole."""
    found: Names = {}
    for owner in (OWNER, OTHER):
        for row in store.rows(owner):
            loaded = store.load(row.name, owner)
            assert loaded.whole and loaded.state == SaveState.CURRENT
            found[owner, row.name] = loaded.content
    return found


def run(
    before: MemoryFiles, window: Window, at: int, code: int | str, forever: bool, cuts: int = 0
) -> bool:
    """Run the story on a disk that fails; return whether it has failed at all.

    With `cuts`, the power fails as well, right after it, in that many ways.
    """
    disk = before.copy()
    failing = FailingFiles(disk, at, code, forever)
    with client(failing, window) as store:
        teller = Teller(store)
        try:
            store.open()
        except Refused as refused:
            assert refused.kind != FaultKind.KEY_LOST, "a disk that fails is no key that is lost"
            teller.refused.append(refused)
        else:
            story(teller)
            if not forever and failing.hit:
                assert teller.fits(held(store)), "the store goes on"
        for fault in (refused.fault for refused in teller.refused):
            assert fault.hint and "Traceback" not in fault.message
        if failing.hit and code != errno.EINTR:
            full = code in (errno.ENOSPC, errno.EDQUOT, "short")
            kinds = {refused.kind for refused in teller.refused}
            assert kinds <= {
                FaultKind.NO_SPACE if full else FaultKind.IO, FaultKind.IO, FaultKind.UNSURE,
                FaultKind.CORRUPT, FaultKind.NOT_FOUND,
            }  # fmt: skip
    assert not disk.open_files, "a descriptor is left"
    for _, cut in crashes(before, disk.log, Random(at), cuts, len(disk.log)) if cuts else ():
        with client(cut, window) as store:
            assert not store.open().num_damaged
            assert teller.fits(held(store))
    with client(disk, window) as store:
        opened = store.open()
        assert not opened.num_damaged, opened
        found = held(store)
        assert teller.fits(found)
        store.save("mine", content(8))
        assert store.load("mine").content == content(8)
    return failing.hit


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
def test_every_operation_fails(code: int | str, forever: bool, window: Window) -> None:
    before = MemoryFiles()
    with client(before, window) as store:
        store.open()
        store.save("mine", content(0))
    before = before.copy()
    at = 1
    while run(before, window, at, code, forever):
        at += 1
    assert at > 60, "the story has that many operations"


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
def test_an_operation_fails_and_then_the_power(forever: bool, window: Window) -> None:
    before = MemoryFiles()
    with client(before, window) as store:
        store.open()
        store.save("mine", content(0))
    before = before.copy()
    at = 1
    while run(before, window, at, errno.EIO, forever, cuts=12):
        at += 1


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])
def test_the_first_boot_fails(forever: bool, window: Window) -> None:
    """Keys are made or not; what is made is never made again, and nothing is half there."""
    at = 1
    while True:
        disk = MemoryFiles()
        failing = FailingFiles(disk, at, errno.EIO, forever)
        with client(failing, window) as store:
            try:
                store.open(swap_bytes=4096)
            except Refused as refused:
                assert refused.kind == FaultKind.IO
            root, hit = disk.names_of.get("/keys/root.key"), failing.hit
            if not forever and hit:
                store.link.kill()
                store.link.start()
                store.open(swap_bytes=4096)
        assert not disk.open_files
        with client(disk, window) as store:
            store.open(swap_bytes=4096)
            assert root is None or disk.names_of["/keys/root.key"] == root
        if not hit:
            break
        at += 1
    assert at > 15


# --- fsync ----------------------------------------------------------------------------------------


class LyingSync(MemoryFiles):
    """An fsync that fails once and has dropped what it was to write; the next one succeeds."""

    lies = 0

    def sync(self, fd: int) -> None:
        if self.lies == 1:
            self.inodes[self._open[fd]][:] = bytes(len(self.inodes[self._open[fd]]))
            self.lies = 2
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)


def test_a_failed_fsync_is_never_asked_again(window: Window) -> None:
    disk = LyingSync()
    with client(disk, window) as store:
        store.open()
        store.save("name", content(0))
        disk.lies = 1
        before = len(disk.log)
        with pytest.raises(Refused) as caught:
            store.save("name", content(1))
        assert caught.value.kind == FaultKind.IO and disk.lies == 2
        assert not [op for op in disk.log[before:] if op[0] == "sync"]
        assert store.load("name").content == content(0)
        store.save("name", content(2))
    with client(disk, window) as store:
        store.open()
        assert store.load("name").content == content(2)


# --- space ----------------------------------------------------------------------------------------


def test_no_room_for_a_save_is_told_when_it_begins(window: Window) -> None:
    disk = MemoryFiles()
    with client(disk, window) as store:
        store.open()
        disk.room = 1000
        with pytest.raises(Refused) as caught:
            store.begin("name", content(1, num_blocks=20))
        fault = caught.value.fault
        assert (
            fault.kind == FaultKind.NO_SPACE and fault.needed > 20 * 96 and fault.available == 1000
        )
        assert f"{fault.needed:,}" in fault.message and "1,000" in fault.message
        assert not store.rows() and not [name for name in disk.names_of if ".tmp" in name]


def test_no_room_for_the_swap_file_is_told_when_it_is_made(window: Window) -> None:
    disk = MemoryFiles(room=1 << 20)
    with client(disk, window) as store:
        with pytest.raises(Refused) as caught:
            store.open(swap_bytes=1 << 21)
        fault = caught.value.fault
        assert (fault.kind, fault.needed, fault.available) == (FaultKind.NO_SPACE, 1 << 21, 1 << 20)
        store.open(swap_bytes=1 << 20)


# --- reading --------------------------------------------------------------------------------------


class BadSectors(Stepped):
    """A disk on which some of the reads fail."""

    def __init__(self, inner: Files) -> None:
        super().__init__(inner, ("pread",))
        self.bad: set[int] = set()

    def step(self, name: str, args: tuple[Any, ...]) -> Any:
        if self.count in self.bad:
            raise OSError(errno.EIO, "Input/output error")
        return super().step(name, args)


def test_a_block_that_cannot_be_read_is_one_block(window: Window) -> None:
    disk = BadSectors(MemoryFiles())
    with client(disk, window) as store:
        store.open()
        store.save("name", content(1, num_blocks=3))
        before = disk.count
        assert store.load("name").whole
        reads = disk.count - before
        disk.bad = {disk.count + reads - 1}  # the last block but one
        loaded = store.load("name")
        assert list(loaded.states) == [BlockState.OK, BlockState.FAILED, BlockState.OK]
        assert loaded.ids == content(1, num_blocks=3).ids
        assert loaded.blocks[2] == content(1, num_blocks=3).blocks[2]


def test_ids_that_cannot_be_read_are_no_save(window: Window) -> None:
    disk = BadSectors(MemoryFiles())
    with client(disk, window) as store:
        store.open()
        store.save("name", content(1, num_blocks=3))
        before = disk.count
        assert store.load("name").whole
        disk.bad = {disk.count + (disk.count - before) - 3}
        with pytest.raises(Refused) as caught:
            store.load("name")
        assert caught.value.kind == FaultKind.IO
        assert store.load("name").whole, "the next time"
