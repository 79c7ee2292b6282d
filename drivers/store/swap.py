"""Swap: the disk tier. One file without a name, its keys in memory only.

A slot holds the ciphertext of a block, as many bytes as the block has, so slots are as aligned as
areas are. Nonce and tag stay in memory, with the key: what is put back into the file from another
time, place or owner does not open, and when this process is gone nothing opens. A key is its
owner's. It gives way to a new one after REKEY_BLOCKS or REKEY_BYTES, while blocks keep the key that
they went out under, and goes with the last of them.
"""

from contextlib import suppress
from dataclasses import dataclass

from drivers.store.base import (
    MAX_BLOCK_BYTES,
    MAX_BLOCKS,
    MAX_HASH,
    MAX_WORD,
    Area,
    Block,
    BlockState,
    invalid,
)
from drivers.store.faults import disk_errors, no_space
from drivers.store.files import Files
from drivers.store.seal import (
    NONCE_BYTES,
    TAG_BYTES,
    NotAuthentic,
    Scratch,
    Seal,
    bind,
    new_key,
)
from drivers.store.windows import Windows

NAME = "swap"
"""Of the file, for as long as it has one, where a file system has no files without."""
REKEY_BLOCKS = 1 << 31
REKEY_BYTES = 256 << 30
FORMAT = "llmos.swap/1"


@dataclass(slots=True)
class OwnerKey:
    """An owner's key, and what it has sealed so far."""

    owner: int
    seal: Seal
    blocks: int = 0
    bytes: int = 0
    held: int = 0  # slots with a block under it

    @property
    def spent(self) -> bool:
        return self.blocks >= REKEY_BLOCKS or self.bytes >= REKEY_BYTES


@dataclass(frozen=True, slots=True)
class Held:
    """What a slot holds, apart from its ciphertext."""

    key: OwnerKey
    nonce: bytes
    tag: bytes
    size: int


