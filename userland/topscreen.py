"""The screen of `top`: the alternate screen of a terminal, its keys, and giving both back.

A signal that would end the program ends it through `__exit__`; Ctrl-Z puts the terminal in order,
stops, and draws anew when the program goes on; a change of size wakes the wait for a key.
"""

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

ENTER = "\x1b[?1049h\x1b[?25l"
LEAVE = "\x1b[?25h\x1b[?1049l"
ARROWS = {b"\x1b[A": "up", b"\x1b[B": "down", b"\x1bOA": "up", b"\x1bOB": "down",
          b"\x1b[5~": "page up", b"\x1b[6~": "page down"}  # fmt: skip
Line = tuple[str, str]
"""Text, and its style as rich names it."""


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


class Screen:
    """A terminal in raw hands, from `with` to its end.

    `console` knows its size and its colours, `keys` is the descriptor of the keyboard.
    """

    def __init__(self, out: TextIO, console: "Console", keys: int) -> None:
        self._out = out
        self._console = console
        self._keys = keys
        self._modes: list[Any] = []
        self._handlers: dict[int, Any] = {}
        self._pipe = (-1, -1)
        self._wakeup = -1
        self._typed = b""
        self._stop = False

    # --- having it ----------------------------------------------------------------------------

    def __enter__(self) -> "Screen":
        self._modes = termios.tcgetattr(self._keys)
        self._pipe = os.pipe()
        for fd in self._pipe:
            os.set_blocking(fd, False)
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._handle(signal.SIGWINCH, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                self._handle(number, _leave)
        if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
            self._handle(signal.SIGTSTP, self._note_stop)
        try:
            self._take()
        except BaseException:
            self._restore()
            raise
        return self

    def _handle(self, number: int, handler: Any) -> None:
        self._handlers[number] = signal.signal(number, handler)

    def _take(self) -> None:
        tty.setcbreak(self._keys)  # Ctrl-C and Ctrl-Z stay signals
        self._write(ENTER)

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        with suppress(OSError, termios.error, ValueError):  # a terminal that has hung up
            self._give()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        signal.set_wakeup_fd(self._wakeup)
        for fd in self._pipe:
            os.close(fd)

    def _give(self) -> None:
        termios.tcsetattr(self._keys, termios.TCSAFLUSH, self._modes)
        self._write(LEAVE)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def _note_stop(self, _: int, __: FrameType | None) -> None:
        self._stop = True

    def _suspend(self) -> None:
        """Stop like any program, with the terminal as it was found."""
        self._stop = False
        self._give()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._modes = termios.tcgetattr(self._keys)
        self._take()

    # --- using it -----------------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        return self._console.width, self._console.height

    def draw(self, lines: Sequence[Line]) -> None:
        """Put lines on the screen, each of them within its width, as many as fit."""
        from rich.text import Text

        width, height = self.size
        drawn = []
        for text, style in lines[:height]:
            with self._console.capture() as captured:
                self._console.print(Text(text[:width], style), end="", soft_wrap=True)
            drawn.append(f"{captured.get()}\x1b[K")
        self._write("\x1b[H" + "\n".join(drawn) + "\x1b[J")

    def key(self, timeout: float) -> str | None:
        """Return the next key; None when there was none in time, or the picture is to be drawn."""
        if not self._typed:
            ready, _, _ = select.select([self._keys, self._pipe[0]], [], [], max(0.0, timeout))
            if self._pipe[0] in ready:
                with suppress(BlockingIOError):
                    os.read(self._pipe[0], 512)
            if self._stop:
                self._suspend()
            if self._keys not in ready:
                return None
            self._typed = os.read(self._keys, 64)
            if not self._typed:
                raise EOFError
        return self._next()

    def _next(self) -> str:
        for sequence, name in ARROWS.items():
            if self._typed.startswith(sequence):
                self._typed = self._typed[len(sequence) :]
                return name
        if self._typed.startswith(b"\x1b"):
            self._typed = b""
            return "escape"
        first, self._typed = self._typed[:1], self._typed[1:]
        return first.decode("latin-1")
