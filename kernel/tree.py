"""Which tasks are one tree, and which are one group.

A tree is a task with what it has made, and what these have made. Parents end before their children,
which go to init then; their accounts do not (kernel/account.py), so whoever has been made below a
task is found below its account. A child that stands in another group is found by its parent, and
what it has made with it, as long as that can wait for it.
"""

from kernel.account import Account, Kind
from kernel.system import System
from kernel.task import INIT, Task


def below(k: System, root: Account) -> list[Task]:
    """Return the tasks that stand below an account, and all children of these; parents first."""
    found: dict[Task, None] = {}
    seen: set[Account] = set()
    todo = [root]
    while todo:
        account = todo.pop()
        if account in seen:
            continue
        seen.add(account)
        task = task_of(k, account)
        if task is not None and task.pid != INIT and not task.ended_already:
            found[task] = None
            todo += [child.account for child in k.tasks.children(task.pid)]
        todo += account.children
    return list(found)


def task_of(k: System, account: Account) -> Task | None:
    """Return the task that has an account, if there is one and it is still there."""
    task = k.tasks.peek(int(account.name)) if account.kind is Kind.TASK else None
    return task if task is not None and task.account is account else None


def group_of(task: Task) -> str:
    """Return the name of the group that a task stands in, or below; empty if there is none."""
    group = task.account.group
    return group.name if group is not None else ""
