"""Whose turn it is with a Task: one thread at a time.

Two threads that wait on one socket take each other's answers off it, and one of them waits forever.
So a call that is made while another thread is in one is refused. A Task may be handed from thread
to thread between calls, and a call within a call of the same thread (a signal handler's) is let in.
"""

from threading import RLock

from syscalls.errors import EINVAL


class Turn:
    """Held during each call."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise EINVAL(
                "another thread is in a call of this Task", "call connect() in each thread"
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()
