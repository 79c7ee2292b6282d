"""A real llmosd in a directory of its own, and what it must leave behind: nothing."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

import syscalls

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0


def eventually(condition: Callable[[], Any], what: str = "", patience: float = PATIENCE_S) -> Any:
    """Return the condition's value once it is true; poll, with an end."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience} s: {what}")
        os.sched_yield()


def listening(run_dir: Path) -> bool:
    """Somebody accepts connections (a socket file alone may be a dead kernel's)."""
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.connect(str(run_dir / "kernel.sock"))
        except OSError:
            return False
        return True


class Daemon:
    """One running kernel."""

    def __init__(self, run_dir: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.run_dir = run_dir
        self.process = process
        self.log = log
        self.address = f"ipc://{run_dir / 'kernel.sock'}"

    def connect(self, name: str = "test", **options: Any) -> syscalls.Task:
        return syscalls.connect(name=name, address=self.address, **options)

    def host_pid(self, patience: float = PATIENCE_S) -> int:
        """The pid of the driver host, once it is up."""
        with self.connect("host-pid") as task:
            return eventually(
                lambda: next((d.host_pid for d in task.devices() if d.state == "up"), 0),
                f"device up; log: {self.log.read_text()[-2000:]}",
                patience,
            )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the kernel and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def command(run_dir: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "kernel.main", "--run-dir", str(run_dir), *options]


NULL = ("--device", "null0", "--model", "null", "--num-blocks", "4096", "--model-dir")


def keeping(home: Path) -> tuple[str, ...]:
    """Return the options of a kernel that keeps saves."""
    return "--state-dir", str(home / "state"), "--keys-dir", str(home / "keys")


@contextmanager
def daemon(
    home: Path,
    *options: str,
    builtin: str = "null:vocab=251",
    cwd: Path = ROOT,
    patience: float = PATIENCE_S,
) -> Iterator[Daemon]:
    """Run a kernel on the null driver (or as `options` say); afterwards nothing may be left.

    `patience` is how long its model may take to load.
    """
    run_dir, log = home / "run", home / "kernel.log"
    arguments = options or (*NULL, builtin)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(run_dir, *arguments), cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    kernel = Daemon(run_dir, process, log)
    try:
        eventually(lambda: listening(run_dir) or process.poll() is not None, "socket")
        assert process.poll() is None, log.read_text()
        kernel.host_pid(patience)
        yield kernel
        if process.poll() is None:
            assert kernel.stop() == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    eventually(lambda: not session_members(process.pid), "every process gone", 5)
    assert not (run_dir / "kernel.sock").exists() or process.returncode < 0
    assert "Traceback" not in log.read_text(), log.read_text()


def processes_of(home: Path) -> list[psutil.Process]:
    """Processes that were started with this LLMOS_HOME."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LLMOS_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def session_members(session: int) -> list[psutil.Process]:
    """Processes of the session that the kernel leads (its driver hosts)."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members
