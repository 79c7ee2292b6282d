"""Save jobs: one save being written, or being read. Each has its file open until it ends."""

import os
from array import array
from contextlib import suppress
from dataclasses import dataclass

from drivers.store.base import MAX_IDS, BlockState, FaultKind, SaveMeta, StoreFault, invalid
from drivers.store.faults import disk_fault, no_space
from drivers.store.files import Files
from drivers.store.savefile import (
    Facts,
    SavePlace,
    Sealer,
    pack_facts,
    place_of,
    sizes_of,
    wrap_key,
)
from drivers.store.scan import TEMPORARY
from drivers.store.seal import NotAuthentic, Scratch, Seal, new_key
from drivers.store.windows import Windows


@dataclass(frozen=True, slots=True)
class Means:
    """What jobs work with. One thread, so one scratch."""

    files: Files
    windows: Windows
    folder: str
    scratch: Scratch


class WriteJob:
    """A save that is being written, under a temporary name."""

    def __init__(self, means: Means, owner: Seal, facts: Facts, generation: int) -> None:
        """Make the file with room for all of it; NO_SPACE, IO."""
        self.facts = facts
        self.generation = generation
        self.id = os.urandom(16).hex()
        self._means = means
        self._files = means.files
        self._temporary = f"{means.folder}/{self.id}{TEMPORARY}"
        sizes = sizes_of(self.id, facts)
        key = new_key()
        self._sealer = Sealer(Seal(key), facts.owner, generation, sizes)
        self._place = place_of(sizes)
        self._ids = array("i")
        self._missing = set(range(sizes.num_blocks))
        try:
            self._fd = self._files.create(self._temporary)
        except OSError as error:
            raise disk_fault("begin a save", error) from None
        try:
            self._files.allocate(self._fd, self.file_bytes)
            wrapped = wrap_key(owner, facts.owner, key, generation, sizes)
            meta = self._sealer.close("meta", 0, pack_facts(facts))
            self._files.write(self._fd, sizes.header + wrapped + meta, 0)
        except OSError as error:
            self.abandon()
            raise no_space(self._files, means.folder, "a save", self.file_bytes, error) from None

    @property
    def named(self) -> tuple[int, str]:
        return self.facts.owner, self.facts.name

    @property
    def file_bytes(self) -> int:
        return self._place.file_bytes

    def add_ids(self, start: int, raw: bytes) -> None:
        """Take ids that go on where the last ones ended; INVALID."""
        length, given = len(self._ids), len(raw) // 4
        if len(raw) % 4 or not 0 < given <= MAX_IDS:
            raise invalid(f"{len(raw)} bytes of ids, a message has 1 to {MAX_IDS} ids")
        if start != length or length + given > self.facts.meta.length:
            what = f"ids {start} to {start + given} of {self.facts.meta.length}"
            raise invalid(f"{what}, {length} are there")
        self._ids.frombytes(raw)

    def add_blocks(self, first: int, window: int, offsets: tuple[int, ...]) -> None:
        """Seal blocks of a window and write them; INVALID, NO_SPACE, IO."""
        numbers = range(first, first + len(offsets))
        if not self._missing.issuperset(numbers):
            total = self.facts.meta.num_blocks
            raise invalid(f"blocks {first} to {numbers.stop} of {total}, or one of them twice")
        size = self.facts.meta.block_bytes
        views = [self._means.windows.view(window, offset, size) for offset in offsets]
        try:
            for number, view in zip(numbers, views, strict=True):
                sealed, _ = self._means.scratch.take(size)
                self._sealer.close_block(number, view, sealed)
                self._files.write(self._fd, sealed, self._place.block(number))
        except OSError as error:
            raise disk_fault("write a save", error) from None
        self._missing.difference_update(numbers)
        with suppress(OSError):  # a hint
            begin, end = self._place.block(first), self._place.block(numbers.stop)
            self._files.start_writing(self._fd, begin, end - begin)

    def finish(self) -> str:
        """Write what is missing and make it durable; return the temporary name; INVALID, IO."""
        if self._missing or len(self._ids) != self.facts.meta.length:
            what = f"{len(self._missing)} blocks and {self.facts.meta.length - len(self._ids)} ids"
            raise invalid(f"{what} of this save are missing")
        try:
            sealed = self._sealer.close("ids", 0, self._ids.tobytes())
            self._files.write(self._fd, sealed, self._place.ids)
            self._files.sync(self._fd)
            self.close()
        except OSError as error:
            raise disk_fault("write a save", error) from None
        return self._temporary

    def abandon(self) -> None:
        """Give the file up; what the disk refuses now, the next Open removes."""
        self.close()
        with suppress(OSError):
            self._files.remove(self._temporary)

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):  # its data was synced, or is given up
                self._files.close(fd)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a ReadJob knows of its save."""

    place: SavePlace
    sealer: Sealer
    meta: SaveMeta
    with_blocks: bool  # a stale save gives its ids only


class ReadJob:
    """A save that is being read. Its ids were all read, and are authentic, before it is one."""

    def __init__(self, means: Means, fd: int, loaded: Loaded) -> None:
        """Take over `fd`; NotAuthentic, OSError."""
        self._means = means
        self._files = means.files
        self._fd = fd
        self._loaded = loaded
        place = loaded.place
        sealed = self._files.read(fd, place.sizes.ids_bytes, place.ids)
        self._ids = loaded.sealer.open("ids", 0, sealed)

    def ids(self, start: int, count: int) -> bytes:
        """Return ids as int32; INVALID."""
        length = self._loaded.meta.length
        if not 0 < count <= MAX_IDS or not 0 <= start <= length - count:
            what = f"{count} ids from {start} on, there are {length}"
            raise invalid(f"{what}; a message has at most {MAX_IDS}")
        return self._ids[4 * start : 4 * (start + count)]

    def blocks(self, first: int, window: int, offsets: tuple[int, ...]) -> tuple[bytes, str]:
        """Read blocks into a window; return their states, and what the disk said; INVALID."""
        meta = self._loaded.meta
        if not 0 <= first <= meta.num_blocks - len(offsets):
            raise invalid(f"blocks {first} to {first + len(offsets)}, there are {meta.num_blocks}")
        views = [self._means.windows.view(window, offset, meta.block_bytes) for offset in offsets]
        why = ""
        states = bytearray()
        for number, view in enumerate(views, first):
            try:
                states.append(self._block(number, view))
            except OSError as error:
                states.append(BlockState.FAILED)
                why = why or error.strerror or "an error of the disk"
        return bytes(states), why

    def _block(self, number: int, view: memoryview) -> BlockState:
        if not self._loaded.with_blocks:
            return BlockState.CORRUPT
        place = self._loaded.place
        sealed, plain = self._means.scratch.take(len(view))
        if self._files.read_into(self._fd, sealed, place.block(number)) != len(sealed):
            return BlockState.CORRUPT
        try:
            self._loaded.sealer.open_block(number, sealed, plain)
        except NotAuthentic:
            return BlockState.CORRUPT
        view[:] = plain
        return BlockState.OK

    def close(self) -> None:
        with suppress(OSError):
            self._files.close(self._fd)


def corrupt(why: str) -> StoreFault:
    """Return the fault of a save that cannot be opened."""
    hint = "put its file back if there is a copy, or drop the save"
    return StoreFault(FaultKind.CORRUPT, f"the save cannot be opened: {why}", hint)
