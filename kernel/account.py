"""Account: who is charged for what is computed, and whose turn it is. Accounts are a tree.

    root ── system                      work that the kernel itself has caused
         └─ owner (a uid) ── task ── task ── ...        a child is below the task that made it
                          └─ group ── task
                                   └─ group ── ...

What a task is charged, all above it are charged too: so a limit of a task holds for its whole tree,
and a share of a group is a share of all in it together. An account stays after its task has ended,
while there are others below it: children do not leave their place by losing their parent. It moves
with all below it (sys_tree.sys_group); what it was charged before stays with those it was below.

At MAX_DEPTH no level is added any more: what would be below is beside.
"""

import itertools
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from kernel.panic import check
from kernel.usage import Counters, Usage

MAX_DEPTH = 12
"""Accounts on the way to the root, so that a charge costs little."""
NICEST, LEAST_NICE = 19, -20
# fmt: off
WEIGHTS = (
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916,
    9548, 7620, 6100, 4904, 3906, 3121, 2501, 1991, 1586, 1277,
    1024, 820, 655, 526, 423, 335, 272, 215, 172, 137,
    110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
)
# fmt: on
"""From nice -20 to 19, as Linux has them (sched_prio_to_weight): a step of nice is a quarter."""


class Kind(Enum):
    ROOT = "root"
    SYSTEM = "system"
    OWNER = "owner"
    GROUP = "group"
    TASK = "task"


class Account:
    """One node of the tree."""

    __slots__ = (
        "_children", "before", "begun", "born", "closed", "depth", "floor", "kind", "level",
        "limits", "name", "nice", "own", "parent", "table", "uid", "usage", "virtual",
    )  # fmt: skip

    def __init__(
        self,
        kind: Kind,
        name: str,
        parent: "Account | None",
        table: "AccountTable",
        uid: int = 0,
        nice: int = 0,
    ) -> None:
        self.kind = kind
        self.name = name  # of a group; the uid of an owner, the pid of a task, in digits
        self.parent = parent
        self.table = table
        self.usage = Usage()
        self.before = Counters()  # used before this kernel began
        self.limits: dict[Any, Any] | None = None  # Limit by Resource (kernel/limits.py)
        self.begun = table.clock()
        self.born = next(table.births)  # the older one has the smaller number
        self.uid = uid
        self.nice = nice
        self.closed = False  # its task has ended
        self.level: int = 0 if parent is None else parent.level  # of tasks above, and itself
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.virtual = 0.0  # service by weight, as kernel/policies/fair.py counts it
        self.own = 0.0  # likewise, of its own requests beside those of accounts below it
        self.floor = 0.0  # below which nobody comes back who has been away
        self._children: dict[Account, None] = {}

    @property
    def weight(self) -> int:
        """Its share among its siblings."""
        return WEIGHTS[self.nice - LEAST_NICE]

    @property
    def urgency(self) -> tuple[int, int]:
        """By which of two that wait for the same server the lower one counts: its nice value,
        and that of all above it together."""
        return self.nice, sum(account.nice for account in self.path())

    def path(self) -> Iterator["Account"]:
        """Yield this account and those above it, the root last."""
        account: Account | None = self
        while account is not None:
            yield account
            account = account.parent

    def is_below(self, other: "Account") -> bool:
        """Whether what this one is charged, the other one is charged too."""
        return any(account is other for account in self.path())

    def look(self) -> None:
        """Have its limits looked at before the next step: it pays for something from now on."""
        self.table.hot.update(above for above in self.path() if above.limits is not None)

    @property
    def children(self) -> "list[Account]":
        """The accounts right below it."""
        return list(self._children)

    def below(self) -> Iterator["Account"]:
        """Yield this account and all below it, parents first."""
        yield self
        for child in self._children:
            yield from child.below()

    @property
    def group(self) -> "Account | None":
        """The group that it is in or below, itself if it is one; None: none."""
        return next((account for account in self.path() if account.kind is Kind.GROUP), None)

    def __repr__(self) -> str:
        return "/".join(reversed([account.name for account in self.path() if account.parent]))


