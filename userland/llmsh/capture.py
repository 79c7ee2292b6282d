"""$( ): what a line writes, as text.

The line runs here, in the shell's one thread and on its contexts, while a thread empties the pipe.
What it changes of variables, options and the directory is brought back, as a process of its own
would have kept it to itself. Newlines at the end go, and so do NULs, which no word can have.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from userland.exits import Failure
from userland.llmsh.builtins import Leave
from userland.llmsh.streams import Intake

if TYPE_CHECKING:
    from userland.llmsh.state import State

_MAX_DEPTH = 25


def capture(state: "State", run: Callable[[], None]) -> tuple[str, int]:
    """Return what a line writes, and its status; Failure if that is too much to hold."""
    if state.captures >= _MAX_DEPTH:
        raise Failure(f"more than {_MAX_DEPTH} $( ) within each other")
    reader, writer = os.pipe()
    intake = Intake(reader)
    try:
        try:
            with _apart(state), state.streams(None, writer, None):
                run()
        except Leave as leave:
            state.status = leave.status
        finally:
            os.close(writer)
        return intake.output().replace("\0", "").rstrip("\n"), state.status
    finally:
        intake.close()


@contextmanager
def _apart(state: "State") -> Iterator[None]:
    """Bring back what the line may change of the shell."""
    options, loops = replace(state.options), state.loops
    here = _directory()
    state.captures += 1
    state.loops = 0
    try:
        with state.variables.kept():
            yield
    finally:
        state.captures -= 1
        state.options, state.loops = options, loops
        if here is not None:
            with suppress(OSError):  # it may not be enterable any more
                os.fchdir(here)
            os.close(here)


def _directory() -> int | None:
    try:
        return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
