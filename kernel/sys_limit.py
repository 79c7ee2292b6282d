"""Handler of set_limit, and the tables `usage` and `limits` of snapshot.

Who may: the same user. A task may lower what limits itself, and nothing that limits those above it.
What is beside or above a task's own place in the tree it may raise as well: so a parent raises for
its children, and a program that the user starts by itself raises for all that the user runs.
"""

from collections.abc import Generator, Iterable
from typing import Any

from kernel import quota
from kernel.account import Account, Kind
from kernel.handler import Caller, Done
from kernel.limits import MAX_RATE, Limit, label, total, used
from kernel.system import System
from kernel.task import INIT, Task
from syscalls.abi import LimitRow, Nothing, Resource, SetLimit, UsageRow
from syscalls.errors import EINVAL, EPERM, ESRCH

RESOURCES = {resource.value: resource for resource in Resource}


def sys_set_limit(k: System, caller: Caller, args: SetLimit) -> Done:
    """Set, change or remove a limit of a task, a group or a user."""
    resource = RESOURCES.get(args.resource)
    if resource is None:
        raise EINVAL(f"there is no resource {args.resource}; there are {', '.join(RESOURCES)}")
    soft, hard = args.soft, args.hard
    if soft is not None and hard is not None and soft > hard:
        raise EINVAL(f"the soft limit {soft:g} is above the hard one, {hard:g}")
    if resource is Resource.REQUESTS_PER_MIN and max(soft or 0, hard or 0) > MAX_RATE:
        raise EINVAL(f"the highest limit of {resource.value} is {MAX_RATE}", "give none instead")
    if resource is Resource.DEPTH and soft is not None:
        raise EINVAL("depth has no soft limit: a task is there or not", "give a hard one")
    account = _account(k, caller, args)
    old = (account.limits or {}).get(resource)
    _check_right(caller, account, old, hard)
    _set(account, resource, old, soft, hard)
    account.table.hot.add(account)
    quota.watch(account, k.clock())
    return Done(Nothing())


def _account(k: System, caller: Caller, args: SetLimit) -> Account:
    """Return whose limit it is: of a task, of a group, of the caller's user; ESRCH, EINVAL."""
    named = (args.pid != 0) + (args.group is not None) + args.owner
    if named > 1:
        raise EINVAL("a limit is of a task, a group or a user: name one of them")
    uid = caller.task.uid
    if args.owner:
        return k.tasks.accounts.owner(uid)
    if args.group is not None:
        group = k.tasks.accounts.find_group(uid, args.group)
        if group is None:
            raise ESRCH(f"there is no group {args.group}", "llmos usage --by group lists them")
        return group
    task = k.tasks.find(args.pid) if args.pid else caller.task
    if task.uid != uid or task.ended_already:
        raise ESRCH(f"there is no task {args.pid}", "llmos ps lists them")
    return task.account


def _check_right(caller: Caller, account: Account, old: Limit | None, hard: float | None) -> None:
    """Raise EPERM unless the caller may set this limit to that."""
    mine: Account = caller.task.account
    if not mine.is_below(account):
        return
    if account.kind is Kind.OWNER and _is_operator(caller.task):
        return
    if mine is not account:
        raise EPERM(
            f"task {caller.task.pid} is below {label(account)}, and does not set its limits",
            "who is above it does",
        )
    before = old.hard if old is not None else None
    if before is not None and (hard is None or hard > before):
        raise EPERM(
            f"the limit is {before:g}: task {caller.task.pid} may lower it, not raise it",
            "who is above it does",
        )


def _is_operator(task: Task) -> bool:
    """Whether a program has come by itself, and was not made by a task or put into a group."""
    above = task.account.parent
    return task.parent == INIT and above is not None and above.kind is Kind.OWNER


def _set(
    account: Account, resource: Resource, old: Limit | None, soft: float | None, hard: float | None
) -> None:
    limits: dict[Resource, Limit] = account.limits or {}
    if soft is None and hard is None:
        limits.pop(resource, None)
    else:
        limit = limits[resource] = old or Limit(soft, hard)
        limit.soft, limit.hard, limit.told = soft, hard, False
    account.limits = limits or None
    account.table.changes += account.kind is Kind.OWNER


# --- tables -----------------------------------------------------------------------------------


def accounts_of(k: System) -> Iterable[tuple[Account, Task | None]]:
    """Return all accounts, those of tasks with their tasks."""
    table = k.tasks.accounts
    above = [table.root, table.system, *table.owners(), *table.groups()]
    return [*((account, None) for account in above), *((task.account, task) for task in k.tasks)]


def usage_row(k: System, item: tuple[Account, Task | None]) -> Generator[int, None, UsageRow]:
    """Return what an account has used."""
    yield 1
    account, task = item
    usage = account.usage
    now = usage.tasks, usage.contexts, *usage.blocks[1:]
    counters = total(account)
    return UsageRow._make((*_whose(account, task), *now, *counters, None))


def _whose(account: Account, task: Task | None) -> tuple[str, str, str, int, int]:
    name = account.name if task is None else task.name
    pid = 0 if task is None else task.pid
    return account.kind.value, repr(account), name, account.uid, pid


def limits_of(k: System) -> list[tuple[Account, Task | None, Resource, Limit]]:
    """Return all limits."""
    return [
        (account, task, resource, limit)
        for account, task in accounts_of(k)
        for resource, limit in (account.limits or {}).items()
    ]


def limit_row(
    k: System, item: tuple[Account, Task | None, Resource, Limit]
) -> Generator[int, None, LimitRow]:
    """Return a limit, and what is used of it."""
    yield 1
    account, task, resource, limit = item
    usage = used(account, resource)
    return LimitRow(*_whose(account, task), resource.value, limit.soft, limit.hard, usage)


def tables() -> dict[str, Any]:
    """Return the tables of snapshot that are here."""
    return {
        "usage": lambda k: (accounts_of(k), usage_row),
        "limits": lambda k: (limits_of(k), limit_row),
    }
