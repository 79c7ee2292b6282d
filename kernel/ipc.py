"""Ipc: the kernel's front, a ROUTER socket in a directory of mode 0700.

Who calls is what the operating system says: libzmq attaches the peer's credentials (SO_PEERCRED)
to each message, and a pidfd on that pid tells at once when the program has died. Nothing in a
message is identity. The run directory is held by flock for the kernel's life, and only the holder
touches the socket: a second kernel is told so, and the first is not disturbed.
"""

import fcntl
import os
import select
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import zmq

from syscalls import abi
from syscalls.wire import join_events

MAX_FRAMES = 4
"""Frames kept of one message; what is longer is refused anyway."""
MAX_SKIPPED = 1024
"""Frames thrown away in one turn, of a message that has more than that."""
MAX_PATH = 107
"""Bytes of an ipc path (sun_path)."""
_NO_EVENTS = join_events([])
"""A reply that says nothing, for whoever may not be there any more."""


class Busy(Exception):
    """Another kernel holds the run directory."""


class Unsafe(Exception):
    """The run directory is not the kernel's own, or its path is too long."""


class Arrival(NamedTuple):
    """A message, and who the operating system says sent it."""

    route: bytes
    uid: int
    pid: int
    frames: list[bytes]


class Transport(Protocol):
    """What the loop needs of its front; the simulator has another."""

    def receive(self) -> Iterator[Arrival]:
        """Return the messages that have arrived."""
        ...

    def send(self, route: bytes, frames: list[bytes]) -> bool:
        """Send; False if the peer does not take it now. LookupError if it is gone."""
        ...

    def gone(self) -> list[bytes]:
        """Return the routes whose programs have died."""
        ...

    def alive(self, route: bytes) -> bool:
        """See whether a route still has a connection: its program may live on without."""
        ...

    def welcome(self, route: bytes, pid: int) -> bool:
        """Watch the program of a new route; False if it has died, OSError if it cannot be."""
        ...

    def forget(self, route: bytes) -> None:
        """Stop watching a route."""
        ...

    def has_input(self) -> bool:
        """See whether `receive` has something now."""
        ...


class RunDir:
    """The run directory, held for as long as the object lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = path / "kernel.sock"
        if len(os.fsencode(self.socket)) > MAX_PATH:
            raise Unsafe(f"{self.socket} is longer than the {MAX_PATH} bytes of a socket path")
        try:
            self._lock = self._open()
            self._hold()
            self.socket.unlink(missing_ok=True)
        except OSError as error:
            raise Unsafe(f"{error.filename or path}: {error.strerror}") from None

    def _open(self) -> int:
        """Return the lock file of a directory that is there, mine, and nobody else's."""
        path = self.path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if not stat.S_ISDIR(status.st_mode):
            raise Unsafe(f"{path} is no directory of its own (a link?)")
        if status.st_uid != os.getuid() or mode != 0o700:
            raise Unsafe(
                f"{path} has owner {status.st_uid} and mode {mode:o}, "
                f"it must have owner {os.getuid()} and mode 700"
            )
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(path / "kernel.lock", flags, 0o600)

    def _hold(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            os.close(self._lock)
            raise Busy(f"a kernel (pid {holder or 'unknown'}) holds {self.path}") from None
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def close(self) -> None:
        """Take the socket away and let another kernel in."""
        self.socket.unlink(missing_ok=True)
        os.truncate(self._lock, 0)
        os.close(self._lock)


class Ipc:
    """The ROUTER and the pidfds of its peers. `fileno` is readable when any has something."""

    def __init__(self, run_dir: RunDir) -> None:
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.MAXMSGSIZE, 4 * abi.MAX_IDS + 1),
            (zmq.HANDSHAKE_IVL, 1000),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.RCVHWM, 64),
            (zmq.SNDHWM, 64),
            (zmq.LINGER, 500),
            (zmq.BACKLOG, 64),
        ):
            self._router.setsockopt(option, value)
        mask = os.umask(0o177)
        try:
            self._router.bind(f"ipc://{run_dir.socket}")
        finally:
            os.umask(mask)
        self._epoll = select.epoll()
        self._epoll.register(self._router.FD, select.EPOLLIN)
        self._pidfds: dict[int, bytes] = {}  # pidfd -> route
        self._by_route: dict[bytes, int] = {}

    def fileno(self) -> int:
        return self._epoll.fileno()

    def has_input(self) -> bool:
        # The socket's fd is edge-triggered: only EVENTS says whether there is something.
        return bool(cast(int, self._router.EVENTS) & zmq.POLLIN)

    def receive(self) -> Iterator[Arrival]:
        for _ in range(1024):  # then others get their turn
            if not self._at_end():
                return
            try:
                first = self._router.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            frames: list[bytes] = []
            while len(frames) < MAX_FRAMES and self._router.RCVMORE:
                frames.append(self._router.recv())
            uid, pid = _credentials(first)
            yield Arrival(first.bytes, uid, pid, frames)

    def _at_end(self) -> bool:
        """Throw away what is left of the last message; False if there is too much of it."""
        for _ in range(MAX_SKIPPED):
            if not self._router.RCVMORE:
                return True
            self._router.recv()
        return False

    def send(self, route: bytes, frames: list[bytes]) -> bool:
        try:
            self._router.send_multipart([route, *frames], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise LookupError("the peer has gone") from None
            raise
        return True

    def alive(self, route: bytes) -> bool:
        try:
            self.send(route, [_NO_EVENTS])
        except LookupError:
            return False
        return True

    def welcome(self, route: bytes, pid: int) -> bool:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        self._pidfds[pidfd] = route
        self._by_route[route] = pidfd
        self._epoll.register(pidfd, select.EPOLLIN)
        return True

    def forget(self, route: bytes) -> None:
        pidfd = self._by_route.pop(route, None)
        if pidfd is not None:
            del self._pidfds[pidfd]
            self._epoll.unregister(pidfd)
            os.close(pidfd)

    def gone(self) -> list[bytes]:
        return [self._pidfds[fd] for fd, _ in self._epoll.poll(0) if fd in self._pidfds]

    def close(self) -> None:
        """Send what is left for half a second, then close."""
        for route in list(self._by_route):
            self.forget(route)
        self._epoll.close()
        self._router.close()
        self._context.term()


def _credentials(frame: zmq.Frame) -> tuple[int, int]:
    """Return (uid, pid) of the sender: Peer-Address is `localhost:uid:gid:pid`, set by libzmq."""
    _, uid, _, pid = str(frame.get("Peer-Address")).split(":")
    return int(uid), int(pid)
