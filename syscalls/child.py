"""A child task, and the host process that runs it if this library started one.

The kernel knows a program from its hello on. One that dies before cannot be seen there, so the
parent watches the process as well: when it ends without ever having become the task, the task is
ended too, and nobody waits forever.
"""

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from re import sub
from typing import TYPE_CHECKING, Any

from syscalls import abi
from syscalls.errors import EINVAL, ESRCH, KernelError
from syscalls.flow import Caller, Flow
from syscalls.ticket import launch

if TYPE_CHECKING:
    from syscalls.client import Task

# A program whose task has ended gets this long to end as well.
LINGER_S = 5.0


class Child:
    """A task made by `spawn` or `fork`."""

    def __init__(
        self,
        task: "Task",
        pid: int,
        ticket: bytes | None,
        process: "subprocess.Popen[bytes] | None",
    ) -> None:
        self.pid = pid
        self.ticket = ticket
        self.process = process
        self._task = task

    def wait(self) -> abi.WaitResult:
        """Wait until the task has ended, and take its status; its process has ended then, too."""
        if self.process is None:
            return self._task.wait(self.pid)
        result = self._task.wait_beside(self.pid, self.process)
        reap(self.process)
        return result

    def kill(self, sig: int = abi.Sig.TERM) -> None:
        """Send a signal to the task."""
        self._task.kill(self.pid, sig)


def start(
    task: "Task",
    program: str | Sequence[str],
    made: abi.SpawnResult | abi.ForkTaskResult,
    env: Mapping[str, str] | None,
    popen: dict[str, Any],
) -> Child:
    """Start the process of a task that was made, if `program` is a command line."""
    if isinstance(program, str):
        return Child(task, made.pid, made.ticket, None)
    try:
        process = launch(program, made.ticket, task.address, env, **popen)
    except BaseException:
        with suppress(KernelError):
            task.run(discard(task.caller, made.pid))
        raise
    return Child(task, made.pid, None, process)


def spawn(caller: Caller, args: abi.Spawn) -> Flow[abi.SpawnResult]:
    """Make the task of a child."""
    result: abi.SpawnResult = yield from caller.ask("spawn", *args)
    return result


def task_name(program: str | Sequence[str], name: str | None) -> str:
    """Return what a child is called: as its program unless that is said. EINVAL without one."""
    if not program:
        raise EINVAL("an empty command cannot be started")
    command = program if isinstance(program, str) else Path(program[0]).name
    return sub(r"[^A-Za-z0-9._-]+", "-", name or command)[:64] or "task"


def discard(caller: Caller, pid: int) -> Flow[None]:
    """End a task that has no program, and take its status."""
    yield from caller.ask("kill", pid, int(abi.Sig.KILL))
    yield from caller.ask("wait", pid)


def end_unattached(caller: Caller, pid: int) -> Flow[bool]:
    """End a task whose process has ended, unless the kernel knows the process and sees it too.

    Return whether it was ended here.
    """
    try:
        row: abi.TaskRow = yield from caller.ask("stat_task", pid)
        if row.host_pid == 0:
            yield from caller.ask("kill", pid, int(abi.Sig.KILL))
            return True
    except ESRCH:
        pass  # it has ended meanwhile
    return False


def as_program_ended(result: abi.WaitResult, process: "subprocess.Popen[bytes]") -> abi.WaitResult:
    """Return how a program ended that never became its task: the kernel knows of our kill only."""
    code = process.wait()
    return result._replace(status=code if code >= 0 else 128 - code, reason="its program ended")


def reap(process: "subprocess.Popen[bytes]") -> None:
    """Take the exit status of a process whose task has ended; kill it if it stays."""
    try:
        process.wait(LINGER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