class AccountTable:
    """All accounts of a kernel."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = clock
        self.births = itertools.count()
        self.hot: set[Account] = set()  # that have limits, and were charged since they were checked
        self.changes = 0  # of limits of users
        self.alarms: dict[Account, float] = {}  # when a wall clock reaches the next limit
        self.pinned: Callable[[Account], int] = lambda account: 0  # blocks
        self.coming: Callable[[Account], int] = lambda account: 0  # contexts that are being loaded
        self.root = Account(Kind.ROOT, "", None, self)
        self.system = self._below(self.root, Kind.SYSTEM, "system", 0, 0)
        self._owners: dict[int, Account] = {}
        self._groups: dict[tuple[int, str], Account] = {}  # by uid and name

    @property
    def now_us(self) -> int:
        """Microseconds of the kernel's clock."""
        return round(self.clock() * 1e6)

    def owner(self, uid: int) -> Account:
        """Return the account of a user; it stays."""
        account = self._owners.get(uid)
        if account is None:
            account = self._owners[uid] = self._below(self.root, Kind.OWNER, str(uid), uid, 0)
        return account

    def group(self, above: Account, name: str) -> Account:
        """Return a user's group, wherever it is, or a new one; it ends with its last task."""
        account = self._groups.get((above.uid, name))
        if account is None:
            account = self._below(above, Kind.GROUP, name, above.uid, 0)
            self._groups[above.uid, name] = account
        return account

    def owners(self) -> list[Account]:
        """Return the accounts of all users."""
        return list(self._owners.values())

    def groups(self, uid: int | None = None) -> list[Account]:
        """Return all groups, or those of a user."""
        return [group for group in self._groups.values() if uid in (None, group.uid)]

    def find_group(self, uid: int, name: str) -> Account | None:
        """Return a user's group of that name."""
        return self._groups.get((uid, name))

    def task(self, pid: int, above: Account, nice: int = 0) -> Account:
        """Return a new account of a task, below that of its parent, of a group or of its owner."""
        level = above.level + 1
        while above.depth >= MAX_DEPTH and above.parent is not None:
            above = above.parent
        account = self._below(above, Kind.TASK, str(pid), above.uid, nice)
        account.level = level
        self._count(account, 1)
        return account

    def _count(self, account: Account, more: int) -> None:
        """Count a task that is born, or the ghost of one that is not."""
        for each in account.path():
            each.usage.tasks += more
            each.usage.born += more
            if each.limits is not None:
                self.hot.add(each)

    def ghost(self, pid: int, above: Account, nice: int) -> Account:
        """Return the account of a task that is not there any more, which others stand below."""
        account = self.task(pid, above, nice)
        account.closed = True
        self._count(account, -1)
        return account

    def back(self, account: Account, nice: int) -> None:
        """Note that the task of a ghost is there after all."""
        account.closed, account.nice = False, nice
        self._count(account, 1)

    def move(self, account: Account, above: Account) -> None:
        """Put an account below another one, with all that is below it, and what these have now.

        What it was charged before stays with those that it was below then. By how much it has been
        served more than others it takes along: who moves, or is put into a new group, is not next.
        """
        check(not above.is_below(account), f"{account} is put below itself")
        left, lower = account.parent, above.level + 1 - account.level
        assert left is not None
        self._hold(left, account, -1)
        if not above._children:
            above.virtual = max(above.virtual, account.virtual)  # a group that is made for it
        account.virtual = above.floor + max(0.0, account.virtual - left.floor)
        account.parent = above
        above._children[account] = None
        del left._children[account]
        self._hold(above, account, 1)
        for each in account.below():
            assert each.parent is not None
            each.depth, each.level = each.parent.depth + 1, each.level + lower
        self._leave(left)

    def _hold(self, above: Account, account: Account, sign: int) -> None:
        """Count what an account and those below it have now, in those above it."""
        has = account.usage
        for each in above.path():
            each.usage.tasks += sign * has.tasks
            each.usage.contexts += sign * has.contexts
            for tier, count in enumerate(has.blocks):
                each.usage.hold(tier, sign * count, self.now_us)
            if each.limits is not None:
                self.hot.add(each)

    def close(self, account: Account) -> None:
        """Note that a task has ended: its account goes once there is none below it."""
        check(account.kind is Kind.TASK and not account.closed, f"{account} is closed twice")
        account.closed = True
        for each in account.path():
            each.usage.tasks -= 1
        self._leave(account)

    def gone(self, account: Account) -> None:
        """Forget what is noted of an account that goes."""
        self.hot.discard(account)
        self.alarms.pop(account, None)

    def _leave(self, account: Account) -> None:
        """Let accounts go that nothing needs any more, from here up."""
        while not account._children and (account.closed or account.kind is Kind.GROUP):
            parent = account.parent
            assert parent is not None
            self.gone(account)
            if account.kind is Kind.GROUP:
                del self._groups[account.uid, account.name]
            del parent._children[account]
            account = parent

    def _below(self, above: Account, kind: Kind, name: str, uid: int, nice: int) -> Account:
        account = Account(kind, name, above, self, uid, nice)
        above._children[account] = None
        return account
