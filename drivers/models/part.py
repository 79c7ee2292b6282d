"""The part of a file that a download has so far, kept from one run to the next.

    ROOT/.part-NAME:TAG/file          bytes from the start of the file
                        origin.json   which file they are of: URL, etag, date, length

The name begins with a dot and has no manifest, so nothing takes it for a model. `origin.json` is
written before the first byte, so bytes without it, or of another file, are worth nothing.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

FILE, ORIGIN = "file", "origin.json"
MAX_ORIGIN = 1 << 16


@dataclass(frozen=True, slots=True)
class Origin:
    """One state of a file at a server. `total` in bytes."""

    url: str
    total: int
    etag: str = ""
    modified: str = ""

    @property
    def validator(self) -> str:
        """What If-Range takes: a strong etag, else the date; "" if there is neither."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class Part:
    """The folder of a part; it may be empty or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / FILE

    def origin(self) -> Origin | None:
        """Return what the bytes are of; None if that is not known."""
        try:
            with (self.folder / ORIGIN).open("rb") as file:
                row = json.loads(file.read(MAX_ORIGIN))
            origin = Origin(**row)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        if any(type(getattr(origin, f.name)) is not f.type for f in fields(Origin)):
            return None
        return origin if self.size <= origin.total else None

    @property
    def size(self) -> int:
        """Bytes that are there."""
        try:
            return self.file.stat().st_size
        except FileNotFoundError:
            return 0

    def begin(self, origin: Origin) -> None:
        """Throw away what is there, and note what will come."""
        self.remove()
        self.folder.mkdir(mode=0o700)
        new = self.folder / f"{ORIGIN}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(origin), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.folder / ORIGIN)

    def append(self) -> BinaryIO:
        """Open the file at its end."""
        return self.file.open("ab")

    def remove(self) -> None:
        """Leave nothing."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
