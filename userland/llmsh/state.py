"""What a shell has in hand from one command to the next, and how it speaks to the person."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from syscalls import KernelError
from userland.answer import Answer
from userland.asking import Question, Sampling
from userland.exits import Expected, report
from userland.llmsh.contexts import Contexts
from userland.llmsh.settings import Options
from userland.llmsh.streams import Sink
from userland.llmsh.terminal import Terminal
from userland.llmsh.variables import Variables


@dataclass
class State:
    """One shell's. `out` is for builtins; model calls and programs write to stdout themselves."""

    sampling: Sampling
    out: TextIO
    err: TextIO
    interactive: bool = False
    model: str | None = None
    address: str | None = None
    host_stdin: int | None = None
    """What programs read that no pipe or file feeds; None: the shell's own stdin."""
    terminal: Terminal | None = None
    status: int = 0
    """`$?`"""
    answer: str = ""
    """`$_`"""
    asked_alone: bool = False
    """A prompt has been asked that nothing was fed into."""
    out_gone: bool = False
    """Nobody reads the shell's stdout any more."""
    nested: bool = False
    """At work within a pipeline, whose terminal it is."""
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    """Streams of the compound or $( ) that is at work; None: the shell's own."""
    loops: int = 0
    """Loops that are at work, for break and continue."""
    captures: int = 0
    """$( ) that are at work, one within the other."""
    sources: int = 0
    """Scripts that are at work by `source`, one within the other."""
    history: list[str] = field(default_factory=list)
    """The lines of a person, the oldest first."""
    aliases: dict[str, str] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    variables: Variables = field(init=False)
    contexts: Contexts = field(init=False)

    def __post_init__(self) -> None:
        self.contexts = Contexts(self.model, self.note, self.address)
        self.variables = Variables(self)

    @contextmanager
    def streams(self, stdin: int | None, stdout: int | None, stderr: int | None) -> Iterator[None]:
        """Let what runs meanwhile have other streams; None leaves one as it is."""
        before = self.stdin, self.stdout, self.stderr, self.err
        self.stdin = self.stdin if stdin is None else stdin
        self.stdout = self.stdout if stdout is None else stdout
        if stderr is not None and stderr != self.stderr:
            self.stderr = stderr
            self.err = open(stderr, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        try:
            yield
        finally:
            self.stdin, self.stdout, self.stderr, self.err = before

    # --- answers ------------------------------------------------------------------------------

    def sink(self, fd: int, question: Question) -> Sink:
        """Return where an answer goes: on a terminal, drawn as Markdown unless it is not wanted."""
        plain = question.raw or not self.options.markdown
        if self.terminal is not None and not plain and os.isatty(fd):
            from userland.llmsh.page import Page, is_wanted

            if is_wanted(os.environ):
                return Page(fd)
        return Sink(fd)

    def remember(self, answer: Answer) -> None:
        """Keep what `$_`, `$finish` and `$usage` tell."""
        self.answer = answer.text.strip()
        self.variables.answered(answer)

    # --- what is said -------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Say something that is neither an answer nor an error."""
        if self.err.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
            self.err.write(f"\x1b[2m{text}\x1b[0m\n")
        else:
            self.err.write(f"llmsh: {text}\n")
        self.err.flush()

    def report(self, error: Expected) -> int:
        """Say what went wrong; return its exit code. Without a session there are no contexts."""
        code = report(error, self.err, "llmsh")
        if isinstance(error, KernelError):
            self.contexts.drop(error)
        return code
