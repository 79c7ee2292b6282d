"""Policy: who goes first, who gives way. Pure decisions; the kernel carries them out.

A policy sees the requests that could run and the ones that could give way, nothing else, and
returns them in an order. It never allocates, drops or runs anything. The kernel takes as many as
its budgets allow; what a policy leaves out simply does not run in this step. Scheduling classes
and fairness come as further policies; this kernel is built with one.
"""

from collections.abc import Iterable
from typing import Protocol


class Runnable(Protocol):
    """What a policy may know of a request."""

    @property
    def arrival(self) -> int: ...

    @property
    def decoding(self) -> bool: ...

    @property
    def background(self) -> bool: ...


class Idle(Protocol):
    """What a policy may know of a context that runs nothing."""

    @property
    def last_use(self) -> int: ...


class Policy(Protocol):
    """The decisions."""

    def order(self, requests: Iterable[Runnable]) -> list[Runnable]:
        """Return requests in the order in which they get tokens of the next step."""
        ...

    def victims(self, requests: Iterable[Runnable]) -> list[Runnable]:
        """Return requests in the order in which they lose their KV when blocks run out."""
        ...

    def idle_victims(self, contexts: Iterable[Idle]) -> list[Idle]:
        """Return idle contexts in the order in which they lose their KV."""
        ...


class Fifo:
    """First come, first served: decodes, then prefills, then those that nobody waits for.

    Each by arrival; the youngest gives way.
    """

    def order(self, requests: Iterable[Runnable]) -> list[Runnable]:
        return sorted(requests, key=lambda r: (r.background, not r.decoding, r.arrival))

    def victims(self, requests: Iterable[Runnable]) -> list[Runnable]:
        return sorted(requests, key=lambda request: -request.arrival)

    def idle_victims(self, contexts: Iterable[Idle]) -> list[Idle]:
        return sorted(contexts, key=lambda context: context.last_use)
