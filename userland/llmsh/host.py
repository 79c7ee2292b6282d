"""Host commands: found, started and waited for.

    interactive, host commands only    a process group of their own, which has the terminal
    otherwise                          children like any other, in the shell's group

There are no jobs in this version: a command that Ctrl-Z stops goes on at once.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from userland.exits import REFUSED, Failure, reason
from userland.llmsh.terminal import Terminal

NOT_EXECUTABLE = 126
NOT_FOUND = 127
_KEYS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""Signals by which the terminal stops a process."""
_SILENT = (signal.SIGINT, signal.SIGPIPE)


def find(name: str, folders: str | None = None) -> str | None:
    """Return the path of an executable, None if there is none; Failure if it cannot be run.

    `folders` takes the place of $PATH.
    """
    if "/" not in name:
        return shutil.which(name, path=folders)
    path = Path(name)
    if not path.exists():
        raise Failure(f"{name}: no such file", exit_code=NOT_FOUND)
    if path.is_dir():
        raise Failure(f"{name} is a directory", f"cd {name}", NOT_EXECUTABLE)
    if not os.access(path, os.X_OK):
        raise Failure(f"{name} is not executable", f"chmod +x {name}", NOT_EXECUTABLE)
    return name


@dataclass
class Program:
    """What is to run; `changes` are to its environment."""

    words: list[str]
    path: str
    changes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Child:
    """One process of a pipeline."""

    name: str
    process: "subprocess.Popen[bytes]"


class Group:
    """The host processes of one pipeline."""

    def __init__(self, terminal: Terminal | None, alone: bool, note: Callable[[str], None]) -> None:
        self.interrupted = False
        self._terminal = terminal
        self._own = alone and terminal is not None
        self._note = note
        self._children: list[Child] = []
        self._leader = 0

    def start(
        self, program: Program, stdin: int | None, stdout: int | None, stderr: int | None
    ) -> Child:
        """Start a process; a stream that is None is the shell's own."""
        if self._terminal is not None:
            self._terminal.unmark()
        try:
            process = subprocess.Popen(
                program.words, executable=program.path, stdin=stdin, stdout=stdout, stderr=stderr,
                env=os.environ | program.changes if program.changes else None,
                process_group=self._leader if self._own else None,
            )  # fmt: skip
        except REFUSED as error:
            name = program.words[0]
            raise Failure(f"cannot run {name}: {reason(error)}", "", NOT_EXECUTABLE) from None
        if self._own and not self._leader:
            self._leader = process.pid
            self._give()
        child = Child(program.words[0], process)
        self._children.append(child)
        return child

    def wait(self, child: Child) -> int:
        """Wait for a process; return its exit code, 128+N if signal N ended it."""
        options = os.WUNTRACED if self._terminal else 0
        while child.process.returncode is None:  # sending a signal may have found it dead
            try:
                _, status = os.waitpid(child.process.pid, options)
            except KeyboardInterrupt:
                self.interrupt()
                continue
            if os.WIFSTOPPED(status):
                self._go_on(child, os.WSTOPSIG(status))
                continue
            child.process.returncode = os.waitstatus_to_exitcode(status)
        code = child.process.returncode
        return code if code >= 0 else self._killed(child, -code)

    def interrupt(self) -> None:
        """Note that the shell was interrupted; pass it on to processes that may not have been.

        Those of the shell's group got it from the terminal, like the shell. A group of their own
        missed it if it had not been given the terminal yet; without a terminal it was no key.
        """
        self.interrupted = True
        if self._own or self._terminal is None:
            for child in self._children:
                if child.process.returncode is None:
                    child.process.send_signal(signal.SIGINT)

    def _go_on(self, child: Child, number: int) -> None:
        if number not in _KEYS:
            return  # by kill -STOP: whoever did it will want to continue it
        if number == signal.SIGTSTP:
            self._note(f"\nnot in this version: stopping a command; {child.name} goes on")
        if self._own:
            self._give()
            os.killpg(self._leader, signal.SIGCONT)
        else:
            child.process.send_signal(signal.SIGCONT)

    def _give(self) -> None:
        if self._terminal is not None:
            self._terminal.give(self._leader)

    def _killed(self, child: Child, number: int) -> int:
        if number == signal.SIGINT and self._own:
            self.interrupted = True
        if number not in _SILENT:
            self._note(f"{child.name}: {signal.strsignal(number) or f'signal {number}'}")
        return 128 + number

    def close(self) -> None:
        """Take the terminal back."""
        if self._own and self._terminal is not None:
            self._terminal.take()
