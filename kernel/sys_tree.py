"""Handlers of group and renice: where a task stands in the tree of accounts, and with what weight.

They change accounts only, and whose place servers have that they wait for. The scheduler reads
these at each plan, so the next step is planned by what has become of them.
"""

from kernel.account import MAX_DEPTH, Account
from kernel.birth import place, require_leave, require_nice
from kernel.handler import Caller, Done
from kernel.limits import admit_move
from kernel.mail import reranked
from kernel.system import System
from kernel.task import INIT, Task
from kernel.tree import group_of
from syscalls.abi import Group, GroupResult, Renice, ReniceResult
from syscalls.errors import EINVAL, EPERM, ESRCH


def sys_renice(k: System, caller: Caller, args: Renice) -> Done:
    """Set the weight of a task or a group, with all below it, among those beside it."""
    account = _account(k, caller, args)
    require_nice(k, caller.task, args.nice, account.nice)
    before, account.nice = account.nice, args.nice
    reranked(k.tasks, account)
    return Done(ReniceResult(before))


def _account(k: System, caller: Caller, args: Renice) -> Account:
    if args.group is None:
        return _task(k, caller, args.pid).account
    if args.pid:
        raise EINVAL("a nice is for a pid or for a group", "pid 0 with a group")
    group = k.tasks.accounts.find_group(caller.task.uid, args.group)
    if group is None:
        raise ESRCH(f"there is no group {args.group}", "llmos ps -o pid,group,name")
    return group


def sys_group(k: System, caller: Caller, args: Group) -> Done:
    """Put a task into a group, or take it out, with all that is below it."""
    task = _task(k, caller, args.pid)
    account, now = task.account, task.account.parent
    assert now is not None
    then = _out_of(caller.task, now) if args.name is None else _into(k, caller.task, account, args)
    admit_move(account, then)
    if then is not now:
        k.tasks.accounts.move(account, then)
        reranked(k.tasks, account)
    return Done(GroupResult(group_of(task)))


def _into(k: System, by: Task, account: Account, args: Group) -> Account:
    """Return the group that a task is to stand in."""
    assert account.parent is not None and args.name is not None
    group = k.tasks.accounts.find_group(account.uid, args.name)
    if group is not None and group.is_below(account):
        raise EINVAL(
            f"group {args.name} stands below task {account.name} itself", "name another group"
        )
    depth = group.depth if group is not None else account.parent.depth + 1
    deepest = max(each.depth for each in account.below()) - account.depth
    if depth + 1 + deepest > MAX_DEPTH:
        raise EINVAL(
            f"below group {args.name}, at level {depth}, the task and its children would reach "
            f"level {depth + 1 + deepest}, the limit is {MAX_DEPTH}",
            "put a task into it that stands higher, or a group that does",
        )
    return place(k, by, account.parent, args.name)


def _out_of(by: Task, now: Account) -> Account:
    """Return what stands above the group that a task is in."""
    group = now.group
    if group is None:
        return now
    assert group.parent is not None
    require_leave(by, now, group.parent)
    return group.parent


def _task(k: System, caller: Caller, pid: int) -> Task:
    task = k.tasks.find(pid) if pid else caller.task
    if task.uid != caller.task.uid or task.ended_already:
        raise ESRCH(f"there is no task {pid}", "llmos ps lists them")
    if task.pid == INIT:
        raise EPERM("pid 1 stands at the top, and stays there")
    return task
