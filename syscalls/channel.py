"""A DEALER socket to the kernel and the news of its end, for the sync and the asyncio client.

Two sockets are watched together: `socket` carries messages, `monitor` tells that the kernel is
gone. There is no reconnect: a kernel that comes back knows nothing of this session, at most of its
task, to which another session may attach. Nothing here blocks; the twins wait, each in its own way,
on both sockets.

The queues have no limit on this side: what the kernel has sent belongs to a program that may be
slow to read it, and the kernel must not lose a terminal event because of that.
"""

import os
import socket
import struct
from contextlib import closing

import zmq

from syscalls.abi import HelloResult
from syscalls.address import socket_path
from syscalls.errors import (
    ECONNRESET,
    EINVAL,
    ENOTSUP,
    EPERM,
    EPROTO,
    ESRCH,
    ETIMEDOUT,
    KernelError,
)  # fmt: skip
from syscalls.session import Pending, Session

_UCRED = struct.Struct("3i")
"""pid, uid, gid."""

_ENDS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)

# A day: the channel is closed long before. -1, which would mean never, makes libzmq drop the pipe
# at the disconnect, with what the kernel had sent last still in it.
_NEVER_MS = 24 * 3600 * 1000


class Channel:
    """Messages to and from one kernel."""

    def __init__(self, address: str) -> None:
        self.kernel_pid = probe(address)
        self.address = address
        self._owner = os.getpid()
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
            self.socket.setsockopt(option, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(_ENDS)
        self.monitor.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)

    def send(self, frames: list[bytes]) -> None:
        """Queue one message; ECONNRESET if nobody can ever read it."""
        self.check_owner()
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise gone(str(error)) from None

    def drain(self) -> list[list[bytes]]:
        """Return every message that has arrived."""
        self.check_owner()
        messages: list[list[bytes]] = []
        while True:
            try:
                messages.append(self.socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return messages

    def dead(self) -> bool:
        """Return whether the kernel has closed the connection; true once."""
        seen = False
        while True:
            try:
                self.monitor.recv_multipart(zmq.NOBLOCK)
                seen = True
            except zmq.Again:
                return seen

    @property
    def mine(self) -> bool:
        """Whether this process made the channel, and not one that it was forked from."""
        return self._owner == os.getpid()

    @property
    def closed(self) -> bool:
        return bool(self.socket.closed)

    def check_owner(self) -> None:
        """Raise in a forked child: its copy of the sockets would steal the parent's messages."""
        if not self.mine:
            raise ECONNRESET(
                f"this connection belongs to host process {self._owner}, and was copied by a fork",
                "call connect() in the child",
            )

    def close(self) -> None:
        """Drop the connection and what is still queued; nothing in a forked child."""
        if not self.mine or self.closed:
            return
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=0)
        self._context.term()


def pump(channel: Channel, session: Session) -> list[Pending]:
    """Give the session what has arrived, its end included; return the calls that have news."""
    # What the kernel sent before it went is in the queue by the time the monitor tells, so the
    # order matters: ask the monitor first, and read the queue after it.
    dead = channel.dead()
    news: list[Pending] = []
    try:
        for frames in channel.drain():
            news += session.receive(frames)
    except EPROTO as error:
        # Without the frames that cannot be read nobody knows which calls have ended.
        return news + session.fail_all(error)
    if dead:
        news += session.fail_all(gone())
    return news


def gone(why: str = "") -> ECONNRESET:
    """Return the error of a call whose kernel is not there any more."""
    detail = f": {why}" if why else ""
    return ECONNRESET(f"the kernel went away{detail}", "llmos status, llmos up")


def closed() -> ECONNRESET:
    """Return the error of a call whose Task was closed here."""
    return ECONNRESET("this Task is closed", "connect() makes another one")


def is_saved(lost: KernelError | None) -> bool:
    """Whether a session was lost because its kernel has saved everything and stopped."""
    return lost is not None and bool(lost.details.get("saved"))


def not_back(lost: KernelError | None, why: BaseException) -> KernelError | None:
    """Return the error of calls of a Task that could not come back to its kernel."""
    if isinstance(why, ESRCH):
        return ECONNRESET("the kernel does not have this task", "connect() makes another one")
    return lost


def may_reattach(session: Session, hello: HelloResult | None) -> bytes:
    """Return the secret of a lost session's task; EINVAL if it is not lost, ENOTSUP without one."""
    if session.lost is None or hello is None:
        raise EINVAL("this Task has its kernel", "reattach() is for one that has lost it")
    if not hello.token:
        raise ENOTSUP("that kernel could not save its tasks", "connect() makes another one")
    return hello.token


def no_answer(channel: Channel, limit: float) -> ETIMEDOUT:
    """Return the error of a hello that got no answer: somebody listens, and is busy or hangs."""
    pid = channel.kernel_pid
    return ETIMEDOUT(
        f"the kernel at {channel.address} did not answer within {limit:g} s",
        "it again" + (f"; kill -9 {pid} ends a kernel that hangs" if pid else ""),
    )


def probe(address: str) -> int:
    """Return the pid of whoever listens, 0 if it cannot be known; raise if nobody does.

    ZeroMQ would wait for a listener without a word.
    """
    path = socket_path(address)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as door:
        # A kernel whose queue of connections is full is there, and answers late.
        door.setblocking(False)
        try:
            door.connect(str(path))
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _no_kernel(error, str(path)) from None
        peer = door.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(peer)[0])


def _no_kernel(error: OSError, path: str) -> KernelError:
    if isinstance(error, PermissionError):
        return EPERM(f"not permitted to connect to {path}", "is it another user's kernel?")
    return ECONNRESET(f"no kernel is running at {path}", "llmos up")
