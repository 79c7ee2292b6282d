"""Tasks: the process table.

A task is an agent's unit of life: it owns contexts, has a parent, ends with a status. Pids rise
and are never used again while the kernel runs, so a pid needs no generation.

    NEW --ticket--> LIVE <--> STOPPED          NEW, LIVE, STOPPED --> ZOMBIE --waited for--> gone

A task ends with its program (pidfd), by exit, or by a signal. Orphans go to pid 1, which waits for
nobody: its children leave without a zombie. A task that comes back with the next kernel has no
program until one attaches (kernel/way_up.py).
"""

from collections.abc import Callable, Iterator
from enum import Enum
from math import inf
from typing import Any

from kernel.account import Account, AccountTable, Kind
from kernel.context import Context
from kernel.panic import KernelPanic, check
from kernel.request import RequestState
from syscalls.abi import Event
from syscalls.errors import EAGAIN, ESRCH

INIT = 1


class TaskState(Enum):
    NEW = "new"  # has a ticket, no program yet
    LIVE = "live"
    STOPPED = "stopped"
    ZOMBIE = "zombie"


_EDGES = {
    TaskState.NEW: {TaskState.LIVE, TaskState.ZOMBIE},
    TaskState.LIVE: {TaskState.STOPPED, TaskState.ZOMBIE},
    TaskState.STOPPED: {TaskState.LIVE, TaskState.ZOMBIE},
    TaskState.ZOMBIE: set[TaskState](),
}
_LETTERS = (RequestState.DECODE, RequestState.PREFILL, RequestState.BLOCKED, RequestState.QUEUED)


class Task:
    """One entry of the process table."""

    def __init__(
        self, pid: int, parent: int, uid: int, name: str, born: float, account: Account
    ) -> None:
        self.pid = pid
        self.parent = parent
        self.uid = uid
        self.account = account
        self.name = name
        self.born = born
        self.session: Any = None  # the Session of its program
        self.contexts: dict[int, Context] = {}
        self.loading: set[int] = set()  # handles of contexts that come from saves
        self.waits: list[tuple[int, int]] = []  # (call, pid or 0) of pending wait calls
        self.ticket = b""  # digest of the ticket, while one is out
        self.ticket_expires = 0.0
        self.token = b""  # digest of what attaches to it, should it outlive the kernel
        self.connection = 0  # the last one that its program had
        self.lease: float | None = None  # it came back, and waits for a program until then
        self.mail: Any = None  # the Mail (kernel/mail.py), once it has to do with a port or topic
        self.note = b""  # of the fork_task that made it, for its program
        self.untold: dict[int, None] = {}  # signals that its program hears of when it comes
        self.grace_s = 0.0  # that its program has asked for, after TERM
        self.ends_by = inf  # it has got TERM: when its grace ends
        self.doomed = False  # it ends with its tree: it makes no more children
        self.ending = False  # it is being ended: it does not go on
        self.prompt_tokens = 0
        self.cached_tokens = 0  # of these, found computed
        self.output_tokens = 0
        self.status = 0
        self.reason = ""
        self.ended = 0.0
        self._state = TaskState.NEW

    @property
    def state(self) -> TaskState:
        return self._state

    def become(self, state: TaskState) -> None:
        """Change state along a legal edge."""
        if state not in _EDGES[self._state]:
            raise KernelPanic(f"pid {self.pid} ({self.name}): {self._state.name} to {state.name}")
        self._state = state

    @property
    def ended_already(self) -> bool:
        return self._state is TaskState.ZOMBIE

    @property
    def payer(self) -> Account:
        """The account that is charged for what it has computed."""
        payer: Account = self.account if self.mail is None else self.mail.payer
        return payer

    @property
    def rank(self) -> Account:
        """The account in whose place its requests stand in the order."""
        rank: Account = self.account if self.mail is None else self.mail.rank
        return rank

    def letter(self) -> tuple[str, str]:
        """Return the state as ps shows it, and what the task waits for."""
        if self._state is TaskState.ZOMBIE:
            return "Z", "parent"
        if self._state is TaskState.STOPPED:
            return "T", "signal"
        if self._state is TaskState.NEW:
            return "S", "program"
        states = {c.request.shown for c in self.contexts.values() if c.request}
        held = {c.request.held for c in self.contexts.values() if c.request and c.request.held}
        if held:
            return "S", held.pop()
        for state in _LETTERS:
            if state in states:
                if state is RequestState.QUEUED and self._awaits_grammar:
                    return "S", "grammar"
                blocks = f"{self.lacks} blocks" if self.lacks else "copies"
                waits = {"D": blocks, "Q": "step"}
                return state.value, waits.get(state.value, "")
        if self.session is None:
            return "S", "kernel" if self.pid == INIT else "attach"
        if self.mail is not None and self.mail.waits_for:
            return "S", self.mail.waits_for
        return "S", "child" if self.waits else "program"

    @property
    def _awaits_grammar(self) -> bool:
        """Whether a grammar must be compiled before any of its queued requests can run."""
        requests = [ctx.request for ctx in self.contexts.values() if ctx.request]
        return all(r.awaits_grammar for r in requests if r.shown is RequestState.QUEUED)

    @property
    def leased(self) -> bool:
        """Whether it waits for a program, and not for ever."""
        return self.lease is not None and self.lease < inf

    @property
    def timed(self) -> bool:
        """Whether its time comes, if nobody does anything."""
        return bool(self.ticket) or self.ended_already or self.leased or self.ends_by < inf

    @property
    def lacks(self) -> int:
        """Blocks that its requests wait for."""
        requests = [ctx.request for ctx in self.contexts.values() if ctx.request]
        return sum(r.lacks for r in requests if r.state is RequestState.BLOCKED and not r.held)


