"""Process: what the host processes of the kernel have in common, for drivers and for the store.

A host lives no longer than the kernel: its parent's death ends it (of the thread that started it,
as Linux has it), and so does the end of file on the socket, whatever it is doing. While it owes an
answer it sends a sign of life about once a second; idle, it never wakes.
"""

import ctypes
import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable

HEARTBEAT_S = 1.0
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4


class Owed:
    """How many answers the kernel waits for, and the thread that says that they will come."""

    def __init__(self, beat: Callable[[], None], period_s: float) -> None:
        self._beat = beat
        self._period_s = period_s
        self._lock = threading.Lock()
        self._count = 0
        self._owes = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def change(self, by: int) -> None:
        """Owe so many answers more, or fewer."""
        with self._lock:
            self._count += by
            if self._count > 0:
                self._owes.set()
            else:
                self._owes.clear()

    def _run(self) -> None:
        pause = threading.Event()
        while self._owes.wait():
            pause.wait(self._period_s)
            if self._owes.is_set():
                self._beat()


def end_with(sock: socket.socket) -> None:
    """End this process as soon as the kernel's end of the socket is closed."""

    def watch() -> None:
        poller = select.poll()
        poller.register(sock, select.POLLRDHUP)  # messages do not wake it
        poller.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def tie_to_parent() -> None:
    """Die with the kernel, also if it is killed before it can close anything."""
    parent = os.getppid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it died in between; if before, the socket tells


def no_dumps(debuggers: bool) -> None:
    """Leave no core, which would hold what users wrote; without `debuggers` none may look in."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not debuggers:
        _prctl(PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def receive(sock: socket.socket, most: int) -> bytes:
    """Return the next message of the kernel, b"" at its end."""
    try:
        return sock.recv(most + 1)
    except ConnectionResetError:
        return b""  # closed with our messages unread


def send(sock: socket.socket, lock: threading.Lock, raw: bytes) -> None:
    """Send a message from any thread; end this process if the kernel has gone."""
    try:
        with lock:
            sock.send(raw)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)


def sendable(story: str, most: int) -> str:
    """Return what a message takes of a text that may quote a path, or a name from a folder."""
    raw = story.encode(errors="backslashreplace")
    return raw[:most].decode(errors="ignore")
