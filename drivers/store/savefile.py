"""Save file: the form of one save on the disk, a safetensors file in which all is ciphertext.

    8 bytes   length of the header, little-endian
    header    JSON: "__metadata__" has the format, the save's id and its sizes, then the tensors
    key       the save's data key and its generation, under the owner's key
    meta      owner, name, model and so on, under the data key
    ids       int32, all of them
    block.0   one block, and so on

Every tensor is U8: nonce, ciphertext, tag. What is bound to each: format, owner, id, generation,
its kind, its number, how many there are, and the sizes (to the key: all but what it says itself).
So whatever is cut, changed, exchanged or put back from another save does not open. The header
follows from id and sizes alone; one that differs in a byte is refused. The blocks come last: a file
that was cut has its ids.

This module knows bytes and offsets. Which file counts is a question of `catalogue`.
"""

import json
import re
import struct
from dataclasses import dataclass
from typing import Any

import msgpack

from drivers.store.base import (
    MAX_BLOCK_BYTES,
    MAX_EXTRA,
    MAX_HASH,
    MAX_LENGTH,
    MAX_NAME,
    MAX_SAVE_BLOCKS,
    MAX_WORD,
    SaveMeta,
)
from drivers.store.files import Buffer, Files
from drivers.store.seal import KEY_BYTES, OVERHEAD, NotAuthentic, Seal, bind

FORMAT = "llmos.save/1"
SUFFIX = ".safetensors"
ID = re.compile("[0-9a-f]{32}")
KEY_TENSOR = KEY_BYTES + 8 + OVERHEAD
MAX_META = MAX_NAME * 2 + MAX_HASH + MAX_EXTRA + 4096
MAX_HEADER = 4096 + 96 * MAX_SAVE_BLOCKS


class NotSound(Exception):
    """This is no save, or no longer one; the text says why, and names no user's words."""


