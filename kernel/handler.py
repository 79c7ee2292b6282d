"""What a handler takes and returns: `sys_fork_ctx(k, caller, args) -> Done | Pending`.

A handler checks everything first and raises a KernelError while nothing has changed; then it acts,
and acting cannot fail. One that has much to look at is a generator (kernel/job.py).
"""

from array import array
from enum import Enum
from typing import Any, NamedTuple

from kernel.session import Session
from kernel.task import Task


class Done(NamedTuple):
    """The call has ended with this result row and these ids for frame 2."""

    result: Any
    ids: "array[int] | None" = None


class Pending(Enum):
    """The call stays open; somebody will finish it."""

    PENDING = 0


PENDING = Pending.PENDING


class Caller(NamedTuple):
    """Who makes a call, and its envelope."""

    session: Session
    task: Task
    call: int
    ids: "array[int] | None"
