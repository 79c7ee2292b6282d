"""What a shell has in hand from one command to the next, and how it speaks to the person."""

import os
from dataclasses import dataclass, field
from typing import TextIO

from syscalls import KernelError
from userland.exits import Expected, report
from userland.llmsh.ask import Sampling
from userland.llmsh.contexts import Contexts
from userland.llmsh.terminal import Terminal


@dataclass
class State:
    """One shell's. `out` is for builtins; model calls and programs write to stdout themselves."""

    sampling: Sampling
    out: TextIO
    err: TextIO
    interactive: bool = False
    model: str | None = None
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
    contexts: Contexts = field(init=False)

    def __post_init__(self) -> None:
        self.contexts = Contexts(self.model, self.note)

    def lookup(self, name: str) -> str:
        """Return the value of a variable, nothing if it has none."""
        if name == "?":
            return str(self.status)
        return self.answer if name == "_" else os.environ.get(name, "")

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
