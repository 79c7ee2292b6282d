"""Safetensors files: an mmap reader that trusts nothing in them. Torch-free.

    8 bytes   length of the header, little-endian
    header    JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ..}
    data      the tensors, each from begin to end, counted from here

The tensors must cover the data exactly, none over another and nothing between or behind them, as
the format demands. What does not hold is ModelError ECORRUPT, naming the tensor, the field and the
byte; a type that we cannot compute with is ENOTSUP. The `safetensors` package would check much of
this too; it hands out tensors of torch only for types that torch knows, and says less of what is
wrong.

Source: the format's description in the README of github.com/huggingface/safetensors.
"""

import json
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from drivers.models.errors import FETCH, ModelError, short
from drivers.models.json_object import parse_object
from drivers.models.mapped import MappedFile

MAX_HEADER = 16 << 20
"""Bytes of a header; of a large model it has less than one million."""
MAX_TENSORS = 65_536
MAX_NAME = 256
MAX_DIMS = 8
ITEMS_PER_TENSOR = 8 + MAX_DIMS
METADATA = "__metadata__"
_LENGTH = 8

BUILT = {"F32": 4, "F16": 2, "BF16": 2}
"""Types that are read, with the bytes of an element."""
OTHERS = frozenset([
    "BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F64", "C64",
    "F4", "F6_E2M3", "F6_E3M2", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
])  # fmt: skip


class StoredTensor(NamedTuple):
    """One tensor of a file. `shape` is in numpy's order (slowest first)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int  # from the start of the file
    nbytes: int


class SafetensorsFile(MappedFile):
    """An open file: `tensors` by name. A context manager."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _LENGTH, "the length of the header alone")
        try:
            self.tensors = self._read()
        except BaseException:
            self.close()
            raise

    def float32(self, name: str, first: int, end: int) -> NDArray[np.float32]:
        """Return a copy, in float32, of part of a tensor along its first axis."""
        tensor = self.tensors[name]
        shape = (end - first, *tensor.shape[1:])
        skipped = first * prod(tensor.shape[1:]) * BUILT[tensor.dtype]
        stored = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[tensor.dtype]
        values = np.frombuffer(self._map, stored, prod(shape), tensor.offset + skipped)
        if tensor.dtype == "BF16":  # the upper half of a float32
            wide = values.astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32).reshape(shape)
        return values.astype(np.float32).reshape(shape)

    # --- the header -----------------------------------------------------------------------------

    def _corrupt(self, what: str) -> NoReturn:
        raise ModelError("ECORRUPT", f"{self.path.name}: {what}", FETCH)

    def _read(self) -> dict[str, StoredTensor]:
        header, start = self._header()
        if len(header) > MAX_TENSORS + 1:
            self._corrupt(f"{len(header)} tensors, the limit is {MAX_TENSORS}")
        self._check_metadata(header.pop(METADATA, {}))
        tensors = {name: self._tensor(name, entry, start) for name, entry in header.items()}
        self._check_places(sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)), start)
        return tensors

    def _header(self) -> tuple[dict[str, Any], int]:
        """Return the header, and where the data begins."""
        size = int.from_bytes(self._map[:_LENGTH], "little")
        if size > MAX_HEADER:
            self._corrupt(f"the length at byte 0 is {size}, the limit of a header is {MAX_HEADER}")
        start = _LENGTH + size
        if start > len(self._map):
            left = len(self._map) - _LENGTH
            self._corrupt(f"the length at byte 0 is {size}, the file has {left} more bytes")
        limit = MAX_TENSORS * ITEMS_PER_TENSOR
        header = parse_object(self._map[_LENGTH:start], self.path.name, limit, _LENGTH)
        return header, start

    def _check_metadata(self, metadata: Any) -> None:
        if not isinstance(metadata, dict) or not all(
            isinstance(value, str) for value in metadata.values()
        ):
            self._corrupt(f"{METADATA} is {short(metadata)}, not texts by name")

    def _tensor(self, name: str, entry: Any, start: int) -> StoredTensor:
        def wrong(what: str, code: str = "ECORRUPT", hint: str = FETCH) -> ModelError:
            spelled = json.dumps(name, ensure_ascii=False).encode(errors="replace")
            at = max(self._map.find(spelled, _LENGTH, start), _LENGTH)
            where = f"{self.path.name}: tensor {short(name)} in the header at byte {at}"
            return ModelError(code, f"{where}: {what}", hint)

        if len(name) > MAX_NAME:
            raise wrong(f"a name of {len(name)} letters, the limit is {MAX_NAME}")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise wrong(f"it is {short(entry)}, not dtype, shape and data_offsets")
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or (dtype not in BUILT and dtype not in OTHERS):
            raise wrong(f"dtype {short(dtype)} is not known")
        if not _counts(shape) or len(shape) > MAX_DIMS:
            raise wrong(f"shape {short(shape)} is not up to {MAX_DIMS} sizes")
        if not _counts(place) or len(place) != 2 or place[0] > place[1]:
            raise wrong(f"data_offsets {short(place)} are no begin and end")
        begin, end = place
        if start + end > len(self._map):
            size = len(self._map) - start
            raise wrong(f"data_offsets {place}, there are {size} bytes of data from byte {start}")
        if dtype not in BUILT:
            raise wrong(f"dtype {dtype} is not built", "ENOTSUP", f"built are {', '.join(BUILT)}")
        nbytes = prod(shape) * BUILT[dtype]  # Python's integers do not overflow
        if nbytes != end - begin:
            taken = f"shape {short(shape)} of {dtype} takes {short(nbytes)} bytes"
            raise wrong(f"{taken}, data_offsets {place} have {end - begin}")
        return StoredTensor(name, tuple(shape), dtype, start + begin, nbytes)

    def _check_places(self, tensors: list[StoredTensor], end: int) -> None:
        """Refuse tensors over each other, and bytes that belong to none: they could hide things."""
        for tensor in tensors:
            if tensor.offset != end:
                where = "over another" if tensor.offset < end else f"behind a hole from byte {end}"
                self._corrupt(f"tensor {short(tensor.name)} at byte {tensor.offset} lies {where}")
            end = tensor.offset + tensor.nbytes
        if end != len(self._map):
            size = len(self._map)
            self._corrupt(f"no tensor has the bytes from {end} on, the file has {size}")


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 64 for value in values
    )
