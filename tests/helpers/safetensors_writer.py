"""Safetensors files by hand, sound and not."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def stored(values: Array, dtype: str) -> bytes:
    """Return the bytes of float32 values in a type of the format; what does not fit is cut off."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def entry(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, Any]:
    """Return what the header says of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file with any header: an object, or the bytes themselves."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def safetensors(tensors: Mapping[str, Array], dtype: str) -> bytes:
    """Return a sound file with these tensors, padded as the library pads it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        raw = stored(values, dtype)
        header[name] = entry(dtype, values.shape, len(data), len(data) + len(raw))
        data += raw
    text = json.dumps(header).encode()
    return file(text + b" " * (-len(text) % 8), data)
