"""Limits: how much an account, and all below it, may use of a resource.

A limit stands on one account and is compared with what that account has been charged, so it holds
for the whole tree below: children share what is left, they do not each have all of it. A call is
checked on the way from its payer to the root, and the first limit that it would exceed is named.

    counts   ids, device seconds, wall clock: they only rise, and nothing gives any of it back
    rates    requests of the last 60 seconds
    levels   blocks, pins, contexts, tasks, depth: free again when they are given back

Hard: what is new is refused with EDQUOT, what runs ends with it (kernel/quota.py). Soft: a signal,
once for each time that it is reached.
"""

from collections import deque
from collections.abc import Iterable
from math import inf

from kernel.account import Account, Kind
from kernel.block import Block
from kernel.usage import Counters, Tier
from syscalls.abi import Resource
from syscalls.errors import EDQUOT

WINDOW_S = 60.0
MAX_RATE = 100_000
"""The highest limit of requests in a minute: so many times are kept."""

BLOCKS = {
    Resource.DEVICE_BLOCKS: Tier.DEVICE,
    Resource.HOST_BLOCKS: Tier.HOST,
    Resource.DISK_BLOCKS: Tier.DISK,
}
STOPPING = (Resource.OUTPUT_IDS, Resource.DEVICE_S, Resource.WALL_S)
"""When one of these is used up, nothing is computed for the account any more."""


class Limit:
    """Of one resource of one account; None: no limit."""

    __slots__ = ("hard", "recent", "soft", "told")

    def __init__(self, soft: float | None, hard: float | None) -> None:
        self.soft = soft
        self.hard = hard
        self.told = False  # the soft one has been signalled, and is still reached
        self.recent: deque[float] = deque()  # when requests were accepted, of a rate

    def expire(self, now: float) -> None:
        """Forget the requests of more than a minute ago."""
        while self.recent and self.recent[0] <= now - WINDOW_S:
            self.recent.popleft()


def used(account: Account, resource: Resource) -> float:
    """Return how much of a resource is in use, or has been used."""
    usage, table = account.usage, account.table
    match resource:
        case Resource.INPUT_IDS:
            return usage.input_ids + account.before.input_ids
        case Resource.OUTPUT_IDS:
            return usage.output_ids + account.before.output_ids
        case Resource.DEVICE_S:
            return (usage.device_us + account.before.device_us) / 1e6
        case Resource.WALL_S:
            return table.clock() - account.begun
        case Resource.DEVICE_BLOCKS | Resource.HOST_BLOCKS | Resource.DISK_BLOCKS:
            return usage.blocks[BLOCKS[resource]]
        case Resource.CONTEXTS:
            return usage.contexts + table.coming(account)
        case Resource.PINNED_BLOCKS:
            return table.pinned(account)
        case Resource.CHILDREN:
            return usage.tasks - (account.kind is Kind.TASK and not account.closed)
        case Resource.DEPTH:
            return 0  # of one that would be new: see check_birth
        case Resource.REQUESTS_PER_MIN:
            limit = (account.limits or {}).get(resource)
            if limit is None:
                return 0
            limit.expire(table.clock())
            return len(limit.recent)


def total(account: Account) -> Counters:
    """Return all counters of an account, what it has used before this kernel included."""
    return account.usage.counters(account.table.now_us).plus(account.before)


def pack(account: Account) -> tuple[tuple[int, float], ...]:
    """Return the limits of an account as numbers: of the resource and its side, and how much."""
    return tuple(
        (2 * number + side, value)
        for number, resource in enumerate(Resource)
        if account.limits and resource in account.limits
        for side, value in enumerate((account.limits[resource].soft, account.limits[resource].hard))
        if value is not None
    )


