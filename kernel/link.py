"""Link: one driver, seen from the kernel. Three operations: send, receive, kill.

`HostLink` is a driver host: a process of its own on the other end of an inherited SEQPACKET pair,
which dies alone. End of file is its death; the process is reaped before anybody hears of it, so
nothing can touch a block afterwards. `LoopbackLink` runs the driver in the kernel's process, for
tests and the simulator, which decides when it works.

A link knows neither blocks nor requests. The bulk window (Export, Import) is a memfd that the
kernel makes before the first host starts; a restarted host gets the same one.
"""

import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from typing import Any, Protocol

from drivers import base, registry

log = logging.getLogger(__name__)


class LinkDown(Exception):
    """The driver is gone, and its process reaped; the message says how it ended."""


class Link(Protocol):
    """A driver of one epoch at a time."""

    device: str

    def start(self) -> None:
        """Start the driver: a new epoch."""
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


class HostLink:
    """A driver in a process of its own."""

    def __init__(self, device: str, bulk_bytes: int) -> None:
        self.device = device
        self._bulk = os.memfd_create(f"llmos-bulk-{device}", os.MFD_CLOEXEC)
        os.ftruncate(self._bulk, bulk_bytes)
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * base.MAX_MESSAGE)
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "drivers.host",
                    "--socket", str(theirs.fileno()),
                    "--bulk", str(self._bulk),
                    "--device", self.device,
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._bulk),
            )  # fmt: skip
        self._socket = ours

    @property
    def host_pid(self) -> int:
        return self._process.pid if self._process else 0

    def fileno(self) -> int | None:
        return self._socket.fileno() if self._socket else None

    def send(self, message: Any) -> None:
        raw = base.encode(message)
        if len(raw) > base.MAX_MESSAGE:
            raise base.BadMessage(f"a message of {len(raw)} bytes, the limit is {base.MAX_MESSAGE}")
        if self._socket is None:
            raise LinkDown(f"{self.device} is not running")
        try:
            self._socket.send(raw)
        except (BrokenPipeError, ConnectionResetError):
            raise self._down() from None
        except BlockingIOError:
            # One Submit and a few scrubs are in flight at most: a full buffer is a host that hangs.
            log.error("%s does not read; killing it", self.device)
            raise self._down() from None

    def receive(self) -> Any | None:
        if self._socket is None:
            return None
        try:
            raw = self._socket.recv(base.MAX_MESSAGE)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            raw = b""
        if not raw:
            raise self._down()
        try:
            return base.decode(raw)
        except base.BadMessage as error:
            log.error("%s sent garbage: %s; killing it", self.device, error)
            raise self._down() from None

    def _down(self) -> LinkDown:
        pid = self.host_pid
        status = self._reap()
        return LinkDown(f"{self.device}: driver host {pid} ended ({status})")

    def kill(self) -> None:
        if self._process is not None:
            self._reap()

    def _reap(self) -> str:
        assert self._process is not None and self._socket is not None
        self._socket.close()
        self._socket = None
        self._process.kill()
        code = self._process.wait()
        self._process = None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"

    def close(self) -> None:
        """Kill the host and give the bulk window back."""
        self.kill()
        os.close(self._bulk)


class LoopbackLink:
    """A driver in this process. `pump` makes it work; without it messages only queue up."""

    def __init__(self, device: str, bulk_bytes: int = 1 << 20) -> None:
        self.device = device
        self.host_pid = os.getpid()
        self._bulk = mmap.mmap(-1, bulk_bytes)
        self._driver: base.Driver | None = None
        self.inbox: deque[Any] = deque()
        self.outbox: deque[Any] = deque()
        self._dead = ""

    def start(self) -> None:
        self.inbox.clear()
        self.outbox.clear()
        self._dead = ""
        self._driver = registry.open_driver(self.device, self.outbox.append, memoryview(self._bulk))

    def fileno(self) -> int | None:
        return None

    def send(self, message: Any) -> None:
        if self._dead:
            raise LinkDown(self._dead)
        self.inbox.append(base.decode(base.encode(message)))

    def receive(self) -> Any | None:
        if self._dead:
            raise LinkDown(self._dead)
        return self.outbox.popleft() if self.outbox else None

    def pump(self, count: int = 1 << 30) -> int:
        """Let the driver work on up to `count` messages; return how many it did."""
        done = 0
        while self.inbox and done < count:
            self._handle(self.inbox.popleft())
            done += 1
        return done

    def _handle(self, message: Any) -> None:
        driver = self._driver
        assert driver is not None
        try:
            if isinstance(message, base.Hello):
                self.outbox.append(driver.hello(message))
            elif isinstance(message, base.Load):
                self.outbox.append(driver.load(message))
            elif isinstance(message, base.Submit):
                driver.submit(message)
            elif isinstance(message, base.Stats):
                self.outbox.append(driver.stats())
        except base.DriverFault as fault:
            self.outbox.append(base.Fault(0, 0, 0, fault.kind, fault.message, fault.items))

    def die(self) -> None:
        """Lose the driver and all that it had, as a crash would (fault injection)."""
        self._driver = None
        self.inbox.clear()
        self.outbox.clear()
        self._dead = f"{self.device}: loopback driver died"

    def kill(self) -> None:
        self.die()
