"""Quota: what happens when a limit is reached (kernel/limits.py says what limits are).

Each charge to an account that has limits makes it hot; hot accounts are looked at after each id
that is generated, and in each turn before the next step is planned. So nothing goes on for longer
than the step in which a limit was reached, and one that may have been planned meanwhile.

    soft    the signal XCPU to the programs of all tasks below, once until usage is below it again
    counts  what runs for the account ends with EDQUOT; what it has generated stays in its contexts
    blocks  of the device: idle contexts of the account give way first; then its youngest requests
            end, until what they leave idle is enough. Of the lower tiers: copies are dropped
"""

from collections.abc import Iterator

from kernel import limits
from kernel.account import Account
from kernel.block import NOT_RESIDENT, Block
from kernel.context import Context
from kernel.handler import Caller
from kernel.ledger import tier_of
from kernel.pager import Pager
from kernel.request import Request
from kernel.system import System
from kernel.task import tell_signal
from kernel.usage import Tier
from syscalls.abi import Resource, Sig
from syscalls.errors import KernelError

Ended = tuple[Request, KernelError]
"""A request that a limit ends."""


# --- admission --------------------------------------------------------------------------------


def admit_ids(k: System, caller: Caller, ctx: Context, length: int) -> None:
    """Raise EDQUOT if the caller's ids may not be added, for a context to have `length` then."""
    admit_more(k, caller.task.payer, len(caller.ids) if caller.ids else 0, ctx, length)


def admit_more(k: System, payer: Account, count: int, ctx: Context, length: int) -> None:
    """Raise EDQUOT if `count` ids may not be added at somebody's cost."""
    limits.admit_work(payer)
    limits.admit(payer, Resource.INPUT_IDS, count)
    _admit_blocks(k, ctx, length)


def admit_request(k: System, caller: Caller, ctx: Context, length: int) -> None:
    """Raise EDQUOT if an infer or a score may not begin that may make a context so long."""
    limits.admit(caller.task.payer, Resource.REQUESTS_PER_MIN, 1)
    admit_ids(k, caller, ctx, length)


