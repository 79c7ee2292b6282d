"""Forest: what a table of tasks should look like, told from what was done to it.

Written from the documents (kernel/task.py, kernel/account.py, abi.Kill, abi.Group), without looking
at how the kernel does it: every question is answered by searching all there is.
"""

from dataclasses import dataclass, field

from kernel.account import MAX_DEPTH
from syscalls.abi import Sig
from syscalls.errors import Errno

TOLD = (Sig.INT, Sig.HUP, Sig.USR1)


@dataclass(eq=False)
class Node:
    """A place in the tree of accounts; its task may have ended."""

    up: "Node | None"
    group: str = ""
    nice: int = 0

    def path(self) -> "list[Node]":
        return [self, *(self.up.path() if self.up else ())]


@dataclass(eq=False)
class Tree:
    """A task."""

    pid: int
    parent: int
    node: Node
    state: str  # new, live, stopped, zombie
    grace_s: float = 0.0
    ends_by: float | None = None
    doomed: bool = False
    contexts: int = 0
    status: tuple[int, str] = (0, "")
    told: list[int] = field(default_factory=list)

    @property
    def lives(self) -> bool:
        return self.state != "zombie"


class Forest:
    """All tasks but init, and where they stand."""

    def __init__(self) -> None:
        self.owner = Node(Node(None))
        self.tasks: dict[int, Tree] = {}

    # --- questions ----------------------------------------------------------------------------

    def living(self, node: Node) -> list[Tree]:
        """Return the tasks at or below a place."""
        return [t for t in self.tasks.values() if t.lives and node in t.node.path()]

    def groups(self) -> dict[str, Node]:
        """Return the groups that there are: those in which a task lives."""
        found = {n.group: n for t in self.tasks.values() if t.lives for n in t.node.path()}
        return {name: node for name, node in found.items() if name}

    def group_of(self, task: Tree) -> str:
        return next((node.group for node in task.node.path() if node.group), "")

    def tree(self, roots: list[Tree], node: Node) -> set[Tree]:
        """Return what a signal to a tree or a group reaches, through children that have ended."""
        found = {*roots, *self.living(node)}
        while True:
            more = {
                t for t in self.tasks.values()
                if any(f.lives and t.parent == f.pid for f in found)
                or (t.lives and any(f.node in t.node.path() for f in found))
            }  # fmt: skip
            if more <= found:
                return {task for task in found if task.lives}
            found |= more

    # --- what happens -------------------------------------------------------------------------

    def place(self, by: Tree, now: Node, name: str, height: int) -> "Node | Errno":
        """Return where something of so many levels stands that goes from below `now` to a group."""
        group = self.groups().get(name)
        level = len(group.path()) - 1 if group is not None else len(now.path())
        if level + height > MAX_DEPTH:
            return Errno.EINVAL
        if group is None:
            return Node(now, name)
        return self.may_go(by, now, group) or group

    def height(self, node: Node) -> int:
        """Return how many levels of the tree a place and all below it take."""
        paths = [task.node.path() for task in self.tasks.values()]
        return max(path.index(node) + 1 for path in paths if node in path)

    def out_of(self, now: Node) -> Node:
        """Return where something stands that leaves the group that it is in."""
        group = next((node for node in now.path() if node.group), None)
        return now if group is None or group.up is None else group.up

    def may_go(self, by: Tree, now: Node, then: Node) -> "Errno | None":
        left = [node for node in now.path() if node not in then.path()]
        return Errno.EPERM if any(node in by.node.path() for node in left) else None

    def born(
        self, pid: int, parent: int, above: Node, nice: int, state: str, contexts: int = 0
    ) -> Tree:
        while len(above.path()) - 1 >= MAX_DEPTH:
            assert above.up is not None
            above = above.up
        task = self.tasks[pid] = Tree(pid, parent, Node(above, "", nice), state)
        task.contexts = contexts
        return task

    def end(self, task: Tree, status: int, reason: str) -> None:
        if not task.lives:
            return
        task.state, task.status, task.contexts, task.ends_by = "zombie", (status, reason), 0, None
        for child in [t for t in self.tasks.values() if t.parent == task.pid]:
            child.parent = 1
            if not child.lives:
                del self.tasks[child.pid]
            elif child.state == "new":
                self.end(child, 0, "")
        if task.parent == 1:
            del self.tasks[task.pid]

    def signal(self, tasks: set[Tree], sig: Sig, many: bool, now: float) -> None:
        for task in sorted(tasks, key=lambda task: task.pid):
            if not task.lives:
                continue
            if sig in (Sig.KILL, Sig.TERM):
                task.doomed |= many
                if sig is Sig.TERM and task.grace_s and task.state != "new":
                    task.ends_by = min(task.ends_by or 1e9, now + task.grace_s)
                    task.told.append(sig)
                else:
                    self.end(task, 128 + sig, sig.name)
            elif sig is Sig.STOP and task.state == "live":
                task.state = "stopped"
            elif sig is Sig.CONT and task.state == "stopped":
                task.state = "live"
            elif sig in TOLD and not (task.state == "new" and sig in task.told):
                task.told.append(sig)

    def expire(self, now: float) -> None:
        for task in sorted(self.tasks.values(), key=lambda task: task.pid):
            if task.lives and task.ends_by is not None and now >= task.ends_by:
                self.end(task, 128 + Sig.TERM, "TERM")
