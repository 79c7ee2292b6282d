"""A kernel from outside: start llmosd, wait until it serves, wait until it has gone.

A started kernel is in a session of its own, so that no Ctrl-C of the terminal reaches it, and
writes to a log file. With `tied` it stops, with grace, when the process that started it is gone,
however that ended.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import syscalls
from syscalls.abi import DeviceRow, Restore, ShutdownResult
from syscalls.address import runtime_dir
from userland.exits import Failure

PR_SET_PDEATHSIG = 1
POLL_S = 0.05
BUSY, BAD_SETUP = 75, 78
"""Exit codes of llmosd: another kernel runs there; the directory or the machine is unfit."""

Tell = Callable[[str], None]
"""Told now and then what the kernel is doing while it comes up."""


def state_dir() -> Path:
    """Return where logs, history and saves are: $LLMOS_HOME/state, else the user's own."""
    if home := os.environ.get("LLMOS_HOME"):
        return Path(home).absolute() / "state"
    from platformdirs import user_state_path

    return user_state_path("llmos")


def kernel_log() -> Path:
    """Return the log of kernels started here."""
    return state_dir() / "kernel.log"


def _open_log() -> BinaryIO:
    log = kernel_log()
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return log.open("ab")
    except OSError as error:
        raise Failure(
            f"cannot write the kernel's log {log}: {error.strerror}",
            "set LLMOS_HOME to a directory of your own",
            BAD_SETUP,
        ) from None


@dataclass(frozen=True, slots=True)
class Boot:
    """What a kernel is started with."""

    model: str
    model_dir: Path
    device: str = "cpu0"
    options: tuple[str, ...] = ()
    run_dir: Path = field(default_factory=lambda: runtime_dir(os.environ))

    @property
    def address(self) -> str:
        return f"ipc://{self.run_dir / 'kernel.sock'}"

    @property
    def command(self) -> list[str]:
        return [
            sys.executable, "-P", "-m", "kernel.main", "--run-dir", str(self.run_dir),
            "--device", self.device, "--model", self.model, "--model-dir", str(self.model_dir),
            *self.options,
        ]  # fmt: skip


def running(address: str | None = None) -> syscalls.abi.KernelRow | None:
    """Return the counters of the kernel, None if there is none; ETIMEDOUT if it hangs."""
    try:
        with syscalls.connect("llmos", address=address) as task:
            return task.kernel()
    except syscalls.ECONNRESET:
        return None


def start(boot: Boot, tell: Tell, tied: bool = False) -> int:
    """Start a kernel, wait until it serves its model, return its pid.

    Whatever interrupts the wait, no kernel is left behind.
    """
    log = kernel_log()
    with _open_log() as out:
        begin = out.tell()
        process = subprocess.Popen(
            boot.command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=_die_with_parent if tied else None,
        )
    try:
        _wait_until_up(process, boot, tell, log, begin)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    process.returncode = 0  # It is meant to outlive this object, which would warn of it.
    return process.pid


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _wait_until_up(
    process: "subprocess.Popen[bytes]", boot: Boot, tell: Tell, log: Path, begin: int
) -> None:
    while not _listening(boot):
        tell("starting the kernel")
        _still_there(process, boot, log, begin)
    with syscalls.connect("llmos", address=boot.address) as task:
        while True:
            device = task.devices()[0]
            opening = task.store().state == "opening"
            if device.state == "up" and not opening and not _restoring(task, tell):
                return
            if device.state == "failed":
                raise Failure(f"{device.device} cannot be used: {device.note}", f"see {log}")
            tell(_doing(boot, device))
            _still_there(process, boot, log, begin)


def _restoring(task: syscalls.Task, tell: Tell) -> bool:
    """Whether what the kernel before has saved is still being brought back."""
    row = task.kernel()
    if row.restore not in (Restore.READING.value, Restore.COMING.value):
        return False
    tell(f"bringing contexts back: {row.restored} of {row.restored + row.unrestored}")
    return True


def _doing(boot: Boot, device: DeviceRow) -> str:
    if device.state == "up":
        return "looking at what is saved"
    return f"loading {boot.model} on {device.device}" if device.host_pid else "starting"


def _listening(boot: Boot) -> bool:
    try:
        syscalls.connect("llmos", address=boot.address).close()
    except (syscalls.ECONNRESET, syscalls.ETIMEDOUT):
        return False
    return True


def _still_there(process: "subprocess.Popen[bytes]", boot: Boot, log: Path, begin: int) -> None:
    """Give the kernel a moment; Failure if it has ended."""
    try:
        code = process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return
    with log.open(errors="replace") as file:
        file.seek(begin)
        said = [line for line in file.read().splitlines() if line.strip()]
    why = said[-1].removeprefix("llmosd: ") if said else "it said nothing"
    if code == BUSY:
        raise Failure(why, "llmos status, llmos down", BUSY)
    raise Failure(
        f"the kernel ended while it started (exit code {code}): {why}",
        f"see {log}",
        BAD_SETUP if code == BAD_SETUP else 70,
    )


def stop(
    address: str | None, grace_s: float, save: bool = False, replace: bool = False,
    tell: Callable[[syscalls.Progress], None] | None = None,
) -> tuple[int, ShutdownResult]:  # fmt: skip
    """Ask the kernel to stop, wait until it has gone; return its pid and what it has saved."""
    task = syscalls.connect("llmos", address=address)
    try:
        pid = task.kernel().pid
        pidfd = os.pidfd_open(pid)
        try:
            saved = task.shutdown(grace_s, save, replace, tell)
        except syscalls.KernelError:
            os.close(pidfd)  # it goes on
            raise
    finally:
        task.abandon()
    wait_for_end(pidfd, grace_s + 30.0)
    return pid, saved


def wait_for_end(pidfd: int, patience_s: float) -> None:
    """Wait until a process has ended; Failure if it does not."""
    deadline = time.monotonic() + patience_s
    try:
        while not select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if time.monotonic() >= deadline:
                raise Failure(f"the kernel is still there after {patience_s:g} s", code="ETIMEDOUT")
    finally:
        os.close(pidfd)
