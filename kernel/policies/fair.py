"""Fair share: among siblings in the tree of accounts, whoever has been served least is next.

Virtual token counters (Sheng et al., OSDI'24), one per account and level: `virtual` is the service
that an account and all below it were charged, divided by its weight; `own` likewise what a task has
asked for itself, which competes with its children as one more of them, of nice 0.

Who comes back is lifted to those who are there: idle time is not saved up. `floor` is the least
counter that the active accounts below an account have had in a plan. It only rises, those who stay
active are never below it, and who is below it has been away.

    two accounts that never lack requests, of weights w and v, get service S and T with
    |S / w - T / v| <= (2 * step) / min(w, v)        at any moment, over any stretch of time

where `step` is the most that one account can be charged in one step: with the token budget L and
at most M sequences, L + 3 * M. (The paper's bound, with steps that are charged when they are
submitted. It holds while the same thing is scarce for both: not where places for KV, or the room
for the prefill of one that only reads, decide who runs.)

When places for KV run out, they go by QUANTUM of the same counters, then by the age of accounts: so
each change of places is paid for by that much service. By age, for whoever goes on ends and leaves
its places; served alike instead, all are half done at any time, and compute each other's KV again
(bench/agents.py: half of 64 agents on a quarter of their need end in 46 s, under fifo in 103).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heapreplace

from kernel.account import Account
from kernel.policy import SAMPLE, Pages, Runnable

CHUNK = 512
"""Positions that a request is expected to take of a step, at most."""
NORMAL = 1024
"""The weight of nice 0."""
QUANTUM = 2048
"""Service, for nice 0."""


class Turn:
    """An account in one plan: its own requests, and the accounts below it that have any."""

    __slots__ = ("account", "heap")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.heap: list[tuple[float, int, Turn | deque[Runnable]]] = []


class Fair(Pages):
    """Its counters are in the accounts; it has none of its own."""

    def order(self, requests: Sequence[Runnable]) -> Iterator[Runnable]:
        waited = [request for request in requests if not request.background]
        waited.sort(key=lambda request: (not request.decoding, request.arrival))
        root = self._tree(waited)
        while root is not None and root.heap:
            yield _take(root)[0]
        yield from (request for request in requests if request.background)

    def charge(self, payer: Account, service: int) -> None:
        payer.own += service
        for account in payer.path():
            account.virtual += service * NORMAL / account.weight

    def claims(self, requests: Iterable[Runnable]) -> list[Runnable]:
        return sorted(requests, key=_standing)

    def _tree(self, requests: Sequence[Runnable]) -> Turn | None:
        """Return the turn of the root, with those who have requests below it; lift them."""
        turns: dict[Account, Turn] = {}
        own: dict[Account, deque[Runnable]] = {}
        for request in requests:
            account = request.rank
            queue = own.get(account)
            if queue is None:
                queue = own[account] = deque()
                account.own = max(account.own, account.floor)
                _turn(account, turns, request.arrival).heap.append(
                    (account.own, request.arrival, queue)
                )
            queue.append(request)
        root = None
        for account, turn in turns.items():
            heapify(turn.heap)
            account.floor = max(account.floor, turn.heap[0][0])
            if account.parent is None:
                root = turn
        return root


def _turn(account: Account, turns: dict[Account, Turn], arrival: int) -> Turn:
    """Return the turn of an account; enter a new one in that of its parent, equals by arrival."""
    turn = turns.get(account)
    if turn is None:
        turn = turns[account] = Turn(account)
        parent = account.parent
        if parent is not None:
            account.virtual = max(account.virtual, parent.floor)
            entry = account.virtual, arrival, turn
            _turn(parent, turns, arrival).heap.append(entry)
    return turn


def _take(turn: Turn) -> tuple[Runnable, int]:
    """Return the request that is next, with the service that it is expected to be charged."""
    virtual, number, first = turn.heap[0]
    if isinstance(first, deque):
        request, weight = first.popleft(), NORMAL
        service = min(request.remaining, CHUNK) + SAMPLE
        left = bool(first)
    else:
        request, service = _take(first)
        weight, left = first.account.weight, bool(first.heap)
    if left:
        heapreplace(turn.heap, (virtual + service * NORMAL / weight, number, first))
    else:
        heappop(turn.heap)
    return request, service


def _standing(request: Runnable) -> tuple[tuple[float, ...], ...]:
    """Return where a request stands among those that claim places: the smaller one has them.

    Level by level from the root: quanta of service, then the age of the account; at the end that of
    the request itself, so that the order is total.
    """
    path = list(request.rank.path())
    levels = [(account.virtual // QUANTUM, account.born) for account in reversed(path)]
    return *levels, (request.rank.own // QUANTUM, request.rank.born), (request.arrival,)
