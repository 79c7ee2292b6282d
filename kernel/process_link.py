"""Process link: a host process of ours, on the other end of an inherited SEQPACKET pair.

One packet a message. End of file is its death; the process is reaped before anybody hears of it,
so nothing of it can touch shared memory afterwards. What the messages are, and how the process is
started, is for `kernel.link` (drivers) and `kernel.store` to say.
"""

import signal
import socket
import subprocess
import sys
from fcntl import ioctl
from termios import TIOCOUTQ as SIOCOUTQ
from typing import Any, Protocol

SOCKET_OVERHEAD = 4096
"""More than Linux takes of a socket's buffer for itself."""


class LinkDown(Exception):
    """The process is gone, and reaped; the message says how it ended."""


class Wire(Protocol):
    """A module that has messages as bytes."""

    MAX_MESSAGE: int
    BadMessage: type[Exception]

    @staticmethod
    def encode(message: Any) -> bytes: ...

    @staticmethod
    def decode(raw: bytes) -> Any: ...


class ProcessLink:
    """One process at a time."""

    def __init__(self, name: str, kind: str, wire: Any) -> None:
        """`name` and `kind` are for messages; `wire` is a Wire."""
        self._name = name
        self._kind = kind
        self._wire: Wire = wire
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def _spawn(self, theirs: socket.socket) -> "subprocess.Popen[bytes]":
        """Start the process with its end of the socket."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the process: a new epoch. LinkDown if that cannot be done."""
        try:
            self._socket, theirs = _socket_pair(self._kind, self._wire.MAX_MESSAGE)
            with theirs:
                self._process = self._spawn(theirs)
        except OSError as error:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            raise LinkDown(f"cannot start a {self._kind}: {error.strerror}") from None

    @property
    def host_pid(self) -> int:
        """The process, 0 if none runs."""
        return self._process.pid if self._process else 0

    def fileno(self) -> int | None:
        """Return what becomes readable when `receive` has something; None if nothing runs."""
        return self._socket.fileno() if self._socket else None

    def send(self, message: Any) -> None:
        """Send a message; LinkDown if the process is gone, or has not read for long."""
        raw, most = self._wire.encode(message), self._wire.MAX_MESSAGE
        if len(raw) > most:
            raise self._wire.BadMessage(f"a message of {len(raw)} bytes, the limit is {most}")
        if self._socket is None:
            raise LinkDown(f"{self._name} is not running")
        try:
            self._socket.send(raw)
        except (BrokenPipeError, ConnectionResetError):
            raise self._down() from None
        except BlockingIOError:
            # Hosts read all the time, or have one message in flight at most.
            raise self._down("does not read, ") from None
        except OSError as error:
            what = f"cannot be sent {len(raw)} bytes ({error.strerror}), "
            raise self._down(what) from None

    @property
    def has_room(self) -> bool:
        """Whether the largest message can be sent beside what the process has not read yet."""
        if self._socket is None:
            return False
        unread = int.from_bytes(ioctl(self._socket, SIOCOUTQ, bytes(4)), sys.byteorder)
        most = self._wire.MAX_MESSAGE + SOCKET_OVERHEAD
        return unread + most <= self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def receive(self) -> Any | None:
        """Return the next message or None; LinkDown if the process is gone."""
        if self._socket is None:
            return None
        try:
            raw = self._socket.recv(self._wire.MAX_MESSAGE + 1)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            raw = b""
        if not raw:
            raise self._down()
        try:
            return self._wire.decode(raw)
        except self._wire.BadMessage as error:
            raise self._down(f"sent garbage ({error}), ") from None

    def _down(self, why: str = "") -> LinkDown:
        pid = self.host_pid
        status = self._reap()
        return LinkDown(f"{self._name}: {self._kind} {pid} {why}ended ({status})")

    def kill(self) -> None:
        """End the process now, if it runs, and reap it."""
        if self._process is not None:
            self._reap()

    def _reap(self) -> str:
        assert self._process is not None and self._socket is not None
        self._process.kill()  # before its end of file, at which it would end as it likes
        self._socket.close()
        self._socket = None
        code = self._process.wait()
        self._process = None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def _socket_pair(who: str, most: int) -> tuple[socket.socket, socket.socket]:
    """Return the kernel's end, which never blocks, and the host's; both take a whole message."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * most)
    # Linux caps what is asked at net.core.wmem_max, in silence, and gives twice as much
    got = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if got < most + SOCKET_OVERHEAD:
        ours.close()
        theirs.close()
        raise LinkDown(
            f"cannot start a {who}: a socket holds {got} bytes, a message may have "
            f"{most}; raise it: sysctl -w net.core.wmem_max={most}"
        )
    return ours, theirs
