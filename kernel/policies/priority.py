"""Strict priority: a request waits as long as any of a lower nice value can run.

Those of equal nice values are first come, first served. It starves whoever is nice: for kernels
whose tasks know of each other.
"""

from collections.abc import Iterable, Sequence

from kernel.account import Account
from kernel.policy import Pages, Runnable


class Priority(Pages):
    """By the nice value of the account in whose place a request stands."""

    def order(self, requests: Sequence[Runnable]) -> list[Runnable]:
        def key(request: Runnable) -> tuple[bool, int, bool, int]:
            nice = request.rank.nice
            return request.background, nice, not request.decoding, request.arrival

        return sorted(requests, key=key)

    def charge(self, payer: Account, service: int) -> None:
        pass

    def claims(self, requests: Iterable[Runnable]) -> list[Runnable]:
        return sorted(requests, key=lambda request: (request.rank.nice, request.arrival))
