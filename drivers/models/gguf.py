"""GGUF files: an mmap reader that trusts nothing in them.

Every count, length, offset and type is checked against the bytes that are really there before it
is used; what does not hold is ModelError ECORRUPT, naming the field, the number and the limit. No
allocation depends on a number from the file alone, and metadata may take only so many items and
bytes, so opening is quick whatever the file says. Versions 2 and 3, little-endian.

The `gguf` package's own reader takes seconds to open a file; from it we take only the arithmetic
of dequantization, and the table of block sizes.
"""

import mmap
from collections.abc import Iterator
from math import prod
from pathlib import Path
from struct import Struct, unpack_from
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from drivers.models.errors import FETCH, ModelError, short
from drivers.models.mapped import MappedFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 4096
MAX_TENSORS = 65_536
MAX_NAME = 256
MAX_DIMS = 4
MAX_ALIGNMENT = 65_536
MAX_STRING = 4 << 20
"""Bytes of one string: chat templates are the long ones."""
MAX_ITEMS = 8 << 20
"""Items of all arrays together: a large vocabulary with merges, scores and types has 2 million."""

_SCALARS: dict[int, Struct] = {
    0: Struct("<B"), 1: Struct("<b"), 2: Struct("<H"), 3: Struct("<h"), 4: Struct("<I"),
    5: Struct("<i"), 6: Struct("<f"), 7: Struct("<?"), 10: Struct("<Q"), 11: Struct("<q"),
    12: Struct("<d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_HEADER_BYTES = 24


class Tensor(NamedTuple):
    """One tensor of the file. `shape` is in numpy's order (slowest first)."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int  # from the start of the file
    nbytes: int


class GgufFile(MappedFile):
    """An open file: `metadata` by key, `tensors` by name. A context manager."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _HEADER_BYTES, "a GGUF header")
        try:
            cursor = _Cursor(self._map, path.name)
            num_tensors, num_keys = _header(cursor)
            self.metadata: dict[str, Any] = dict(_metadata(cursor, num_keys))
            infos = list(_tensor_infos(cursor, num_tensors))
            self.tensors: dict[str, Tensor] = _place(cursor, infos, self.metadata)
        except BaseException:
            self.close()
            raise

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return the stored bytes of a tensor, without a copy."""
        tensor = self._tensor(name)
        return np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.offset)

    def dequantize(self, name: str, first: int = 0, end: int | None = None) -> NDArray[np.float32]:
        """Return a tensor, or a part along its first axis, in float32 and numpy's order.

        NotImplementedError for a type that the library does not know to dequantize.
        """
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self._tensor(name)
        kind, shape = GGMLQuantizationType[tensor.type_name], tensor.shape
        lines = shape if len(shape) > 1 else (1, *shape)
        data = self.raw(name).reshape(lines[0], prod(lines[1:-1]), -1)
        part = slice(first, end) if len(shape) > 1 else slice(None)
        rows = data[part].reshape(-1, data.shape[-1])
        values = dequantize(rows, kind) if kind.name != "F32" else rows.view(np.float32)
        # a copy of what lies in the file, so that the result may be written to
        whole = values.astype(np.float32, copy=kind.name == "F32").reshape(-1, *lines[1:])
        return whole if len(shape) > 1 else whole[0, first:end]

    def _tensor(self, name: str) -> Tensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ModelError("ECORRUPT", f"{self.path.name} has no tensor {name}", FETCH)
        return tensor


class _Cursor:
    """A position in the bytes; every read is checked against their end."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data = data
        self.name = name
        self.at = 0
        self.end = len(data)
        self.items = 0

    def corrupt(self, what: str) -> NoReturn:
        raise ModelError("ECORRUPT", f"{self.name}: {what}", FETCH)

    def need(self, size: int, what: str) -> None:
        if size > self.end - self.at:
            left = self.end - self.at
            self.corrupt(f"{what} needs {size} bytes at {self.at}, the file has {left} more")

    def scalar(self, kind: int, what: str) -> Any:
        form = _SCALARS[kind]
        self.need(form.size, what)
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def u32(self, what: str) -> int:
        return int(self.scalar(4, what))

    def u64(self, what: str) -> int:
        return int(self.scalar(10, what))

    def string(self, what: str, limit: int = MAX_STRING) -> str:
        size = self.u64(f"length of {what}")
        if size > limit:
            self.corrupt(f"{what} has {size} bytes, the limit is {limit}")
        self.need(size, what)
        raw = self.data[self.at : self.at + size]
        self.at += size
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.corrupt(f"{what} is not UTF-8")

    def array(self, what: str) -> list[Any]:
        kind, count = self.u32(f"type of {what}"), self.u64(f"length of {what}")
        self.items += count
        if self.items > MAX_ITEMS:
            self.corrupt(f"{what} has {count} items, the limit is {MAX_ITEMS} in all arrays")
        if kind == _STRING:
            self.need(8 * count, what)
            return self._strings(count, what)
        if kind == _ARRAY:
            self.corrupt(f"{what} is an array of arrays, which no known key is")
        if kind not in _SCALARS:
            self.corrupt(f"{what} is an array of type {kind}, which is not known")
        size = _SCALARS[kind].size
        self.need(size * count, what)
        values: list[Any] = np.frombuffer(self.data, _SCALARS[kind].format, count, self.at).tolist()
        self.at += size * count
        return values

    def _strings(self, count: int, what: str) -> list[str]:
        data, at, end = self.data, self.at, self.end
        values = []
        for index in range(count):  # 50,000 tokens: kept tight
            if end - at < 8:
                self.corrupt(f"{what} ends at item {index} of {count}")
            (size,) = unpack_from("<Q", data, at)
            at += 8
            if size > MAX_STRING or size > end - at:
                limit = min(MAX_STRING, end - at)
                self.corrupt(f"item {index} of {what} has {size} bytes, {limit} are possible")
            try:
                values.append(data[at : at + size].decode())
            except UnicodeDecodeError:
                self.corrupt(f"item {index} of {what} is not UTF-8")
            at += size
        self.at = at
        return values

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what)
        if kind not in _SCALARS:
            self.corrupt(f"{what} has type {kind}, which is not known")
        return self.scalar(kind, what)


def _header(cursor: _Cursor) -> tuple[int, int]:
    if cursor.data[:4] != MAGIC:
        cursor.corrupt("it does not begin with GGUF")
    cursor.at = 4
    version = cursor.u32("version")
    if version not in VERSIONS:
        what = f"{cursor.name} is GGUF version {version}, known are 2 and 3, little-endian"
        raise ModelError("ENOTSUP", what, "convert it with llama.cpp's tools")
    num_tensors, num_keys = cursor.u64("tensor count"), cursor.u64("key count")
    if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
        cursor.corrupt(
            f"{num_tensors} tensors and {num_keys} keys, the limits are {MAX_TENSORS}, {MAX_KEYS}"
        )
    return num_tensors, num_keys


def _metadata(cursor: _Cursor, count: int) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for _ in range(count):
        key = cursor.string("a key", MAX_NAME)
        if key in seen:
            cursor.corrupt(f"key {short(key)} is there twice")
        seen.add(key)
        yield key, cursor.value(cursor.u32(f"type of {short(key)}"), short(key))


def _tensor_infos(cursor: _Cursor, count: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    for _ in range(count):
        name = cursor.string("a tensor's name", MAX_NAME)
        shown = short(name)
        dims = cursor.u32(f"dimensions of {shown}")
        if not 1 <= dims <= MAX_DIMS:
            cursor.corrupt(f"tensor {shown} has {dims} dimensions, 1 to {MAX_DIMS} are possible")
        shape = tuple(cursor.u64(f"shape of {shown}") for _ in range(dims))
        yield name, shape[::-1], cursor.u32(f"type of {shown}"), cursor.u64(f"offset of {shown}")


def _place(
    cursor: _Cursor, infos: list[tuple[str, tuple[int, ...], int, int]], metadata: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors with their places, each inside the file and none over another."""
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment % 8:
        cursor.corrupt(f"alignment {short(alignment)} is no multiple of 8 up to {MAX_ALIGNMENT}")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, shape, kind, offset in infos:
        if name in tensors:
            cursor.corrupt(f"tensor {short(name)} is there twice")
        type_name, nbytes = _size(cursor, name, shape, kind)
        if offset % alignment or start + offset + nbytes > cursor.end:
            cursor.corrupt(
                f"tensor {short(name)} lies at {start + offset} and needs {nbytes} bytes; "
                f"the file has {cursor.end}, its alignment is {alignment}"
            )
        tensors[name] = Tensor(name, shape, type_name, start + offset, nbytes)
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            cursor.corrupt(f"tensor {short(tensor.name)} at {tensor.offset} lies over another")
        end = tensor.offset + tensor.nbytes
    return tensors


def _size(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int) -> tuple[str, int]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        known = GGMLQuantizationType(kind)
    except ValueError:
        cursor.corrupt(f"tensor {short(name)} has type {kind}, which is not known")
    per_block, block_bytes = GGML_QUANT_SIZES[known]
    if 0 in shape or shape[-1] % per_block:
        cursor.corrupt(f"tensor {short(name)} of type {known.name} cannot have shape {shape}")
    # Python's integers do not overflow: a huge product is just more than the file has.
    return known.name, prod(shape) // per_block * block_bytes
