"""The ledger against what the kernel counts by itself, and against its own leaves."""

from collections.abc import Iterable
from typing import Any

from kernel.account import Account
from kernel.block import NO_PLACE, NOT_RESIDENT
from kernel.usage import Counters


def watch_accounts(sim: Any) -> list[Account]:
    """Return a list that every account of a new kernel is on, living or gone."""
    table, tasks = sim.system.tasks.accounts, sim.system.tasks
    accounts = [table.root, table.system, *table._owners.values(), *(t.account for t in tasks)]
    make = table._below

    def below(*args: Any) -> Account:
        account: Account = make(*args)
        accounts.append(account)
        return account

    table._below = below
    return accounts


def check_root(sim: Any) -> None:
    """What all have been charged is what the kernel has done, exactly."""
    k, root = sim.system, sim.system.tasks.accounts.root
    usage, c, t = root.usage, k.counters, k.device.models.totals
    counted = {
        "prefill": (usage.prefill_ids + usage.recomputed_ids, t.prefill_tokens),
        "decode": (usage.decode_ids, t.decode_tokens),
        "entries": (usage.entries, t.seqs),
        "device_us": (usage.device_us, t.step_us),
        "prompt": (usage.prompt_ids, c.prompt_tokens),
        "cached": (usage.cached_ids, c.cached_tokens),
        "output": (usage.output_ids, c.output_tokens),
        "requests": (usage.requests, c.admitted),
        "out": (usage.out_blocks, t.out_blocks + t.disk_out_blocks),
        "in": (usage.in_blocks, t.in_blocks + t.disk_in_blocks),
        "tasks": (usage.tasks, sum(not task.ended_already for task in k.tasks)),
        "contexts": (usage.contexts, k.num_contexts),
        "blocks": (usage.blocks[1:], held(sim.tables())),
    }
    wrong = {name: pair for name, pair in counted.items() if pair[0] != pair[1]}
    assert not wrong, f"the ledger and the kernel differ: {wrong}"


def held(tables: Iterable[Any]) -> list[int]:
    """Return how many blocks tables name, by the highest tier that has them."""
    tiers = [0, 0, 0]
    for block in {block for ctx in tables for block in ctx.blocks}:
        if block.id != NOT_RESIDENT:
            tiers[0] += 1
        elif block.kept:
            tiers[1] += 1
        elif block.disk != NO_PLACE:
            tiers[2] += 1
    return tiers


def check_leaves(accounts: Iterable[Account], now_us: int) -> None:
    """Nobody is charged less than all below, and what each was charged itself adds up."""
    accounts = list(accounts)
    below = {account: [0] * len(Counters._fields) for account in accounts}
    for account in accounts:
        if account.parent is not None:
            counters = account.usage.counters(now_us)
            below[account.parent] = [
                a + b for a, b in zip(below[account.parent], counters, strict=True)
            ]
    total = [0] * len(Counters._fields)
    for account in accounts:
        own = [a - b for a, b in zip(account.usage.counters(now_us), below[account], strict=True)]
        assert min(own) >= 0, f"{account} has {own} of its own"
        leaf = account.kind.value in ("task", "system")
        assert leaf or not any(own), f"{account}, which computes nothing, is charged {own}"
        total = [a + b for a, b in zip(total, own, strict=True)]
    root = accounts[0].usage.counters(now_us)
    assert total == list(root), "the leaves, living and gone, are the root"
