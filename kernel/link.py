"""Link: one driver, seen from the kernel. Three operations: send, receive, kill.

`HostLink` is a driver host: a process of its own on the other end of an inherited SEQPACKET pair,
which dies alone. End of file is its death; the process is reaped before anybody hears of it, so
nothing can touch a block afterwards. For a driver in the kernel's own process, see
`kernel.loopback`.

A link knows neither blocks nor requests. The bulk window (Export, Import) and the host memory (host
tiers) are memfds that the kernel makes before the first host starts; a restarted host gets the same
ones.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, Protocol

from drivers import wire
from kernel.host_memory import HostMemory

log = logging.getLogger(__name__)

SOCKET_OVERHEAD = 4096
"""More than Linux takes of a socket's buffer for itself."""


class LinkDown(Exception):
    """The driver is gone, and its process reaped; the message says how it ended."""


class Link(Protocol):
    """A driver of one epoch at a time."""

    device: str

    def start(self) -> None:
        """Start the driver: a new epoch. LinkDown if that cannot be done."""
        ...

    def send(self, message: Any) -> None:
        """Send a message; LinkDown if the driver is gone."""
        ...

    def receive(self) -> Any | None:
        """Return the next message or None; LinkDown if the driver is gone."""
        ...

    def kill(self) -> None:
        """End the driver now, if it runs, and reap it."""
        ...

    def fileno(self) -> int | None:
        """Return what becomes readable when `receive` has something; None: ask every turn."""
        ...

    @property
    def host_pid(self) -> int:
        """The driver's process; the kernel's own for a loopback."""
        ...

    @property
    def host_fd(self) -> int:
        """The host memory, which is the same for all epochs; -1 if there is none."""
        ...

    def zero_host(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Zero (offset, length) of the host memory; nothing submitted may name what is there."""
        ...


class HostLink:
    """A driver in a process of its own."""

    def __init__(self, device: str, bulk_bytes: int, host_bytes: int = 0) -> None:
        self.device = device
        self._bulk = os.memfd_create(f"llmos-bulk-{device}", os.MFD_CLOEXEC)
        os.ftruncate(self._bulk, bulk_bytes)
        self._host = HostMemory(device, host_bytes)
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        try:
            self._socket, theirs = _socket_pair()
            with theirs:
                self._process = self._spawn(theirs)
        except OSError as error:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            raise LinkDown(f"cannot start a driver host: {error.strerror}") from None

    def _spawn(self, theirs: socket.socket) -> "subprocess.Popen[bytes]":
        fds = [theirs.fileno(), self._bulk]
        options = ["--socket", str(fds[0]), "--bulk", str(fds[1]), "--device", self.device]
        if self.host_fd >= 0:
            fds.append(self.host_fd)
            options += ["--host", str(self.host_fd)]
        return subprocess.Popen(
            [sys.executable, "-m", "drivers.host", *options],
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
        )

    @property
    def host_pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def host_fd(self) -> int:
        return self._host.fd

    def zero_host(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._host.zero(ranges)

    def fileno(self) -> int | None:
        return self._socket.fileno() if self._socket else None

    def send(self, message: Any) -> None:
        raw = wire.encode(message)
        if len(raw) > wire.MAX_MESSAGE:
            raise wire.BadMessage(f"a message of {len(raw)} bytes, the limit is {wire.MAX_MESSAGE}")
        if self._socket is None:
            raise LinkDown(f"{self.device} is not running")
        try:
            self._socket.send(raw)
        except (BrokenPipeError, ConnectionResetError):
            raise self._down() from None
        except BlockingIOError:
            # One Submit is in flight at most: a full buffer is a host that hangs.
            raise self._down("does not read, ") from None
        except OSError as error:
            what = f"cannot be sent {len(raw)} bytes ({error.strerror}), "
            raise self._down(what) from None

    def receive(self) -> Any | None:
        if self._socket is None:
            return None
        try:
            raw = self._socket.recv(wire.MAX_MESSAGE + 1)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            raw = b""
        if not raw:
            raise self._down()
        try:
            return wire.decode(raw)
        except wire.BadMessage as error:
            raise self._down(f"sent garbage ({error}), ") from None

    def _down(self, why: str = "") -> LinkDown:
        pid = self.host_pid
        status = self._reap()
        return LinkDown(f"{self.device}: driver host {pid} {why}ended ({status})")

    def kill(self) -> None:
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

    def close(self) -> None:
        """Kill the host, and give the bulk window and the host memory back."""
        self.kill()
        os.close(self._bulk)
        self._host.close()


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the kernel's end, which never blocks, and the host's; both take a whole message."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * wire.MAX_MESSAGE)
    # Linux caps what is asked at net.core.wmem_max, in silence, and gives twice as much
    got = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    if got < wire.MAX_MESSAGE + SOCKET_OVERHEAD:
        ours.close()
        theirs.close()
        raise LinkDown(
            f"cannot start a driver host: a socket holds {got} bytes, a message may have "
            f"{wire.MAX_MESSAGE}; raise it: sysctl -w net.core.wmem_max={wire.MAX_MESSAGE}"
        )
    return ours, theirs
