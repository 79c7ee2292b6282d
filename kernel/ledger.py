"""Ledger: the one place where accounts are charged. What one is charged, all above it are.

So the usage of the root is the sum of what was charged to all leaves, those that have gone
included, and equals what the kernel counts by itself (kernel/stats.py): tests compare them.

Work that the kernel has caused (positions computed again because the pager or a driver's death
had taken their KV) is charged to the account `system`, its part of the time included.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from kernel.account import Account
from kernel.block import NO_PLACE, NOT_RESIDENT, Block
from kernel.usage import Tier


class Part(Protocol):
    """What is charged of an entry of a step (kernel/step.py)."""

    @property
    def request(self) -> Any: ...

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def again(self) -> int: ...

    @property
    def decodes(self) -> bool: ...


def charge(account: Account, counter: str, amount: int) -> None:
    """Add to one counter of an account."""
    each: Account | None = account if amount else None
    while each is not None:
        setattr(each.usage, counter, getattr(each.usage, counter) + amount)
        if each.limits is not None:
            each.table.hot.add(each)
        each = each.parent


def charge_step(entries: Sequence[Part], took_us: int) -> None:
    """Charge what a step has computed, and the time that it took."""
    total = sum(entry.end - entry.start for entry in entries)
    done = spent = 0
    for entry in entries:
        tokens = entry.end - entry.start
        done += tokens
        us = took_us * done // total - spent
        spent += us
        request, again = entry.request, entry.again
        if again:
            lost_us = us * again // tokens
            _computed(request.payer.table.system, 0, 0, again, lost_us, 0)
            us, tokens = us - lost_us, tokens - again
        decodes = tokens if entry.decodes else 0
        request.device_us += us
        _computed(request.payer, tokens - decodes, decodes, 0, us, 1)


def _computed(payer: Account, prefill: int, decode: int, again: int, us: int, entries: int) -> None:
    account: Account | None = payer
    while account is not None:
        usage = account.usage
        usage.prefill_ids += prefill
        usage.decode_ids += decode
        usage.recomputed_ids += again
        usage.device_us += us
        usage.entries += entries
        if account.limits is not None:
            account.table.hot.add(account)
        account = account.parent


def tier_of(block: Block) -> int:
    """Return where a Block is charged, as things are."""
    if block.refs == 0:
        return Tier.NONE
    if block.id != NOT_RESIDENT:
        return Tier.DEVICE
    if block.kept:
        return Tier.HOST
    return Tier.NONE if block.disk == NO_PLACE else Tier.DISK


def placed(block: Block) -> None:
    """Charge a Block where it is now: its place, or whether any table names it, may be another."""
    tier, before = tier_of(block), block.tier
    if tier == before:
        return
    block.tier = tier
    account = block.payer
    if account is None:
        return
    now = account.table.now_us
    while account is not None:
        if before:
            account.usage.hold(before, -1, now)
        if tier:
            account.usage.hold(tier, 1, now)
        if account.limits is not None:
            account.table.hot.add(account)
        account = account.parent


def passes(block: Block, payer: Account | None) -> None:
    """Let a Block that nobody names be charged to another account from now on."""
    if block.refs == 0:
        block.payer = payer


def copied(blocks: Iterable[Block], counter: str) -> None:
    """Charge copies of Blocks between the tiers."""
    for payer, count in Counter(block.payer for block in blocks).items():
        if payer is not None:
            charge(payer, counter, count)


def holds(account: Account, more: int) -> None:
    """Count contexts that an account has got, or given back."""
    for above in account.path():
        above.usage.contexts += more
        if above.limits is not None:
            above.table.hot.add(above)
