"""Job: work that would hold the loop for too long, done a slice in each turn.

Work is a generator that yields how many blocks it has looked at since it last did; it ends with the
Done of its call, or with None if nobody waits for it. The first slice runs at once, so work that is
small is done at once. What it looks at may change between two slices: it looks at lists of its own.
"""

from collections import deque
from collections.abc import Generator
from typing import NamedTuple

from kernel.handler import PENDING, Done, Pending
from kernel.session import Session
from syscalls.errors import KernelError

SLICE = 8192
"""Blocks that one turn looks at: about a millisecond."""
Work = Generator[int, None, Done | None]


class Job(NamedTuple):
    """Work, and the call that it is of."""

    work: Work
    session: Session | None
    call: int


class Jobs:
    """What is not done yet, in turns."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()  # of calls, in turns
        self._own: deque[Job] = deque()  # of the kernel: it goes on in each turn

    def __len__(self) -> int:
        return len(self._jobs) + len(self._own)

    def start(self, work: Work, session: Session | None = None, call: int = 0) -> Done | Pending:
        """Do a slice of new work; return what its call is answered. KernelError if it cannot be."""
        done = _slice(work)
        if done is not PENDING:
            return done
        (self._own if session is None else self._jobs).append(Job(work, session, call))
        return PENDING

    def go_on(self) -> None:
        """Do a slice of the kernel's own work, and one of the job whose turn it is."""
        if self._own and _slice(self._own[0].work) is not PENDING:
            self._own.popleft()
        if not self._jobs:
            return
        job = self._jobs.popleft()
        if job.session is not None and job.call not in job.session.open:
            return  # whoever asked has gone
        try:
            done = _slice(job.work)
        except KernelError as error:
            assert job.session is not None
            job.session.fail(job.call, error)
            return
        if done is PENDING:
            self._jobs.append(job)
        elif job.session is not None:
            job.session.finish(job.call, done.result, done.ids)


def _slice(work: Work) -> Done | Pending:
    left = SLICE
    try:
        while left > 0:
            left -= next(work)
    except StopIteration as end:
        return end.value or Done(())
    return PENDING