def tell_signal(task: Task, signal: int) -> None:
    """Tell a program of a signal; one that is not there yet when it comes, each of them once."""
    if task.session is None:
        task.untold[int(signal)] = None
    else:
        task.session.emit(Event.SIGNAL, 0, int(signal))


class TaskTable:
    """All tasks by pid. Pid 1 is there from the start and stays."""

    def __init__(
        self, max_tasks: int, uid: int, now: float, clock: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.max_tasks = max_tasks
        self.accounts = AccountTable(clock)
        self._tasks: dict[int, Task] = {}
        self._children: dict[int, dict[int, Task]] = {}  # by parent, those that have any
        self._last_pid = 0
        init = self.add(0, uid, "init", now, self.accounts.owner(uid))
        init.become(TaskState.LIVE)

    def check_room(self) -> None:
        """Raise EAGAIN when the table is full."""
        if len(self._tasks) >= self.max_tasks:
            raise EAGAIN(
                f"the task table is full: {len(self._tasks)} tasks, the limit is {self.max_tasks}",
                "end some tasks, or raise --max-tasks",
            )

    def add(
        self, parent: int, uid: int, name: str, now: float, above: Account, nice: int = 0
    ) -> Task:
        """Make a task, for which there is room, whose account is below another."""
        self._last_pid += 1
        account = self.accounts.task(self._last_pid, above, nice)
        task = Task(self._last_pid, parent, uid, name, now, account)
        self._tasks[task.pid] = task
        self._children.setdefault(parent, {})[task.pid] = task
        return task

    @property
    def last_pid(self) -> int:
        """The highest that there was."""
        return self._last_pid

    def skip(self, pid: int) -> None:
        """Use no pid up to this one any more."""
        self._last_pid = max(self._last_pid, pid)

    def revive(
        self, pid: int, parent: int, uid: int, name: str, born: float, account: Account
    ) -> Task:
        """Make a task of the kernel before again; its pid is below those to come."""
        check(pid not in self._tasks and pid <= self._last_pid, f"pid {pid} is taken")
        task = self._tasks[pid] = Task(pid, parent, uid, name, born, account)
        self._children.setdefault(parent, {})[pid] = task
        return task

    def has(self, task: Task) -> bool:
        """Whether a task is still there."""
        return self._tasks.get(task.pid) is task

    def peek(self, pid: int) -> Task | None:
        """Return a task, None if there is none."""
        return self._tasks.get(pid)

    def find(self, pid: int) -> Task:
        """Return a task; ESRCH if there is none."""
        task = self._tasks.get(pid)
        if task is None:
            raise ESRCH(f"there is no task {pid}", "llmos ps lists them")
        return task

    def below(self, account: Account) -> list[Task]:
        """Return the tasks that are charged to an account, those that have ended excepted."""
        accounts = [each for each in account.below() if each.kind is Kind.TASK]
        tasks = [self._tasks.get(int(each.name)) for each in accounts if not each.closed]
        return [task for task in tasks if task is not None]

    def children(self, pid: int) -> list[Task]:
        """Return the children of a task, zombies included."""
        return list(self._children.get(pid, {}).values())

    def adopt(self, task: Task, parent: int) -> None:
        """Give a task another parent."""
        self._disown(task)
        task.parent = parent
        self._children.setdefault(parent, {})[task.pid] = task

    def _disown(self, task: Task) -> None:
        siblings = self._children[task.parent]
        del siblings[task.pid]
        if not siblings:
            del self._children[task.parent]

    def remove(self, task: Task) -> None:
        """Forget a task that has ended."""
        check(task.ended_already and task.pid != INIT, f"pid {task.pid} is still there")
        self._disown(task)
        del self._tasks[task.pid]

    def __iter__(self) -> Iterator[Task]:
        return iter(list(self._tasks.values()))

    def __len__(self) -> int:
        return len(self._tasks)