class Newer(NotSound):
    """It is in a format that a newer version of llmos writes."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the header says: the id, and how large the sealed tensors are."""

    id: str
    meta_bytes: int
    ids_bytes: int
    num_blocks: int
    block_bytes: int

    @property
    def tensors(self) -> list[tuple[str, int]]:
        """Name and bytes of each tensor, in their order in the file."""
        first = [("key", KEY_TENSOR), ("meta", self.meta_bytes), ("ids", self.ids_bytes)]
        return first + [(f"block.{n}", self.block_bytes) for n in range(self.num_blocks)]

    @property
    def header(self) -> bytes:
        """The first bytes of the file, up to the first tensor."""
        table: dict[str, Any] = {"__metadata__": {
            "format": FORMAT, "id": self.id, "meta_bytes": str(self.meta_bytes),
            "ids_bytes": str(self.ids_bytes), "num_blocks": str(self.num_blocks),
            "block_bytes": str(self.block_bytes),
        }}  # fmt: skip
        end = 0
        for name, size in self.tensors:
            table[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
            end += size
        raw = json.dumps(table, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        return struct.pack("<Q", len(raw)) + raw

    @property
    def facts(self) -> tuple[int, ...]:
        """What is bound to every tensor of the sizes."""
        return self.meta_bytes, self.ids_bytes, self.num_blocks, self.block_bytes


@dataclass(frozen=True, slots=True)
class SavePlace:
    """Where the tensors of a file are."""

    sizes: Sizes
    data: int  # bytes before the first tensor

    @property
    def meta(self) -> int:
        return self.data + KEY_TENSOR

    @property
    def ids(self) -> int:
        return self.meta + self.sizes.meta_bytes

    def block(self, number: int) -> int:
        """Return where a block begins; that of num_blocks is the end of the file."""
        return self.ids + self.sizes.ids_bytes + number * self.sizes.block_bytes

    @property
    def file_bytes(self) -> int:
        return self.block(self.sizes.num_blocks)


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals and opens the tensors of one save."""

    seal: Seal
    owner: int
    generation: int
    sizes: Sizes

    def close(self, kind: str, index: int, plain: Buffer) -> bytes:
        return self.seal.close(plain, self._bound(kind, index))

    def open(self, kind: str, index: int, sealed: Buffer) -> bytes:
        """Return the plain text; NotAuthentic."""
        return self.seal.open(sealed, self._bound(kind, index))

    def close_block(self, number: int, plain: Buffer, sealed: memoryview) -> None:
        self.seal.close_into(plain, self._bound("block", number), sealed)

    def open_block(self, number: int, sealed: memoryview, plain: memoryview) -> None:
        """Write the plain text into a buffer; NotAuthentic."""
        self.seal.open_into(sealed, self._bound("block", number), plain)

    def _bound(self, kind: str, index: int) -> bytes:
        sizes = self.sizes
        return bind(
            FORMAT, self.owner, sizes.id, self.generation, kind, index, sizes.num_blocks,
            sizes.facts,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """What the tensor `meta` says."""

    owner: int
    name: str
    saved_unix: int
    meta: SaveMeta


# --- writing ----------------------------------------------------------------------------------


def sizes_of(id: str, facts: Facts) -> Sizes:
    """Return the sizes of a save that is to be written."""
    meta = facts.meta
    return Sizes(
        id, len(pack_facts(facts)) + OVERHEAD, 4 * meta.length + OVERHEAD, meta.num_blocks,
        meta.block_bytes + OVERHEAD,
    )  # fmt: skip


def place_of(sizes: Sizes) -> SavePlace:
    """Return where the tensors of a file of these sizes are."""
    return SavePlace(sizes, len(sizes.header))


def wrap_key(owner_seal: Seal, owner: int, key: bytes, generation: int, sizes: Sizes) -> bytes:
    """Return the tensor `key`."""
    return owner_seal.close(key + struct.pack("<Q", generation), _key_bound(owner, sizes))


def pack_facts(facts: Facts) -> bytes:
    """Return what is sealed as `meta`."""
    rows = [facts.owner, facts.name, facts.saved_unix, *facts.meta]
    raw: bytes = msgpack.packb(rows, use_bin_type=True)
    return raw


# --- reading ----------------------------------------------------------------------------------


def read_place(files: Files, fd: int, name: str) -> SavePlace:
    """Read and check the header of the file that is named `name`; NotSound, Newer, OSError."""
    start = files.read(fd, 8, 0)
    (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
    if not 2 <= length <= MAX_HEADER:
        raise NotSound(f"its header would have {length} bytes, 2 to {MAX_HEADER} are possible")
    raw = files.read(fd, length, 8)
    sizes = _sizes(raw)
    if start + raw != sizes.header:
        raise NotSound("its header is not as it was written")
    if name != sizes.id + SUFFIX:
        raise NotSound("it is the file of another save")
    return SavePlace(sizes, 8 + length)


def _sizes(raw: bytes) -> Sizes:
    try:
        said = json.loads(raw)["__metadata__"]
        form = said["format"]
        numbers = [
            _number(said[field], most)
            for field, most in (
                ("meta_bytes", MAX_META),
                ("ids_bytes", 4 * MAX_LENGTH + OVERHEAD),
                ("num_blocks", MAX_SAVE_BLOCKS),
                ("block_bytes", MAX_BLOCK_BYTES + OVERHEAD),
            )
        ]
        sizes = Sizes(str(said["id"]), *numbers)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotSound("its header cannot be read") from None
    if form != FORMAT:
        if isinstance(form, str) and re.fullmatch(r"llmos\.save/\d{1,9}", form):
            raise Newer(f"it is in the format {form}, this version reads {FORMAT}")
        raise NotSound("it is no save of llmos")
    if not ID.fullmatch(sizes.id):
        raise NotSound("its id is none")
    return sizes


def _number(text: str, most: int) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > most:
        raise ValueError
    return int(text)


def unwrap_key(owner_seal: Seal, owner: int, sealed: bytes, sizes: Sizes) -> Sealer:
    """Return what opens the tensors; NotAuthentic, which it is with another owner's key too."""
    plain = owner_seal.open(sealed, _key_bound(owner, sizes))
    (generation,) = struct.unpack("<Q", plain[KEY_BYTES:])
    return Sealer(Seal(plain[:KEY_BYTES]), owner, generation, sizes)


def _key_bound(owner: int, sizes: Sizes) -> bytes:
    return bind(FORMAT, owner, sizes.id, "key", sizes.facts)


def read_facts(files: Files, fd: int, place: SavePlace, sealer: Sealer) -> Facts:
    """Read the tensor `meta`; NotSound, OSError."""
    sealed = files.read(fd, place.sizes.meta_bytes, place.meta)
    try:
        owner, name, saved_unix, *rest = msgpack.unpackb(
            sealer.open("meta", 0, sealed), use_list=False, strict_map_key=True
        )
    except NotAuthentic:
        raise NotSound("what it is of is not as it was written") from None
    return Facts(owner, name, saved_unix, SaveMeta(*rest))


def check_words(meta: SaveMeta, name: str) -> str:
    """Return what is too long, or "" if a save can have this name and this meta."""
    limits = (
        ("a name", len(name.encode()), MAX_NAME),
        ("a model's name", len(meta.model.encode()), MAX_NAME),
        ("a digest", len(meta.digest), MAX_HASH),
        ("a dtype", len(meta.kv_dtype.encode()), MAX_WORD),
        ("a layout's numbers", len(meta.layout), 8),
        ("extra bytes", len(meta.extra), MAX_EXTRA),
        ("ids", meta.length, MAX_LENGTH),
        ("blocks", meta.num_blocks, MAX_SAVE_BLOCKS),
        ("a block's bytes", meta.block_bytes, MAX_BLOCK_BYTES),
    )
    wrong = [f"{what}: {size}, the limit is {most}" for what, size, most in limits if size > most]
    return "; ".join(wrong)
