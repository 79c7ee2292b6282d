"""The asyncio Child; see `child` for what it is."""

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING, Any

from syscalls import abi
from syscalls.child import as_program_ended, end_unattached, reap

if TYPE_CHECKING:
    from syscalls.aio import Task


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

    async def wait(self) -> abi.WaitResult:
        """Wait until the task has ended, and take its status; its process has ended then, too."""
        if self.process is None:
            return await self._task.wait(self.pid)
        waiting = asyncio.ensure_future(self._task.wait(self.pid))
        try:
            stranger = await self._watch(waiting, self.process)
            result = await waiting
        finally:
            waiting.cancel()
        await asyncio.to_thread(reap, self.process)
        return as_program_ended(result, self.process) if stranger else result

    async def kill(self, sig: int = abi.Sig.TERM) -> None:
        """Send a signal to the task."""
        await self._task.kill(self.pid, sig)

    async def _watch(
        self, waiting: "asyncio.Future[abi.WaitResult]", process: "subprocess.Popen[bytes]"
    ) -> bool:
        """Wait for the task's end; end a task whose process ended before it said hello (True)."""
        if process.poll() is None and not await _ends_first(process.pid, waiting):
            return False
        if waiting.done():
            return False
        return await self._task.run_for(end_unattached(self._task.caller, self.pid), None)


async def _ends_first(pid: int, other: "asyncio.Future[Any]") -> bool:
    """Wait for a host process to end; False if `other` is done before."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, ended.set)
    watch = asyncio.ensure_future(ended.wait())
    try:
        await asyncio.wait((watch, other), return_when=asyncio.FIRST_COMPLETED)
        return ended.is_set()
    finally:
        watch.cancel()
        loop.remove_reader(pidfd)
        os.close(pidfd)
