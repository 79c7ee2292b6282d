"""One stage of a pipeline, ready to start: what it is, and where its streams go.

A stage owns the file descriptors that it has been given, until it hands them to what runs it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from syscalls.shield import Shield
from userland.asking import Question
from userland.llmsh.host import Child, Program
from userland.llmsh.redirects import opened
from userland.llmsh.streams import Intake

Builtin = Callable[[list[str], TextIO], int]
"""Takes its arguments and where to write; returns its status."""


@dataclass
class Inner:
    """A stage that is a builtin."""

    words: list[str]
    builtin: Builtin


@dataclass
class Model:
    """A stage that is a model call."""

    question: Question


@dataclass
class Block:
    """A stage that is a compound."""

    run: Callable[[], int]


@dataclass
class Stage:
    """A stage that is ready to start: what it is, and the redirections (stream, operator, text)."""

    what: Program | Inner | Model | Block
    redirects: list[tuple[int, str, str]]
    fds: dict[int, int] = field(default_factory=dict)
    """Descriptors by stream 0, 1, 2; where there is none, the shell's own stream."""
    intake: Intake | None = None
    child: Child | None = None
    status: int = 0

    def inherit(self, stream: int, fd: int | None) -> None:
        """Take what the pipeline around has for a stream that has nothing yet."""
        if fd is not None and stream not in self.fds:
            self.fds[stream] = os.dup(fd)

    def join(self, following: "Stage") -> None:
        """Connect to the next stage by a pipe."""
        following.fds[0], self.fds[1] = os.pipe()

    def open(self) -> None:
        """Redirect, from left to right; of several for one stream the last counts."""
        for stream, operator, text in self.redirects:
            if operator == "&":
                other = int(text)
                with Shield():
                    self._put(stream, os.dup(self.fds.get(other, other)))
                continue
            # An interrupt that comes right after the open closes the file with its object.
            with opened(operator, text) as file, Shield():
                self._put(stream, os.dup(file.fileno()))

    def _put(self, stream: int, fd: int) -> None:
        if stream in self.fds:
            os.close(self.fds[stream])
        self.fds[stream] = fd

    def start_intake(self) -> None:
        """Read the input from now on, whatever the shell is doing."""
        if 0 in self.fds:
            self.intake = Intake(self.fds.pop(0))

    def close(self) -> None:
        """Let go of all; harmless if repeated."""
        if self.intake is not None:
            self.intake.close()
            self.intake = None
        while self.fds:
            os.close(self.fds.popitem()[1])
