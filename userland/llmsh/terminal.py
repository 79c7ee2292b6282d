"""The terminal of an interactive shell: whose Ctrl-C it is, and in which mode it is left.

A shell is a process group of its own, and so is each pipeline of host commands: the one that has
the terminal gets what the keys send. A pipeline with a model call or a builtin in it is part of the
shell's group, because the shell itself is at work in it and has to hear of Ctrl-C.
"""

import os
import signal
import termios
from contextlib import suppress
from types import FrameType

_CAUGHT = (signal.SIGTSTP, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU)
"""What must not stop or end the shell. Caught, not ignored: a program is born without handlers."""
_PATIENCE = 8


def _nothing(_: int, __: FrameType | None) -> None:
    pass


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
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._modes)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def close(self) -> None:
        """Return to the group that the shell came from, and give that the terminal."""
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
