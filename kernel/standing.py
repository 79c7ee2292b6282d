"""Standing: where tasks stand in the tree of accounts, kept over a stop of the kernel.

A place is the way from a user's account down, each level with its nice: `@lab:5/41:0/` is below
task 41 in the group lab. Tasks on the way need not be there any more; their accounts are, because
others stand below them.
"""

from kernel.account import Account, AccountTable, Kind
from kernel.journal import TaskEntry
from kernel.task import INIT, TaskTable


def place_of(account: Account) -> str:
    """Return what an account is below, as text; empty: its user, and nothing else."""
    parts = []
    for each in account.path():
        if each.kind in (Kind.GROUP, Kind.TASK) and each is not account:
            mark = "@" if each.kind is Kind.GROUP else ""
            parts.append(f"{mark}{each.name}:{each.nice}/")
    return "".join(reversed(parts))


class Standing:
    """Makes the accounts of the tasks of a record anew, in whatever order they come."""

    def __init__(self, tasks: TaskTable) -> None:
        self._tasks = tasks
        self._accounts: AccountTable = tasks.accounts
        self._ghosts: dict[int, Account] = {}  # by pid, of tasks that have not come yet, or ever
        self._ended: list[Account] = []  # of zombies

    def account(self, entry: TaskEntry) -> Account:
        """Return the account of a task, where it was."""
        account = self._ghosts.pop(entry.pid, None)
        if account is None:
            return self._accounts.task(entry.pid, self._above(entry), entry.nice)
        self._accounts.back(account, entry.nice)
        return account

    def ended(self, account: Account) -> None:
        """Note that the account of a zombie is to be closed, when all others have come."""
        self._ended.append(account)

    def settle(self) -> None:
        """Close what is to be closed: now it is known who stands below it."""
        for account in self._ended:
            self._accounts.close(account)

    def _above(self, entry: TaskEntry) -> Account:
        above = self._accounts.owner(entry.uid)
        if entry.place is None:  # of a kernel that did not tell
            parent = self._tasks.peek(entry.parent) if entry.parent != INIT else None
            return above if parent is None else parent.account
        for part in entry.place.split("/")[:-1]:
            name, _, nice = part.rpartition(":")
            if name.startswith("@"):
                above = self._accounts.group(above, name[1:])
                above.nice = int(nice)
            else:
                above = self._task(int(name), above, int(nice))
        return above

    def _task(self, pid: int, above: Account, nice: int) -> Account:
        task = self._tasks.peek(pid)
        if task is not None:
            return task.account
        if pid not in self._ghosts:
            self._ghosts[pid] = self._accounts.ghost(pid, above, nice)
        return self._ghosts[pid]
