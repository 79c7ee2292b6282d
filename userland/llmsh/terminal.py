"""The terminal of an interactive shell: whose Ctrl-C it is, and in which mode it is left.

A shell is a process group of its own, and so is each pipeline of host commands: the one that has
the terminal gets what the keys send. A pipeline with a model call or a builtin in it is part of the
shell's group, because the shell itself is at work in it and has to hear of Ctrl-C.
"""

import os
import signal
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

Modes = list[Any]
"""What termios knows of a terminal."""

_CAUGHT = (signal.SIGTSTP, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU)
"""What must not stop or end the shell. Caught, not ignored: a program is born without handlers."""
_PATIENCE = 8
_MARKED, _UNMARKED = b"\x1b[?2004h", b"\x1b[?2004l"
"""Whether a terminal marks the beginning and the end of what is pasted."""


def _nothing(_: int, __: FrameType | None) -> None:
    pass


def is_dumb(environment: Mapping[str, str]) -> bool:
    """Tell whether the terminal can do no more than write lines."""
    return environment.get("TERM", "dumb") in ("", "dumb", "unknown")


class Terminal:
    """The controlling terminal; made once, when the shell begins."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        for _ in range(_PATIENCE):  # in the background: stop until somebody says fg
            if os.tcgetpgrp(fd) == os.getpgrp():
                break
            os.kill(0, signal.SIGTTIN)
        self._handlers = {number: signal.signal(number, _nothing) for number in _CAUGHT}
        self._before = os.getpgrp()
        if os.getsid(0) != os.getpid():  # the leader of a session leads its group for good
            os.setpgid(0, 0)
        self._modes = termios.tcgetattr(fd)
        self._marks = False
        """Pastes are marked, from an answer on until somebody reads what is typed."""
        self.take()

    @property
    def columns(self) -> int:
        return os.get_terminal_size(self._fd).columns

    def give(self, group: int) -> None:
        """Let a process group have the terminal."""
        # To a group in the background tcsetpgrp sends SIGTTOU, unless it is blocked.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            os.tcsetpgrp(self._fd, group)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def take(self) -> None:
        """Take it back, in the mode in which the shell found it."""
        self.give(os.getpgrp())
        self._set(self._modes)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Show nothing of what is typed, and keep it for whoever reads next: the next prompt.

        Enter stays the key that it is, and a paste is marked as one, so that the editor does not
        take its lines for commands. Ctrl-C is a signal still, and drops what has been typed.
        """
        modes = [*self._modes[:6], [*self._modes[6]]]
        modes[0] &= ~termios.ICRNL
        modes[3] &= ~(termios.ECHO | termios.ICANON)
        modes[6][termios.VMIN], modes[6][termios.VTIME] = b"\1", b"\0"
        try:
            self._set(modes)
            if not is_dumb(os.environ):
                self._marks = True
                os.write(self._fd, _MARKED)
            yield
        finally:
            self._set(self._modes)

    def unmark(self) -> None:
        """Have pastes come as they are: somebody else than the editor reads next."""
        if self._marks:
            self._marks = False
            with suppress(OSError):
                os.write(self._fd, _UNMARKED)

    def send(self, sequence: str) -> None:
        """Tell the terminal something that no row shows."""
        data = memoryview(sequence.encode())
        while data:
            data = data[os.write(self._fd, data) :]

    def _set(self, modes: Modes) -> None:
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, modes)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def close(self) -> None:
        """Return to the group that the shell came from, and give that the terminal."""
        self.unmark()
        with suppress(OSError, termios.error):  # a terminal that has hung up
            if self._before != os.getpgrp():
                os.setpgid(0, self._before)
            self.take()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def controlling() -> Terminal | None:
    """Return the terminal on stdin, None if it does not control this process."""
    try:
        os.tcgetpgrp(0)
    except OSError:
        return None
    return Terminal(0)
