"""A real kernel for a benchmark: `python -m kernel.main` in a run directory of its own.

It is up when `booted` yields: the model is loaded. Afterwards it is stopped, and a kernel that did
not stop with exit code 0 is an error, with the end of its log.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import syscalls
from drivers.models.store import ModelStore, default_root

ROOT = Path(__file__).resolve().parents[1]
UP_S = 120.0
DOWN_S = 30.0
POLL_S = 0.02
LOG_TAIL = 2000

NULL = ("--device", "null0", "--model", "null", "--model-dir", "null:vocab=32000")


def model_dir() -> Path:
    """Return the folder of the installed smollm2."""
    return ModelStore(default_root()).find("smollm2").folder


def smollm2() -> tuple[str, ...]:
    """Return the options of a kernel that serves the real model on the CPU."""
    return ("--device", "cpu0", "--model", "smollm2", "--model-dir", str(model_dir()))


class Trouble(Exception):
    """A kernel that does not do as it should; the message has the end of its log."""


class Booted:
    """One running kernel."""

    def __init__(self, process: "subprocess.Popen[bytes]", run_dir: Path, log: Path) -> None:
        self.pid = process.pid
        self.host_pid = 0
        self.address = f"ipc://{run_dir / 'kernel.sock'}"
        self._process = process
        self._socket = run_dir / "kernel.sock"
        self._log = log

    def connect(self, name: str = "bench") -> syscalls.Task:
        """Return a session."""
        return syscalls.connect(name=name, address=self.address)

    def wait_up(self) -> None:
        """Wait until the model is loaded."""
        self._await(self._listening, "listens")
        with self.connect() as task:
            self._await(lambda: self._device_up(task), "has its device up")

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + UP_S
        while not condition():
            if self._process.poll() is not None:
                raise self.trouble(f"ended with {self._process.returncode} before it {what}")
            if time.monotonic() > deadline:
                raise self.trouble(f"not within {UP_S:g} s: it {what}")
            time.sleep(POLL_S)

    def _listening(self) -> bool:
        with socket.socket(socket.AF_UNIX) as door:
            return door.connect_ex(str(self._socket)) == 0

    def _device_up(self, task: syscalls.Task) -> bool:
        device = task.devices()[0]
        if device.state == "failed":
            raise self.trouble(f"cannot use {device.device}: {device.note}")
        self.host_pid = device.host_pid
        return device.state == "up"

    def stop(self) -> None:
        """Stop it, and see that it goes as it should."""
        self._process.send_signal(signal.SIGTERM)
        pidfd = os.pidfd_open(self.pid)
        try:
            ended, _, _ = select.select([pidfd], [], [], DOWN_S)
        finally:
            os.close(pidfd)
        if not ended:
            raise self.trouble(f"not down {DOWN_S:g} s after SIGTERM")
        if self._process.wait() != 0:
            raise self.trouble(f"ended with {self._process.returncode}")

    def trouble(self, what: str) -> Trouble:
        """Return an error with the end of the log."""
        return Trouble(f"the kernel {what}; its log ends:\n{self._log.read_text()[-LOG_TAIL:]}")


@contextmanager
def booted(*options: str) -> Iterator[Booted]:
    """Run a kernel with these options."""
    with TemporaryDirectory(prefix="llmos-bench-") as home:
        run_dir, log = Path(home) / "run", Path(home) / "kernel.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "kernel.main", "--run-dir", str(run_dir), *options],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,  # Ctrl-C is for us, who then stop it
            )  # fmt: skip
        kernel = Booted(process, run_dir, log)
        try:
            kernel.wait_up()
            yield kernel
            kernel.stop()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