class Swap:
    """The swap file, by slots."""

    def __init__(self, files: Files, windows: Windows, folder: str, size: int) -> None:
        """Make the file, all of it allocated; NO_SPACE with what is needed and there, IO."""
        self._files = files
        self._windows = windows
        self._size = size
        self._keys: dict[int, OwnerKey] = {}
        self._held: dict[int, Held] = {}  # by the slot's first byte in the file
        self._scratch = Scratch()
        self.out_bytes = 0
        self.in_bytes = 0
        with disk_errors("make the swap file"):
            self._fd = self._unnamed(folder)
        try:
            files.allocate(self._fd, size)
        except OSError as error:
            self.close()
            raise no_space(files, folder, "a swap file", size, error) from None

    def _unnamed(self, folder: str) -> int:
        path = f"{folder}/{NAME}"
        self._files.remove(path)  # of a process that was killed just then
        try:
            return self._files.create_unnamed(folder)
        except OSError:
            fd = self._files.create(path)
            try:
                self._files.unlink(path)
            except OSError:
                self._files.close(fd)
                raise
            return fd

    def close(self) -> None:
        """Give the file back, and the keys with it."""
        self._held.clear()
        self._keys.clear()
        with suppress(OSError):
            self._files.close(self._fd)

    @property
    def num_slots(self) -> int:
        """Slots that hold a block."""
        return len(self._held)

    # --- blocks -------------------------------------------------------------------------------

    def out(self, area: Area, window: int, blocks: tuple[Block, ...]) -> tuple[bytes, str]:
        """Write blocks to slots; return their states, and what the disk said first; INVALID."""
        views = self._check(area, window, blocks)
        states, why = bytearray(), ""
        for block, view in zip(blocks, views, strict=True):
            try:
                self._out(area, block, view)
                states.append(BlockState.OK)
            except OSError as error:
                states.append(BlockState.FAILED)
                why = why or error.strerror or "an error of the disk"
        return bytes(states), why

    def _out(self, area: Area, block: Block, view: memoryview) -> None:
        place, size = _place(area, block.slot), area.block_bytes
        self._forget(place)  # whatever comes, what was there is gone
        key = self._keys.get(block.owner)
        if key is None or key.spent:
            key = self._keys[block.owner] = OwnerKey(block.owner, Seal(new_key()))
        sealed, _ = self._scratch.take(size)
        key.seal.close_into(view, _bound(area, block, place), sealed)
        key.blocks += 1
        key.bytes += size
        self._files.write(self._fd, sealed[NONCE_BYTES:-TAG_BYTES], place)
        nonce, tag = bytes(sealed[:NONCE_BYTES]), bytes(sealed[-TAG_BYTES:])
        self._held[place] = Held(key, nonce, tag, size)
        key.held += 1
        self.out_bytes += size

    def back(self, area: Area, window: int, blocks: tuple[Block, ...]) -> tuple[bytes, str]:
        """Read blocks back from slots; return as `out` does; INVALID."""
        views = self._check(area, window, blocks)
        states, why = bytearray(), ""
        for block, view in zip(blocks, views, strict=True):
            try:
                states.append(self._back(area, block, view))
            except OSError as error:
                states.append(BlockState.FAILED)
                why = why or error.strerror or "an error of the disk"
        return bytes(states), why

    def _back(self, area: Area, block: Block, view: memoryview) -> BlockState:
        place, size = _place(area, block.slot), area.block_bytes
        held = self._held.get(place)
        if held is None or held.size != size:
            return BlockState.CORRUPT
        sealed, plain = self._scratch.take(size)
        sealed[:NONCE_BYTES], sealed[-TAG_BYTES:] = held.nonce, held.tag
        if self._files.read_into(self._fd, sealed[NONCE_BYTES:-TAG_BYTES], place) != size:
            return BlockState.CORRUPT
        try:
            held.key.seal.open_into(sealed, _bound(area, block, place), plain)
        except NotAuthentic:
            return BlockState.CORRUPT
        view[:] = plain
        self.in_bytes += size
        return BlockState.OK

    def free(self, area: Area, slots: tuple[int, ...]) -> None:
        """Zero slots and forget them; IO if the disk refuses, forgotten they are all the same."""
        self._check_area(area, slots)
        for slot in slots:
            self._forget(_place(area, slot))
        with disk_errors("zero slots of the swap file"):
            for first, count in _runs(slots):
                size = count * area.block_bytes
                self._files.zero(self._fd, _place(area, first), size)

    def _forget(self, place: int) -> None:
        """Let a slot hold nothing; a key goes with the last block that it has sealed."""
        held = self._held.pop(place, None)
        if held is None:
            return
        held.key.held -= 1
        if not held.key.held and self._keys.get(held.key.owner) is held.key:
            del self._keys[held.key.owner]

    # --- checks -------------------------------------------------------------------------------

    def _check(self, area: Area, window: int, blocks: tuple[Block, ...]) -> list[memoryview]:
        """Check a batch whole; return its blocks of the window."""
        self._check_area(area, tuple(block.slot for block in blocks))
        for block in blocks:
            if len(block.chain_hash) > MAX_HASH or block.owner < 0 or block.counter < 0:
                raise invalid(f"what is bound to slot {block.slot}")
        return [
            self._windows.view(window, block.window_offset, area.block_bytes) for block in blocks
        ]

    def _check_area(self, area: Area, slots: tuple[int, ...]) -> None:
        if not 0 < area.block_bytes <= MAX_BLOCK_BYTES or area.offset < 0:
            raise invalid(f"an area at {area.offset} of blocks of {area.block_bytes} bytes")
        if max(map(len, (area.kv_dtype, area.layout, area.digest))) > MAX_WORD:
            raise invalid(f"a dtype, layout or digest of more than {MAX_WORD}")
        if not 0 < len(slots) <= MAX_BLOCKS or len(set(slots)) != len(slots):
            raise invalid(f"{len(slots)} slots, a message has 1 to {MAX_BLOCKS} different ones")
        end = _place(area, max(slots) + 1)
        if min(slots) < 0 or end > self._size:
            what = f"slots {min(slots)} to {max(slots)} end at byte {end}"
            raise invalid(f"{what}, the swap file has {self._size}")


def _place(area: Area, slot: int) -> int:
    return area.offset + slot * area.block_bytes


def _bound(area: Area, block: Block, place: int) -> bytes:
    return bind(
        FORMAT, block.owner, block.chain_hash, block.slot, place, block.counter, area.digest,
        area.kv_dtype, area.layout, area.block_bytes,
    )  # fmt: skip


def _runs(slots: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return slots as (first, count) of neighbours."""
    runs: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if runs and sum(runs[-1]) == slot:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((slot, 1))
    return runs
