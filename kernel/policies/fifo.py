"""First come, first served: decodes, then prefills, then those that nobody waits for.

Each by arrival; the youngest gives way.
"""

from collections.abc import Iterable, Sequence

from kernel.account import Account
from kernel.policy import Pages, Runnable


class Fifo(Pages):
    """Fair to nobody: whoever asks most is served most."""

    def order(self, requests: Sequence[Runnable]) -> list[Runnable]:
        return sorted(requests, key=lambda r: (r.background, not r.decoding, r.arrival))

    def charge(self, payer: Account, service: int) -> None:
        pass

    def claims(self, requests: Iterable[Runnable]) -> list[Runnable]:
        return sorted(requests, key=lambda request: request.arrival)
