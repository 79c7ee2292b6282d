"""Desk: what a command works at, the streams that it writes to and its task of the kernel.

`llmos ps` makes one desk and one task for one command; llmsh runs many commands at its own.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

import syscalls
from userland.exits import Failure, PipeClosed

if TYPE_CHECKING:
    from rich.console import Console


class Desk:
    """Streams, and a task that is made when it is first needed.

    `stdin` is what a program reads that a command starts; None: what this process reads.
    """

    shared = False
    """Whether the task is there for more than this command."""

    def __init__(
        self,
        out: TextIO,
        err: TextIO,
        task: syscalls.Task | None = None,
        address: str | None = None,
        name: str = "llmos",
        stdin: int | None = None,
    ) -> None:
        self.out = out
        self.err = err
        self.stdin = stdin
        self.address = address
        self.name = name
        self.json_errors = False
        self.color = "auto"
        self.quiet = False
        self._task = task
        self._own = task is None

    @property
    def task(self) -> syscalls.Task:
        """This program as a task; ECONNRESET if no kernel is running."""
        if self._task is None:
            from userland.running import mind_variables

            self._task = syscalls.connect(self.name, address=self.address)
            mind_variables(self._task, self.note)
        return self._task

    @property
    def has_task(self) -> bool:
        """Whether there is a task already, so that asking for it connects to nothing."""
        return self._task is not None

    def close(self) -> None:
        """End the task if the desk made it."""
        if self._own and self._task is not None:
            self._task.close()
            self._task = None

    def console(self) -> "Console":
        """Return `out` for drawing, with colours as --color, NO_COLOR or the configuration say."""
        from rich.console import Console

        color = self.color
        if color == "auto" and self.out.isatty() and "NO_COLOR" not in os.environ:
            from userland.config import read

            color = read().value("color")
        styles = {"always": True, "never": False}.get(color)
        return Console(
            file=self.out, highlight=False, force_terminal=styles,
            no_color=False if color == "always" else None,
        )  # fmt: skip

    def say(self, line: str) -> None:
        """Write one line of data."""
        with self.writing():
            self.out.write(f"{line}\n")

    def flush(self) -> None:
        """Hand over what has been written."""
        with self.writing():
            self.out.flush()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the far end of `out` may do into what a command reports."""
        try:
            yield
        except BrokenPipeError:
            raise PipeClosed from None
        except OSError as error:
            raise Failure(f"cannot write the output: {error.strerror}", exit_code=74) from None

    def note(self, line: str) -> None:
        """Write one line that is not data, unless only errors are wanted."""
        if self.quiet:
            return
        self.err.write(f"{line}\n")
        self.err.flush()

    def say_json(self, schema: str, data: Any, stream: bool = False) -> None:
        """Write one JSON document; of a stream of them, on one line and at once."""
        document = {"schema": f"llmos.{schema}/1", "data": data}
        self.say(json.dumps(document, indent=None if stream else 1))
        if stream:
            self.flush()


pass_desk = click.make_pass_decorator(Desk)


def _promise_json(context: click.Context, _: click.Parameter, wanted: bool) -> bool:
    """Errors of a command with --json are JSON too, whatever goes wrong after this."""
    desk = context.find_object(Desk)
    if wanted and desk is not None:
        desk.json_errors = True
    return wanted


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,
    callback=_promise_json,
    help="Write one JSON document.",
)
