"""Errors a system call can end in: one errno each, with what, why and what next.

    KernelError
    |- EPERM ENOENT ESRCH EIO E2BIG EAGAIN ENOMEM EBUSY EEXIST ENODEV EINVAL ENOSPC EPIPE
    |- EDEADLK EPROTO ENOTSUP ECONNRESET ETIMEDOUT ESTALE ECANCELED EDQUOT
    `- EBADCTX EREVOKED ECORRUPT          (ours: no POSIX number exists)

"Not yours" and "not there" are the same answer (ESRCH, EBADCTX), so that guessing teaches nothing.
Messages carry numbers and limits, never prompt text, paths of other users or addresses.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar


class Errno(IntEnum):
    """Numbers on the wire: Linux values where Linux has the name, ours from 1001."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EIO = 5
    E2BIG = 7
    EAGAIN = 11
    ENOMEM = 12
    EBUSY = 16
    EEXIST = 17
    ENODEV = 19
    EINVAL = 22
    ENOSPC = 28
    EPIPE = 32
    EDEADLK = 35
    EPROTO = 71
    ENOTSUP = 95
    ECONNRESET = 104
    ETIMEDOUT = 110
    ESTALE = 116
    EDQUOT = 122
    ECANCELED = 125
    EBADCTX = 1001
    EREVOKED = 1002
    ECORRUPT = 1003


class KernelError(Exception):
    """A call ended in an error.

    `message` says what and why with the number and the limit; `hint` says what to do next;
    `details` holds the same numbers for programs.
    """

    errno: ClassVar[Errno]

    def __init__(
        self, message: str, hint: str = "", details: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: Mapping[str, int] = details or {}

    def __str__(self) -> str:
        text = f"{self.message} ({self.errno.name})"
        return f"{text}\n  try   {self.hint}" if self.hint else text


class EPERM(KernelError):
    """The caller lacks the right."""

    errno = Errno.EPERM


class ENOENT(KernelError):
    """No model, save or name like that."""

    errno = Errno.ENOENT


class ESRCH(KernelError):
    """No such task, or not one the caller may see."""

    errno = Errno.ESRCH


class EIO(KernelError):
    """The device failed this request."""

    errno = Errno.EIO


class E2BIG(KernelError):
    """More ids than the context or the message may hold."""

    errno = Errno.E2BIG


class EAGAIN(KernelError):
    """Not now; the same call may succeed later."""

    errno = Errno.EAGAIN


class ENOMEM(KernelError):
    """The request alone cannot fit the KV pool."""

    errno = Errno.ENOMEM


class EBUSY(KernelError):
    """The context has an unfinished infer."""

    errno = Errno.EBUSY


class EEXIST(KernelError):
    """The handle or name is taken."""

    errno = Errno.EEXIST


class ENODEV(KernelError):
    """No device of that name is up."""

    errno = Errno.ENODEV


class EINVAL(KernelError):
    """An argument is out of range."""

    errno = Errno.EINVAL


class ENOSPC(KernelError):
    """The disk is full."""

    errno = Errno.ENOSPC


class EPIPE(KernelError):
    """The reader is gone."""

    errno = Errno.EPIPE


class EDEADLK(KernelError):
    """The call would close a cycle of waiting tasks."""

    errno = Errno.EDEADLK


class EPROTO(KernelError):
    """The message is not in the form of the ABI."""

    errno = Errno.EPROTO


class ENOTSUP(KernelError):
    """Reserved in the ABI, not built in this kernel."""

    errno = Errno.ENOTSUP


class ECONNRESET(KernelError):
    """The kernel went away, or closed the session."""

    errno = Errno.ECONNRESET


class ETIMEDOUT(KernelError):
    """The deadline passed."""

    errno = Errno.ETIMEDOUT


class ESTALE(KernelError):
    """The call id is older than the results that are kept."""

    errno = Errno.ESTALE


class EDQUOT(KernelError):
    """The task's limit is reached."""

    errno = Errno.EDQUOT


class ECANCELED(KernelError):
    """The call was cancelled, or the call it is chained to failed."""

    errno = Errno.ECANCELED


class EBADCTX(KernelError):
    """No such context, or not the caller's."""

    errno = Errno.EBADCTX


class EREVOKED(KernelError):
    """The owner of a shared block took it back."""

    errno = Errno.EREVOKED


class ECORRUPT(KernelError):
    """Stored bytes fail their check."""

    errno = Errno.ECORRUPT


BY_ERRNO: dict[int, type[KernelError]] = {
    int(cls.errno): cls for cls in KernelError.__subclasses__()
}


def from_wire(errno: int, message: str, hint: str, details: Mapping[str, int]) -> KernelError:
    """Return the exception for an ERR event; an unknown number (a newer kernel) becomes EIO."""
    cls = BY_ERRNO.get(errno)
    if cls is None:
        return EIO(f"{message} (errno {errno}, unknown to this library)", hint, details)
    return cls(message, hint, details)
