"""Bytes between stages: what a model call reads before it begins, and what it writes as it goes.

A model call needs all of its input first, while the shell, which has one thread for its task, may
still be writing another stage. So an `Intake` reads in a thread of its own from the moment its
pipeline starts: no stage ever waits for the shell to come and empty a pipe.
"""

import fcntl
import os
import select
import stat
import sys
import termios
import threading
from contextlib import suppress

from userland.asking import MAX_DOCUMENT, decoded
from userland.exits import Failure, PipeClosed

_CHUNK = 1 << 16


class Intake:
    """All that comes out of a file descriptor, which it owns."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._data = bytearray()
        self._error: OSError | None = None
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            poll.register(self._stop, select.POLLIN)
            while len(self._data) <= MAX_DOCUMENT:
                if any(fd == self._stop for fd, _ in poll.poll()):
                    return
                chunk = os.read(self._fd, _CHUNK)
                if not chunk:
                    return
                self._data += chunk
        except OSError as error:
            self._error = error
        finally:
            # A reader that has enough, or cannot read, closes: whoever writes then stops, too.
            os.close(self._fd)

    def text(self, room: int) -> str:
        """Wait for the end and return the text; `room` is how many tokens the context has left."""
        data = self._whole(
            f"the input is larger than {MAX_DOCUMENT >> 20} MiB, "
            f"the context has room for {room:,} tokens",
            "cut it on purpose: ... | head -c 20000 | ...",
        )
        return decoded(data, "the input")

    def output(self) -> str:
        """Wait for the end and return what a command has written, bytes that are no text kept."""
        data = self._whole(
            f"a command has written more than {MAX_DOCUMENT >> 20} MiB, which is too much to hold",
            "let it write to a file",
        )
        return data.decode("utf-8", "surrogateescape")

    def _whole(self, too_large: str, hint: str) -> bytearray:
        self._thread.join()
        if self._error is not None:
            raise Failure(f"cannot read the input: {self._error.strerror}", code="EIO")
        if len(self._data) > MAX_DOCUMENT:
            raise Failure(too_large, hint, code="E2BIG")
        return self._data

    def close(self) -> None:
        """Stop reading, whatever is still to come."""
        if self._stop >= 0:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            os.close(self._stop)
            self._stop = -1


def has_unread(fd: int) -> bool:
    """Return whether a pipe or a file has bytes that nobody has read; never waits."""
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return os.lseek(fd, 0, os.SEEK_CUR) < status.st_size
    if not stat.S_ISFIFO(status.st_mode):
        return False
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder) > 0


# A model's words must not move the cursor, change the title or worse.
VISIBLE = {code: 0xFFFD for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Sink:
    """Text to a file descriptor, at once; without control characters if it is a terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.tty = os.isatty(fd)
        self._table = VISIBLE if self.tty else {}
        self.ends_line = True

    def write(self, text: str) -> None:
        """Write all of it."""
        if not text:
            return
        self.ends_line = text.endswith("\n")  # first: an interrupt may follow the write at once
        self._send(text.translate(self._table))

    def end_line(self) -> None:
        """Begin a new line unless that is where the output stands."""
        if not self.ends_line:
            with suppress(PipeClosed, Failure):
                self.write("\n")

    def key(self, name: str) -> None:
        """Show a key that ended the output, as a terminal does that echoes it."""
        self.write(name)

    def aside(self) -> None:
        """Make room for a line that is not of the output."""
        if self.tty:
            self.end_line()

    def _send(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "replace"))
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except BrokenPipeError:
            raise PipeClosed from None
        except OSError as error:
            raise Failure(f"cannot write the output: {error.strerror}", code="EIO") from None
