"""ShellDesk: where commands of `llmos` work that the shell runs."""

from typing import TextIO

from syscalls import Task
from userland.desk import Desk
from userland.llmsh.state import State


class ShellDesk(Desk):
    """A desk at the shell's own task, which is there when it is first needed."""

    shared = True

    def __init__(self, state: State, out: TextIO) -> None:
        stdin = state.host_stdin if state.stdin is None else state.stdin
        super().__init__(out, state.err, name="llmsh", stdin=stdin)
        self._contexts = state.contexts

    @property
    def task(self) -> Task:
        return self._contexts.task()

    @property
    def has_task(self) -> bool:
        return self._contexts.connected
