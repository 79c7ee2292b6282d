"""Rigs: two ways to hold a driver. In this process, or in a real host on a socket pair."""

import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from drivers import base, registry, wire

ROOT = Path(__file__).resolve().parents[2]
BULK_BYTES = 1 << 20
PATIENCE_S = 60.0


class Rig(Protocol):
    """A driver, from the kernel's side."""

    bulk: mmap.mmap

    def send(self, message: Any) -> None: ...

    def receive(self, timeout_s: float = PATIENCE_S) -> Any:
        """Return the next message but heartbeats; None after `timeout_s`; EOFError at the end."""
        ...

    def close(self) -> None: ...


class Loopback:
    """A driver in this process; messages still go through their bytes."""

    def __init__(self, device: str, host: int = -1) -> None:
        self.bulk = mmap.mmap(-1, BULK_BYTES)
        self._window = memoryview(self.bulk)
        self._answers: SimpleQueue[bytes] = SimpleQueue()
        self._driver = registry.open_driver(device, self._emit, self._window, host)

    def _emit(self, message: Any) -> None:
        self._answers.put(wire.encode(message))

    def send(self, message: Any) -> None:
        message = wire.decode(wire.encode(message))
        try:
            match message:
                case base.Hello():
                    self._emit(self._driver.hello(message))
                case base.Load():
                    self._emit(self._driver.load(message))
                case base.Submit():
                    self._driver.submit(message)
                case base.Unload():
                    self._driver.unload(message)
                case base.Compile():
                    self._driver.compile(message)
                case base.Forget():
                    self._driver.forget(message)
                case base.Stats():
                    self._emit(self._driver.stats())
        except base.DriverFault as fault:
            self._emit(base.Fault(0, 0, 0, fault.kind, fault.message, fault.items))

    def receive(self, timeout_s: float = PATIENCE_S) -> Any:
        try:
            return wire.decode(self._answers.get(timeout=timeout_s))
        except Empty:
            return None

    def close(self) -> None:
        self._driver.close()
        del self._driver


class HostProcess:
    """A driver in a host of its own, started as the kernel starts it."""

    def __init__(
        self, device: str, *options: str, command: tuple[str, ...] = (), host: int = -1
    ) -> None:
        memory = (host,) if host >= 0 else ()
        self.memfd = os.memfd_create("bulk", os.MFD_CLOEXEC)
        os.ftruncate(self.memfd, BULK_BYTES)
        self.bulk = mmap.mmap(self.memfd, 0)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (self.socket, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * wire.MAX_MESSAGE)
            self.process = subprocess.Popen(
                [
                    *(command or (sys.executable, "-m", "drivers.host")),
                    "--socket", str(theirs.fileno()), "--bulk", str(self.memfd),
                    "--device", device, *options, *(f"--host={fd}" for fd in memory),
                ],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self.memfd, *memory),
                cwd=ROOT,
            )  # fmt: skip

    def send(self, message: Any) -> None:
        self.send_raw(wire.encode(message))

    def send_raw(self, raw: bytes) -> None:
        self.socket.send(raw)

    def receive_any(self, timeout_s: float = PATIENCE_S) -> Any:
        """Return the next message, heartbeats too; None after `timeout_s`."""
        poller = select.poll()
        poller.register(self.socket, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            return None
        try:
            raw = self.socket.recv(wire.MAX_MESSAGE)
        except ConnectionResetError:
            raw = b""  # it died with messages of ours unread
        if not raw:
            raise EOFError
        return wire.decode(raw)

    def receive(self, timeout_s: float = PATIENCE_S) -> Any:
        end = time.monotonic() + timeout_s
        while True:
            message = self.receive_any(max(0.0, end - time.monotonic()))
            if not isinstance(message, base.Heartbeat):
                return message

    def exit_code(self, timeout_s: float) -> int:
        """Wait for the host's end."""
        return self.process.wait(timeout_s)

    def close(self) -> None:
        """End the host, if it lives, and reap it; leave nothing open."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.socket.close()
        self.bulk.close()
        os.close(self.memfd)
