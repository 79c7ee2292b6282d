"""Link: one driver, seen from the kernel. Three operations: send, receive, kill.

`HostLink` is a driver host: a process of its own on the other end of an inherited SEQPACKET pair,
which dies alone. End of file is its death; the process is reaped before anybody hears of it, so
nothing can touch a block afterwards. For a driver in the kernel's own process, see
`kernel.loopback`.

A link knows neither blocks nor requests. The bulk window (Export, Import) and the host memory (host
tiers) are memfds that the kernel makes before the first host starts; a restarted host gets the same
ones.
"""

import socket
import subprocess
import sys
from collections.abc import Iterable
from typing import Any, Protocol

from drivers import wire
from kernel.host_memory import HostMemory
from kernel.process_link import LinkDown as LinkDown
from kernel.process_link import ProcessLink


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

    @property
    def has_room(self) -> bool:
        """Whether a message of any size can be sent, though the driver may have some to read."""
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

    def zero_host(self, ranges: Iterable[tuple[int, int]], keep: bool = False) -> None:
        """Zero (offset, length) of the host memory; nothing submitted may name what is there.

        `keep`: without giving the pages back.
        """
        ...

    def zero_bulk(self, offset: int, length: int) -> None:
        """Zero part of the bulk window, likewise, and keep its pages."""
        ...


class HostLink(ProcessLink):
    """A driver in a process of its own."""

    def __init__(self, device: str, bulk_bytes: int, host_bytes: int = 0) -> None:
        super().__init__(device, "driver host", wire)
        self.device = device
        self._bulk = HostMemory(f"{device}-bulk", bulk_bytes)
        self._host = HostMemory(device, host_bytes)

    def _spawn(self, theirs: socket.socket) -> "subprocess.Popen[bytes]":
        fds = [theirs.fileno(), self.bulk_fd]
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
    def bulk_fd(self) -> int:
        """The bulk window, which is the same for all epochs."""
        return self._bulk.fd

    @property
    def host_fd(self) -> int:
        return self._host.fd

    def zero_host(self, ranges: Iterable[tuple[int, int]], keep: bool = False) -> None:
        self._host.zero(ranges, keep)

    def zero_bulk(self, offset: int, length: int) -> None:
        self._bulk.zero([(offset, length)], keep=True)

    def close(self) -> None:
        """Kill the host, and give the bulk window and the host memory back."""
        self.kill()
        self._bulk.close()
        self._host.close()
