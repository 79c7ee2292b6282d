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

    @property
    def stopped(self) -> bool: ...

    @property
    def demoted(self) -> bool: ...

    @property
    def retained_until(self) -> float: ...


class Policy(Protocol):
    """The decisions."""

    def order(self, requests: Iterable[Runnable]) -> list[Runnable]:
        """Return requests in the order in which they get tokens of the next step."""
        ...

    def victims(self, requests: Iterable[Runnable]) -> list[Runnable]:
        """Return requests in the order in which they lose their KV when blocks run out."""
        ...

    def idle_victims(self, contexts: Iterable[Idle], now: float) -> list[Idle]:
        """Return idle contexts in the order in which they lose their place on the device."""
        ...

    def swaps(self, tokens: int, copy_us: float, compute_us: float) -> bool:
        """Whether KV of so many positions is copied to a lower tier, rather than dropped.

        Copying it there and back has been measured to take `copy_us`, computing it again
        `compute_us`; 0: not yet.
        """
        ...


class Fifo:
    """First come, first served: decodes, then prefills, then those that nobody waits for.

    Each by arrival; the youngest gives way. Of idle contexts, those of stopped tasks give way
    first, then those that their programs have demoted, then the one that was used least recently;
    those that are to be retained are last. What is cheaper to copy than to compute is copied.
    """

    def order(self, requests: Iterable[Runnable]) -> list[Runnable]:
        return sorted(requests, key=lambda r: (r.background, not r.decoding, r.arrival))

    def victims(self, requests: Iterable[Runnable]) -> list[Runnable]:
        return sorted(requests, key=lambda request: -request.arrival)

    def idle_victims(self, contexts: Iterable[Idle], now: float) -> list[Idle]:
        def worth(ctx: Idle) -> tuple[bool, bool, bool, int]:
            return ctx.retained_until > now, not ctx.stopped, not ctx.demoted, ctx.last_use

        return sorted(contexts, key=worth)

    def swaps(self, tokens: int, copy_us: float, compute_us: float) -> bool:
        return not copy_us or not compute_us or copy_us < compute_us
