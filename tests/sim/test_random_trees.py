"""Random trees of programs, against what a table of tasks should look like after each thing."""

from random import Random
from typing import Any

import pytest

from kernel.account import Account, Kind
from kernel.tree import task_of
from syscalls.abi import Sig
from syscalls.errors import Errno
from tests.helpers.forest import Forest, Node, Tree
from tests.helpers.sim import Sim, SimClient
from tests.helpers.trees import begin, rows, told

NAMES = ("a", "b", "c")
LETTERS = {"new": "S", "live": "S", "stopped": "T", "zombie": "Z"}
SIGNALS = (Sig.STOP, Sig.CONT, Sig.STOP, Sig.CONT, Sig.INT, Sig.HUP, Sig.USR1, Sig.TERM, Sig.KILL)


class Walk:
    """One kernel, and what is done to it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.sim = Sim(seed, ticket_s=1e6, zombie_s=1e6)
        self.forest = Forest()
        self.clients: dict[int, SimClient] = {}
        self.tickets: dict[int, bytes] = {}
        self.operator = self.sim.client()
        self.forest.born(2, 1, self.forest.owner, 0, "live")

    def step(self) -> str:
        """Do something; return what."""
        what = self.random.choice(
            ("connect", "spawn", "spawn", "spawn", "hello", "hello", "hello", "fork", "exit", "die",
             "kill", "kill", "group", "group", "renice", "wait", "alloc", "time")
        )  # fmt: skip
        getattr(self, what)()
        return what

    def program(self) -> tuple[SimClient, Tree]:
        pid = self.random.choice([*self.clients, 2])
        return self.clients.get(pid, self.operator), self.forest.tasks[pid]

    def anybody(self) -> Tree:
        """Return a task, the operator excepted."""
        others = [t for pid, t in self.forest.tasks.items() if pid != 2 and t.lives]
        return self.random.choice(others or [self.forest.tasks[2]])

    # --- what programs do -----------------------------------------------------------------------

    def connect(self) -> None:
        client = self.sim.client()
        pid = self.sim.system.tasks.last_pid
        self.clients[pid] = client
        self.forest.born(pid, 1, self.forest.owner, 0, "live")

    def spawn(self) -> None:
        client, task = self.program()
        nice, name = self.random.randint(-20, 19), self.random.choice((None, None, *NAMES))
        reply = client.ask("spawn", "x", False, nice, name)
        above: Any = task.node
        if task.doomed:
            above = Errno.ECANCELED
        elif name is not None:
            above = self.forest.place(task, task.node, name, 1)
        self._made(reply, task, above, nice, 0)

    def fork(self) -> None:
        client, task = self.program()
        reply = client.ask("fork_task", "x")
        above: Any = Errno.ECANCELED if task.doomed else task.node
        self._made(reply, task, above, task.node.nice, task.contexts)

    def _made(self, reply: Any, task: Tree, above: Any, nice: int, contexts: int) -> None:
        if not isinstance(above, Node):
            assert reply.errno == above, reply.message
            return
        assert reply.errno == 0, reply.message
        pid = reply.result.pid
        self.tickets[pid] = reply.result.ticket
        self.forest.born(pid, task.pid, above, nice, "new", contexts)

    def hello(self) -> None:
        if not self.tickets:
            return
        pid = self.random.choice(list(self.tickets))
        ticket, task = self.tickets.pop(pid), self.forest.tasks.get(pid)
        grace_s = self.random.choice((0.0, 5.0))
        if task is None or not task.lives:
            reply = self.sim.client(hello=False).ask("hello", "x", ticket)
            assert reply.errno == Errno.ESTALE
            return
        self.clients[pid] = begin(self.sim, ticket, grace_s=grace_s)
        task.state, task.grace_s = "live", grace_s

    def alloc(self) -> None:
        client, task = self.program()
        assert client.ask("alloc_ctx", client.new_handle()).errno == 0
        task.contexts += 1

    def exit(self) -> None:
        client, task = self.program()
        if client is not self.operator:
            client.ask("exit", 3)
            self.forest.end(task, 3, "exit")

    def die(self) -> None:
        client, task = self.program()
        if client is not self.operator:
            self.sim.front.dead.add(client.route)
            self.sim.turn()
            self.forest.end(task, 129, "its program ended")

    def wait(self) -> None:
        client, task = self.program()
        children = [t for t in self.forest.tasks.values() if t.parent == task.pid]
        reply = client.ask("wait", 0, True)
        ended = {t.pid: t.status for t in children if not t.lives}
        if not children:
            assert reply.errno == Errno.ESRCH
        elif not ended:
            assert reply.result.pid == 0
        else:
            pid, *status = reply.result
            assert ended[pid] == tuple(status)
            del self.forest.tasks[pid]

    def time(self) -> None:
        self.sim.clock.now += 2.0
        self.sim.turn()
        self.forest.expire(self.sim.clock.now)

    # --- what is done to others -----------------------------------------------------------------

    def kill(self) -> None:
        by = self.operator if self.random.random() < 0.7 else self.program()[0]
        sig = self.random.choice(SIGNALS)
        task, how = self.anybody(), self.random.choice(("one", "tree", "group"))
        args: tuple[Any, ...] = (task.pid, int(sig), how == "tree", None)
        targets = {task}
        if how == "tree":
            targets = self.forest.tree([task], task.node)
        elif how == "group":
            name = self.random.choice(NAMES)
            args = (0, int(sig), False, name)
            node = self.forest.groups().get(name)
            targets = self.forest.tree([], node) if node is not None else set()
        if self.forest.tasks[2] in targets:
            return  # the operator stays
        reply = by.ask("kill", *args)
        if not targets:
            assert reply.errno == Errno.ESRCH
            return
        assert reply.result.tasks == len(targets), f"{how} of {task.pid}"
        self.forest.signal(targets, sig, how != "one", self.sim.clock.now)

    def renice(self) -> None:
        task, nice = self.anybody(), self.random.randint(-20, 19)
        assert self.operator.ask("renice", task.pid, nice).result.before == task.node.nice
        task.node.nice = nice

    def group(self) -> None:
        client, by = self.program()
        task, name = self.anybody(), self.random.choice((None, *NAMES))
        reply = client.ask("group", task.pid, name)
        now = task.node.up
        assert now is not None
        then: Any = now
        if name is None:
            group = next((node for node in now.path() if node.group), None)
            if group is not None:
                then = self.forest.may_go(by, now, group.up) or group.up  # type: ignore[arg-type]
        else:
            there = self.forest.groups().get(name)
            below = [n for t in self.forest.living(task.node) for n in t.node.path()]
            deepest = max(len(node.path()) for node in below) - len(task.node.path())
            if there is not None and task.node in there.path():
                then = Errno.EINVAL
            elif there is not now:
                then = self.forest.place(by, now, name, 1 + deepest)
        if isinstance(then, Node):
            assert reply.errno == 0, reply.message
            task.node.up = then
            assert reply.result.group == self.forest.group_of(task)
        else:
            assert reply.errno == then, reply.message

    # --- what is seen ---------------------------------------------------------------------------

    def check(self) -> None:
        """What ps shows, what programs have heard and what accounts have: all as it should be."""
        self.clients = {
            pid: client for pid, client in self.clients.items()
            if pid in self.forest.tasks and self.forest.tasks[pid].lives
        }  # fmt: skip
        seen = {
            pid: (row.parent, row.state, row.nice, row.group, row.contexts)
            for pid, row in rows(self.operator).items() if pid != 1
        }  # fmt: skip
        for task in self.forest.tasks.values():
            should = (
                task.parent, LETTERS[task.state], task.node.nice, self.forest.group_of(task),
                task.contexts,
            )  # fmt: skip
            shown = seen.pop(task.pid)
            assert shown[:2] == should[:2] and shown[4] == should[4], f"{task}: {shown}"
            if task.lives:
                assert shown == should, f"{task}: {shown}"
        assert not seen, "tasks that should not be there"
        for pid, client in self.clients.items():
            assert told(client) == self.forest.tasks[pid].told, pid
        self.check_accounts()

    def check_accounts(self) -> None:
        system = self.sim.system
        accounts = list(system.tasks.accounts.root.below())
        named = {account.name for account in accounts if account.kind is Kind.GROUP}
        assert named == set(self.forest.groups())
        assert named == {group.name for group in system.tasks.accounts.groups()}
        for account in accounts:
            assert account.depth == len(list(account.path())) - 1
            below = [task for a in account.below() if (task := task_of(system, a)) is not None]
            below = [task for task in below if not task.ended_already]
            assert account.usage.tasks == len(below)
            assert account.usage.contexts == sum(len(task.contexts) for task in below)
            assert below or not needless(account), f"{account} stays for nobody"


def needless(account: Account) -> bool:
    return account.kind in (Kind.GROUP, Kind.TASK)


@pytest.mark.parametrize("seed", range(16))
def test_random_trees_are_as_they_should_be(seed: int) -> None:
    walk = Walk(seed)
    done = []
    for _ in range(120):
        done.append(walk.step())
        try:
            walk.check()
        except AssertionError as wrong:
            raise AssertionError(f"seed {seed}, after {len(done)}: {done[-12:]}") from wrong
    walk.sim.leave()
    assert walk.sim.system.tasks.accounts.root.usage.tasks == 1