def _admit_blocks(k: System, ctx: Context, length: int) -> None:
    """Raise EDQUOT if so many ids may not be on the device; the account's idle contexts give way.

    What others of the account will need is not known: who exceeds the limit then, ends then.
    """
    account: Account = ctx.account
    if not limits.limited(account, Resource.DEVICE_BLOCKS):
        return
    here = sum(block.id != NOT_RESIDENT for block in ctx.blocks)
    needed = -(-min(length, ctx.model.desc.max_ctx) // ctx.pool.block_size)
    for above in account.path():
        limit = (above.limits or {}).get(Resource.DEVICE_BLOCKS)
        if limit is None or limit.hard is None or needed <= here:
            continue
        already = limits.used(above, Resource.DEVICE_BLOCKS)
        excess = round(already + needed - here - limit.hard)
        if needed <= limit.hard and excess > 0:
            excess -= _leaving(k, above)
            excess -= _give_way(k, above, excess, ctx)
        if excess > 0:
            more = needed - here
            raise limits.exceeded(above, Resource.DEVICE_BLOCKS, already, limit.hard, more)


# --- what is exceeded -------------------------------------------------------------------------


def enforce(k: System) -> list[Ended]:
    """Look at the accounts that were charged since the last time; return what has to end."""
    hot, ended = k.tasks.accounts.hot, dict[Request, KernelError]()
    idle = set[Account]()  # contexts of these are, once their requests have ended
    while hot:
        account = hot.pop()
        for resource, limit in list((account.limits or {}).items()):
            usage = limits.used(account, resource)
            _tell(k, account, limit, usage)
            if limit.hard is None:
                continue
            excess, ends = round(usage - limit.hard), list[Request]()
            if resource in limits.STOPPING and usage >= limit.hard:
                ends = _requests(k, account)
            elif resource is Resource.DEVICE_BLOCKS and excess > 0:
                ends = _shrink(k, account, excess)
                idle |= {account} if ends else set()
            elif resource in limits.BLOCKS and excess > 0:
                _drop_copies(k, account, limits.BLOCKS[resource], excess)
            if ends:
                ended |= dict.fromkeys(ends, limits.exceeded(account, resource, usage, limit.hard))
    hot |= idle
    return list(ended.items())


def _tell(k: System, account: Account, limit: limits.Limit, usage: float) -> None:
    """Signal that a soft limit is reached; note when it is not any more."""
    reached = limit.soft is not None and usage >= limit.soft
    if reached and not limit.told:
        for task in k.tasks.below(account):
            tell_signal(task, Sig.XCPU)
    limit.told = reached


def _requests(k: System, account: Account) -> list[Request]:
    """Return what runs for an account, the youngest first."""
    mine = [request for request in k.device.requests if request.payer.is_below(account)]
    return sorted(mine, key=lambda request: -request.arrival)


def _shrink(k: System, account: Account, excess: int) -> list[Request]:
    """Let blocks go that an account has too many of; return the requests that have to end for it.

    The younger ones that have no blocks yet end, too: they would take them in the next steps, and
    those that have too many would not be the youngest for as long.
    """
    leaving = _leaving(k, account)
    excess -= leaving
    excess -= _give_way(k, account, excess)
    ends = list[Request]()
    for request in _requests(k, account) if excess > 0 and not leaving else ():
        ends.append(request)
        excess -= sum(_charged(block, account) for block in request.ctx.blocks)
        if excess <= 0:
            break
    return ends


def _charged(block: Block, account: Account) -> bool:
    """Whether an account is charged for a Block's place on the device."""
    here = tier_of(block) == Tier.DEVICE
    return here and block.payer is not None and block.payer.is_below(account)


def _leaving(k: System, account: Account) -> int:
    """Return how many blocks of an account are on their way off the device."""
    return sum(
        bool(block.moving) and tier_of(block) == Tier.DEVICE
        for ctx in _contexts(k, account)
        for block in ctx.blocks
    )


def _contexts(k: System, account: Account) -> Iterator[Context]:
    for task in k.tasks.below(account):
        yield from list(task.contexts.values())


def _give_way(k: System, account: Account, count: int, but: Context | None = None) -> int:
    """Let up to `count` blocks of an account's idle contexts leave the device; return how many."""
    if count <= 0:
        return 0

    def mine(block: Block) -> bool:
        return block.payer is not None and block.payer.is_below(account)

    gone = 0
    idle = [c for c in _contexts(k, account) if c.request is None and not c.pinned and c is not but]
    for ctx in sorted(idle, key=lambda ctx: ctx.last_use):
        pager: Pager = ctx.model.sched.pager
        gone += pager.give_way(ctx, count - gone, ctx.model.requests, mine)
        if gone >= count:
            break
    return gone


def _drop_copies(k: System, account: Account, tier: Tier, excess: int) -> None:
    """Drop what an account has too much of in a lower tier: it is computed again from its ids."""
    for ctx in _contexts(k, account):
        of = ctx.pool.host if tier is Tier.HOST else ctx.pool.disk
        for block in reversed(ctx.blocks):
            if excess > 0 and tier_of(block) == tier and not block.held:
                of.drop(block)
                excess -= 1


# --- time -------------------------------------------------------------------------------------


def deadline(k: System) -> float | None:
    """Return when the wall clock of some account reaches a limit."""
    return min(k.tasks.accounts.alarms.values(), default=None)


def watch(account: Account, now: float) -> None:
    """Note when the wall clock of an account next reaches a limit of its own."""
    at = limits.deadline(account, now)
    if at is None:
        account.table.alarms.pop(account, None)
    else:
        account.table.alarms[account] = at


def expire(k: System, now: float) -> None:
    """Have the accounts looked at whose wall clock has reached a limit."""
    accounts = k.tasks.accounts
    for account in [each for each, at in accounts.alarms.items() if now >= at]:
        watch(account, now)
        accounts.hot.add(account)
