"""MappedFile: a model's file as read-only memory, from opening to closing. Torch-free."""

import mmap
import os
from pathlib import Path
from typing import Self

from drivers.models.errors import FETCH, ModelError


class MappedFile:
    """An open file of at least `least` bytes, which is what `head` has. A context manager.

    ModelError ENOENT if it cannot be read, ECORRUPT if it is shorter. Nothing else is looked at.
    """

    def __init__(self, path: Path, least: int, head: str) -> None:
        self.path = path
        try:
            if not path.is_file():  # opening a pipe would wait
                raise ModelError("ENOENT", f"cannot read {path.name}: it is no file", FETCH)
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < least:
                    what = f"{path.name} has {size} bytes, {head} has {least}"
                    raise ModelError("ECORRUPT", what, FETCH)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            what = f"cannot read {path.name}: {error.strerror}"
            raise ModelError("ENOENT", what, FETCH) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file, unless an array still uses it: then the last of them does."""
        try:
            self._map.close()
        except BufferError:
            pass
