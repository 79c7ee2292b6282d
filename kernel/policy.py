"""Policy: who goes first, who gives way. Pure decisions; the kernel carries them out.

A policy sees the requests that could run and the ones that could give way, nothing else, and
returns them in an order. It never allocates, drops or runs anything. The kernel takes as many as
its budgets allow; what a policy leaves out simply does not run in this step. Those that the kernel
brings along are in kernel/policies; others come from entry points (kernel/chosen.py).

Service is what requests are charged for: a position that is computed for the first time counts 1,
an id that is sampled 2 more, as in Sheng et al., "Fairness in Serving Large Language Models"
(OSDI'24). What the kernel has to compute again costs them nothing.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from kernel.account import Account

POSITION, SAMPLE = 1, 2
"""Service."""


class Runnable(Protocol):
    """What a policy may know of a request."""

    @property
    def arrival(self) -> int: ...

    @property
    def decoding(self) -> bool: ...

    @property
    def background(self) -> bool: ...

    @property
    def remaining(self) -> int:
        """Positions before its next id, that one included."""
        ...

    @property
    def rank(self) -> Account:
        """In whose place it stands: its payer's, or that of a caller who waits for it."""
        ...


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

    @property
    def used_at(self) -> float: ...

    @property
    def returns_at(self) -> float:
        """When the call is expected to return in which its task waits; 0: it is in none."""
        ...


class Policy(Protocol):
    """The decisions."""

    def order(self, requests: Sequence[Runnable]) -> Iterable[Runnable]:
        """Return the requests of a model in the order in which they get tokens of the next step."""
        ...

    def charge(self, payer: Account, service: int) -> None:
        """Note that a step that has been submitted serves somebody."""
        ...

    def claims(self, requests: Iterable[Runnable]) -> Sequence[Runnable]:
        """Return all requests in the order in which they have places for KV, if there are too few.

        Each gives way to those before it. The first, the head, may have all that the others have:
        so it ends, and the next one is the head.
        """
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

    def parks(self, away_s: float, back_us: float) -> bool:
        """Say whether the KV of a task that has begun to wait for a reply is the first to go.

        The reply is expected in `away_s`, to copy the KV back takes `back_us`.
        """
        ...


class Pages:
    """What policies of requests have in common: which KV that nobody uses goes first, and whither.

    Of idle contexts, those of stopped tasks give way first, then those that their programs have
    demoted, then the one that will be used last: a task that waits in a call comes back when such
    calls usually return, any other one after as long as it has been idle already. Those that are to
    be retained are last. What is cheaper to copy than to compute is copied.
    """

    def idle_victims(self, contexts: Iterable[Idle], now: float) -> list[Idle]:
        def worth(ctx: Idle) -> tuple[bool, bool, bool, float, int]:
            away = ctx.returns_at - now if ctx.returns_at > now else now - ctx.used_at
            return ctx.retained_until > now, not ctx.stopped, not ctx.demoted, -away, ctx.last_use

        return sorted(contexts, key=worth)

    def swaps(self, tokens: int, copy_us: float, compute_us: float) -> bool:
        return not copy_us or not compute_us or copy_us < compute_us

    def parks(self, away_s: float, back_us: float) -> bool:
        return away_s * 1e6 > 2 * back_us  # there and back
