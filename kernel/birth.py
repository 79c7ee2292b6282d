"""How a task comes to be: one way, for hello, spawn and fork_task.

All is checked before anything changes. What a task may have of children, and how deep they may
stand, is for here: whoever makes tasks comes by.
"""

import hashlib

from kernel.account import MAX_DEPTH, Account
from kernel.limits import check_birth
from kernel.system import System
from kernel.task import INIT, Task
from syscalls.errors import EAGAIN, ECANCELED, EINVAL, EPERM

MAX_CONNECTIONS = 256


def born(
    k: System, parent: Task, uid: int, name: str, nice: int = 0, group: str | None = None
) -> Task:
    """Make a child of a task (of init: the task of a program that has come by itself).

    EAGAIN if the table is full, EDQUOT if a limit is; EPERM if its place may not be that; ECANCELED
    if its parent is to end with all that it has made.
    """
    if parent.doomed:
        raise ECANCELED(f"task {parent.pid} is being ended, and makes no more children")
    require_nice(k, parent, nice, 0)
    k.tasks.check_room()
    above = k.tasks.accounts.owner(uid) if parent.pid == INIT else parent.account
    there = None if group is None else k.tasks.accounts.find_group(uid, group)
    check_birth(there or above)
    if group is not None:
        above = place(k, parent, above, group)
    return k.tasks.add(parent.pid, uid, name, k.clock(), above, nice)


def issue_ticket(k: System, task: Task) -> bytes:
    """Return what lets one program become a task; it is good for a while."""
    ticket = k.random.randbytes(32)
    task.ticket = hashlib.sha256(ticket).digest()
    task.ticket_expires = k.clock() + k.config.ticket_s
    return ticket


def free_connection(task: Task) -> int:
    """Return a connection number of which the task has no context; EAGAIN."""
    taken = {handle >> 24 for handle in task.contexts}
    after = range(task.connection + 1, task.connection + 1 + MAX_CONNECTIONS)
    found = next((n for n in (n % MAX_CONNECTIONS for n in after) if n not in taken), None)
    if found is None:
        raise EAGAIN("the task has contexts of all 256 connections", "free some, or end the task")
    return found


# --- where a task stands ----------------------------------------------------------------------


def place(k: System, by: Task, now: Account, name: str) -> Account:
    """Return the account of a group, for what stands below `now`; a new one if there is none.

    EPERM if that would take it out of what `by` stands below itself; EINVAL if it is too deep.
    """
    group = k.tasks.accounts.find_group(now.uid, name)
    if group is None:
        if now.depth + 2 > MAX_DEPTH:
            raise EINVAL(
                f"group {name} would be level {now.depth + 1} of {MAX_DEPTH}, with no room for "
                "tasks below it", "make it for a task that stands higher: llmos ps --tree",
            )  # fmt: skip
        return k.tasks.accounts.group(now, name)
    require_leave(by, now, group)
    return group


def require_leave(by: Task, now: Account, then: Account) -> None:
    """Raise EPERM if `by` stands itself in what is left, going from below `now` to below `then`."""
    mine = set(by.account.path())
    for account in now.path():
        if then.is_below(account):
            return
        if account in mine:
            what = f"{account.kind.value} {account.name}"
            raise EPERM(
                f"task {by.pid} stands below {what} itself, and takes nothing out of it",
                "a task that does not can: llmos group, from another terminal",
            )


def require_nice(k: System, by: Task, nice: int, before: int) -> None:
    """Raise EPERM if a task may not give that much weight: more than its own, and than there was.

    The uid that the kernel runs as may.
    """
    least = min(by.account.nice, before)
    if nice < least and by.uid != k.uid:
        raise EPERM(
            f"nice {nice} is below {least}: more weight than that is for the uid that the kernel "
            "runs as", "a nice that is higher gives way, and everybody may have that",
        )  # fmt: skip
