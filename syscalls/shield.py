"""Hold Ctrl-C back for a moment.

Python raises KeyboardInterrupt between any two instructions, so also between taking a message off
a socket and routing it: the message, and with it the end of a call, would be lost. A client steps
its session inside a `Shield` and waits for the kernel outside of one, so that an interrupt is
answered at once and always falls between two complete steps.

Whatever handler the program has installed is kept and called at the end of the shield.

A stream has a shield around every id, so the C functions are called without the enum conversions
that the `signal` module puts around them: those were half of what a client spent on an id.
"""

import threading
from _signal import getsignal, signal  # type: ignore[import-not-found]
from signal import SIGINT
from types import FrameType
from typing import Any

_INT = int(SIGINT)


class Shield:
    """A block of code without KeyboardInterrupt; nothing outside the main thread."""

    __slots__ = ("_handler", "_held")

    def __enter__(self) -> None:
        self._held: FrameType | None = None
        self._handler: Any = None
        if threading.current_thread() is threading.main_thread():
            handler = getsignal(_INT)
            if callable(handler):
                self._handler = handler
                signal(_INT, self._hold)

    def __exit__(self, *_: object) -> None:
        if self._handler is None:
            return
        handler, self._handler = self._handler, None
        signal(_INT, handler)
        if self._held is not None:
            handler(SIGINT, self._held)

    def _hold(self, _: int, frame: FrameType | None) -> None:
        self._held = frame
