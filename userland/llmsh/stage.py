"""One stage of a pipeline, ready to start: what it is, and where its input and output go.

A stage owns the file descriptors that it has been given, until it hands them to what runs it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from typing import TextIO

from syscalls.shield import Shield
from userland.exits import REFUSED, Failure, reason
from userland.llmsh.host import Child
from userland.llmsh.streams import Intake

Builtin = Callable[[list[str], TextIO], int]
"""Takes its arguments and where to write; returns its status."""
_MODES = {"<": "r", ">": "w", ">>": "a"}


@dataclass
class Host:
    """A stage that is a program."""

    words: list[str]
    path: str


@dataclass
class Inner:
    """A stage that is a builtin."""

    words: list[str]
    builtin: Builtin


@dataclass
class Model:
    """A stage that is a model call."""

    prompt: str
    context: str | None


@dataclass
class Stage:
    """A stage that is ready to start: what it is, and the files it is redirected to."""

    what: Host | Inner | Model
    redirects: list[tuple[str, str]]
    stdin: int | None = None
    stdout: int | None = None
    intake: Intake | None = None
    child: Child | None = None
    status: int = 0

    def open(self) -> None:
        """Open the files; of several for one stream the last counts."""
        for operator, path in self.redirects:
            # An interrupt that comes right after the open closes the file with its object.
            with _open(path, _MODES[operator]) as file, Shield():
                fd = os.dup(file.fileno())
                if operator == "<":
                    self._replace_stdin(fd)
                else:
                    self._replace_stdout(fd)

    def join(self, following: "Stage") -> None:
        """Connect to the next stage by a pipe, except where a file takes its place."""
        reader, writer = os.pipe()
        if self.stdout is None:
            self.stdout = writer
        else:
            os.close(writer)
        if following.stdin is None:
            following.stdin = reader
        else:
            os.close(reader)

    def _replace_stdin(self, fd: int) -> None:
        if self.stdin is not None:
            os.close(self.stdin)
        self.stdin = fd

    def _replace_stdout(self, fd: int) -> None:
        if self.stdout is not None:
            os.close(self.stdout)
        self.stdout = fd

    def close(self) -> None:
        """Let go of both ends; harmless if repeated."""
        if self.intake is not None:
            self.intake.close()
            self.intake = None
        for fd in (self.stdin, self.stdout):
            if fd is not None:
                os.close(fd)
        self.stdin = self.stdout = None


def _open(path: str, mode: str) -> FileIO:
    try:
        return FileIO(path, mode)
    except REFUSED as error:
        raise Failure(f"cannot open {path}: {reason(error)}") from None
