"""run: an agent program as a task of its own.

The program is a child task and a child process, in the process group of the command: it reads and
writes what the command does, and hears the keys of the terminal itself. Every other signal that is
meant to end the command is passed on, and the command ends as the program does.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from syscalls import ECANCELED, Child, KernelError, Task
from syscalls.abi import Sig, WaitResult
from syscalls.child import reap
from userland import complete
from userland.desk import Desk, pass_desk
from userland.exits import Failure
from userland.weights import GROUP

NOT_EXECUTABLE, NOT_FOUND = 126, 127
SENT_BY_KERNEL = 0x80
"""SI_KERNEL, the si_code of a signal that a key of the terminal made: the program has it too."""
ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})


@click.command(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "allow_interspersed_args": False,
    }
)
@click.option("--name", metavar="NAME", help="The task's name in ps.  [default: the file's]")
@click.option("-g", "--group", type=GROUP, metavar="NAME", shell_complete=complete.groups,
              help="Put it into a group of tasks.")  # fmt: skip
@click.argument("file", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@pass_desk
def run(desk: Desk, name: str | None, group: str | None, file: str, args: tuple[str, ...]) -> int:
    """Run a program as a task of its own, and end as it does.

    \b
    Examples:
      llmos run agents/poet.py
      llmos run --name poet agents/poet.py --lines 4 < notes.txt

    FILE is Python (*.py, run by this Python) or an executable; what follows it is the program's.
    The program becomes the task with syscalls.connect(). The exit code is the program's own, 128+N
    if signal N ended it or `kill` ended its task, 126 if FILE cannot be run, 127 if there is none.
    """
    return start(desk, file, args, name, 0, group)


def start(
    desk: Desk, file: str, args: Sequence[str], name: str | None, nice: int,
    group: str | None = None,
) -> int:  # fmt: skip
    """Run a program as a child of the desk's task; return its exit code."""
    command = [*program(file), *args]
    task = desk.task
    if group is not None and not desk.shared:
        task.group(group)  # and what it makes: so others can be in the same
        group = None
    desk.flush()
    with passed_on() as begin:
        name = name or Path(file).name.removesuffix(".py")
        child = _spawn(task, command, name, desk.stdin, desk.out.fileno(), nice, group)
        begin(child)
        return _end(task, child)


def program(file: str) -> list[str]:
    """Return the command line that runs a file; 126 or 127 if there is none."""
    path = Path(file)
    if not path.exists():
        raise Failure(f"{file}: no such file", "llmos run --help", NOT_FOUND)
    if path.is_dir():
        raise Failure(f"{file} is a directory", "name the program in it", NOT_EXECUTABLE)
    if path.suffix == ".py":
        if not os.access(path, os.R_OK):
            raise Failure(f"{file} cannot be read", f"chmod +r {file}", NOT_EXECUTABLE)
        return [sys.executable, file]
    if not os.access(path, os.X_OK):
        raise Failure(f"{file} is not executable", f"chmod +x {file}", NOT_EXECUTABLE)
    return [str(path.absolute())]  # never looked up on the PATH


def _spawn(
    task: Task, command: list[str], name: str, stdin: int | None, out: int | None, nice: int,
    group: str | None,
) -> Child:  # fmt: skip
    try:
        # A program is born with the signals of its parent blocked, unless it lets them in again.
        return task.spawn(
            command, name=name, nice=nice, group=group,
            stdin=stdin, stdout=out, preexec_fn=_let_in,
        )  # fmt: skip
    except KernelError as error:
        if task.lost is None and error.errno.name in ("ENOENT", "EPERM"):  # of the exec, not of us
            raise Failure(error.message, exit_code=NOT_EXECUTABLE) from None
        raise


def _let_in() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _end(task: Task, child: Child) -> int:
    """Wait for the program and its task; return the exit code."""
    process = child.process
    assert process is not None
    result = _ended(task, child, process)
    if result is not None and result.reason in (Sig.KILL.name, Sig.TERM.name):
        reap(process)  # somebody has ended the task: its program has heard of it, and may not stay
        return result.status
    code = process.wait()
    return code if code >= 0 else 128 - code


def _ended(task: Task, child: Child, process: "subprocess.Popen[bytes]") -> WaitResult | None:
    """Return how the task has ended; None if the kernel has gone before it."""
    while True:
        try:
            return task.wait_beside(child.pid, process)
        except ECANCELED:
            if not _alive(task):
                return None
            process.send_signal(signal.SIGINT)  # kill -INT of the command's task: as Ctrl-C
        except KernelError:
            return None


def _alive(task: Task) -> bool:
    try:
        task.stat()
    except KernelError:
        return False
    return True


@contextmanager
def passed_on() -> Iterator[Callable[[Child], None]]:
    """Hold the signals that end a command; once it is told of the program, that gets them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    messenger: Messenger | None = None

    def begin(child: Child) -> None:
        nonlocal messenger
        assert child.process is not None
        messenger = Messenger(child.process)

    try:
        yield begin
    finally:
        if messenger is not None:
            messenger.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Messenger:
    """A thread that takes the signals that are held and gives them to a process."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._over = False
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            told = signal.sigwaitinfo(ENDING)
            if self._over:
                return
            if told.si_code != SENT_BY_KERNEL:
                self._process.send_signal(told.si_signo)

    def close(self) -> None:
        """Stop; what comes from now on is for the command."""
        self._over = True
        assert self._thread.ident is not None
        signal.pthread_kill(self._thread.ident, signal.SIGTERM)  # to that thread alone
        self._thread.join()
