"""Store link: the store host, seen from the kernel. Three operations: send, receive, kill.

`StoreLink` is a process of its own, as a driver host is. `LoopbackStore` runs the same store in the
kernel's process, for tests and the simulator, which decides when it works and on which disk.

A link knows neither contexts nor saves nor slots. The windows are memfds that the kernel has made:
bulk windows and host memories, numbered in the order in which they are given here. A host that is
started again gets the same ones.
"""

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from drivers.store import base, wire
from kernel.process_link import LinkDown, ProcessLink


class Store(Protocol):
    """A store of one epoch at a time; the operations are those of `kernel.link.Link`."""

    def start(self) -> None: ...

    def send(self, message: Any) -> None: ...

    def receive(self) -> Any | None: ...

    def kill(self) -> None: ...

    def fileno(self) -> int | None: ...

    @property
    def host_pid(self) -> int: ...


class StoreLink(ProcessLink):
    """The store in a process of its own."""

    def __init__(self, windows: Sequence[int] = ()) -> None:
        """Keep the descriptors of the windows, which stay the caller's."""
        super().__init__("store", "store host", wire)
        self._windows = tuple(windows)

    def _spawn(self, theirs: socket.socket) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*self._command(), f"--socket={theirs.fileno()}"],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), *self._windows),
        )

    def _command(self) -> list[str]:
        windows = [f"--window={fd}" for fd in self._windows]
        return [sys.executable, "-m", "drivers.store.host", *windows]


class InProcess(Protocol):
    """What `drivers.store.store.Store` is to a loopback."""

    def handle(self, message: Any) -> None: ...

    def close(self, crashed: bool = False) -> None: ...


class LoopbackStore:
    """A store in this process. `pump` makes it work; without it messages only queue up.

    `make` makes it, from what takes its answers: `lambda emit: Store(emit, windows, files)`. The
    kernel imports no store, so whoever builds the loopback says which.
    """

    def __init__(self, make: Callable[[base.Emit], InProcess]) -> None:
        self.host_pid = os.getpid()
        self._make = make
        self._store: InProcess | None = None
        self._dead = "store: loopback was not started"
        self.inbox: deque[Any] = deque()
        self.outbox: deque[bytes] = deque()

    def start(self) -> None:
        self.inbox.clear()
        self.outbox.clear()
        self._dead = ""
        self._store = self._make(self._emit)

    def _emit(self, message: Any) -> None:
        self.outbox.append(wire.encode(message))

    def fileno(self) -> int | None:
        return None

    def send(self, message: Any) -> None:
        if self._dead:
            raise LinkDown(self._dead)
        self.inbox.append(wire.decode(wire.encode(message)))

    def receive(self) -> Any | None:
        if self._dead:
            raise LinkDown(self._dead)
        return wire.decode(self.outbox.popleft()) if self.outbox else None

    def pump(self, count: int = 1 << 30) -> int:
        """Let the store work on up to `count` messages; return how many it did."""
        done = 0
        while self.inbox and done < count:
            assert self._store is not None
            self._store.handle(self.inbox.popleft())
            done += 1
        return done

    def die(self) -> None:
        """Lose the store with the swap file and its keys, as a crash would (fault injection).

        Its descriptors are closed, as the system would; a save that was being written stays as it
        is on the disk.
        """
        store, self._store = self._store, None
        self.inbox.clear()
        self.outbox.clear()
        self._dead = "store: loopback died"
        if store is not None:
            store.close(crashed=True)

    def kill(self) -> None:
        self.die()
