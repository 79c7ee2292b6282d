"""The client library of llmos: what a program imports to be a task of the kernel.

    from syscalls import connect          the synchronous client
    from syscalls import aio              its asyncio twin, loaded when it is first named

Importing it loads neither torch nor tokenizers nor jinja2: the text layer comes with the first
text.
"""

from typing import TYPE_CHECKING, Any

from syscalls.abi import Access
from syscalls.child import Child
from syscalls.client import Task, connect
from syscalls.context import Answers, Context, Grant, Stream
from syscalls.conversation import Turn
from syscalls.errors import (
    E2BIG,
    EAGAIN,
    EBADCTX,
    EBUSY,
    ECANCELED,
    ECONNRESET,
    ECORRUPT,
    EDEADLK,
    EDQUOT,
    EEXIST,
    EINVAL,
    EIO,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOTSUP,
    EPERM,
    EPIPE,
    EPROTO,
    EREVOKED,
    ESRCH,
    ESTALE,
    ETIMEDOUT,
    Errno,
    KernelError,
)
from syscalls.flow import Raw
from syscalls.forks import Scored
from syscalls.output import Piece, Usage
from syscalls.port import Message, Port, Subscription
from syscalls.session import Exited, Progress, Signalled

if TYPE_CHECKING:
    from syscalls import aio

__all__ = [
    # the client
    "connect",
    "aio",
    "Task",
    "Child",
    "Context",
    "Stream",
    "Answers",
    "Grant",
    "Port",
    "Subscription",
    "Message",
    # values
    "Access",
    "Piece",
    "Scored",
    "Usage",
    "Progress",
    "Turn",
    "Raw",
    "Signalled",
    "Exited",
    # errors
    "KernelError",
    "Errno",
    "E2BIG",
    "EAGAIN",
    "EBADCTX",
    "EBUSY",
    "ECANCELED",
    "ECONNRESET",
    "ECORRUPT",
    "EDEADLK",
    "EDQUOT",
    "EEXIST",
    "EINVAL",
    "EIO",
    "ENODEV",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "ENOTSUP",
    "EPERM",
    "EPIPE",
    "EPROTO",
    "EREVOKED",
    "ESRCH",
    "ESTALE",
    "ETIMEDOUT",
]


def __getattr__(name: str) -> Any:
    # asyncio alone takes as long to import as all the rest.
    if name == "aio":
        from importlib import import_module

        return import_module("syscalls.aio")
    raise AttributeError(f"module 'syscalls' has no attribute {name!r}")