def unpack(account: Account, pairs: Iterable[tuple[int, float]]) -> None:
    """Give an account the limits that `pack` has returned; what is unknown here is left out."""
    resources, found = list(Resource), dict[Resource, Limit]()
    for number, value in pairs:
        if number // 2 < len(resources):
            limit = found.setdefault(resources[number // 2], Limit(None, None))
            limit.soft, limit.hard = (limit.soft, value) if number % 2 else (value, limit.hard)
    account.limits = found or None
    account.table.hot.add(account)


def limited(account: Account, resource: Resource) -> bool:
    """Whether an account or one above it has a hard limit of a resource."""
    return any(
        above.limits and resource in above.limits and above.limits[resource].hard is not None
        for above in account.path()
    )


def admit(account: Account, resource: Resource, more: float) -> None:
    """Raise EDQUOT if an account, or one above it, may not use `more` of a resource."""
    for above in account.path() if more > 0 else ():
        limit = above.limits.get(resource) if above.limits else None
        if limit is not None and limit.hard is not None:
            already = used(above, resource)
            if already + more > limit.hard:
                raise exceeded(above, resource, already, limit.hard, more)


def admit_work(account: Account) -> None:
    """Raise EDQUOT if nothing may be computed for an account any more."""
    for above in account.path():
        for resource in STOPPING if above.limits else ():
            limit = (above.limits or {}).get(resource)
            if limit is not None and limit.hard is not None:
                already = used(above, resource)
                if already >= limit.hard:
                    raise exceeded(above, resource, already, limit.hard)


def accepted(account: Account) -> None:
    """Note that a request was accepted: rates count it."""
    now = account.table.clock()
    for above in account.path():
        limit = above.limits.get(Resource.REQUESTS_PER_MIN) if above.limits else None
        if limit is not None:
            limit.expire(now)
            limit.recent.append(now)


def check_birth(above: Account) -> None:
    """Raise EDQUOT if an account may not have one more task below it."""
    admit(above, Resource.CHILDREN, 1)
    for account in above.path():
        depth = above.level + 1 - account.level
        limit = account.limits.get(Resource.DEPTH) if account.limits else None
        if limit is not None and limit.hard is not None and depth > limit.hard:
            raise exceeded(account, Resource.DEPTH, depth - 1, limit.hard, 1)


def admit_move(account: Account, then: Account) -> None:
    """Raise EDQUOT if an account may not come below another one with what it has."""
    has, deepest = account.usage, max(each.level for each in account.below()) - account.level
    for above in then.path():
        if account.is_below(above):
            return  # it is there already
        depth = then.level + 1 + deepest - above.level
        for resource, limit in (above.limits or {}).items():
            more = {
                Resource.CHILDREN: has.tasks,
                Resource.CONTEXTS: has.contexts + account.table.coming(account),
                Resource.PINNED_BLOCKS: account.table.pinned(account),
                Resource.DEPTH: depth,
            }.get(resource, has.blocks[BLOCKS[resource]] if resource in BLOCKS else 0)
            already = used(above, resource)
            if limit.hard is not None and more and already + more > limit.hard:
                raise exceeded(above, resource, already, limit.hard, more)


def fits(block: Block, resource: Resource, coming: int) -> bool:
    """Whether a Block may go to a lower tier, to which `coming` others are on their way."""
    account: Account | None = block.payer
    while account is not None:
        limit = (account.limits or {}).get(resource)
        most = limit.hard if limit is not None else None
        if most is not None and used(account, resource) + coming + 1 > most:
            return False
        account = account.parent
    return True


def exceeded(
    account: Account, resource: Resource, already: float, hard: float, more: float = 0
) -> EDQUOT:
    """Return the error that names a limit, what is used of it, and whose it is."""
    what = f"{_number(already)} used" + (f", {_number(more)} more asked for" if more else "")
    return EDQUOT(
        f"the limit {resource.value} of {label(account)} is {_number(hard)}: {what}",
        _HINTS.get(resource, "llmos limit shows it; a task above may raise it"),
        {"limit": round(hard), "used": round(already), "account": _id(account)},
    )


_HINTS = {
    Resource.REQUESTS_PER_MIN: "wait: it counts the last 60 seconds",
    Resource.CHILDREN: "wait for some to end, or have the limit raised: llmos limit shows it",
    Resource.CONTEXTS: "free some contexts, or have the limit raised: llmos limit shows it",
    Resource.DEVICE_BLOCKS: "free or trim some contexts, or lower max_tokens; llmos limit shows it",
    Resource.PINNED_BLOCKS: "unpin another context; llmos limit shows it",
}


def label(account: Account) -> str:
    """Return how a message names an account."""
    if account.kind is Kind.OWNER:
        return f"user {account.name}"
    return f"{account.kind.value} {account.name}".strip()


def _id(account: Account) -> int:
    return int(account.name) if account.kind in (Kind.OWNER, Kind.TASK) else 0


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if value != inf else "none"


def deadline(account: Account, now: float) -> float | None:
    """Return when the wall clock of an account next reaches one of its limits."""
    limit = (account.limits or {}).get(Resource.WALL_S)
    if limit is None:
        return None
    times = [account.begun + each for each in (limit.soft, limit.hard) if each is not None]
    return min((at for at in times if at > now), default=None)
