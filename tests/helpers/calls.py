"""Calls: what a program of the simulator asks the kernel for, and what is true once it has it."""

from collections.abc import Callable, Generator
from random import Random
from typing import TYPE_CHECKING, Any

from kernel.task import INIT
from tests.helpers.forest import Node, Tree
from tests.helpers.sim import Reply
from tests.helpers.streams import Errand, Owned, Stream

if TYPE_CHECKING:
    from tests.helpers.programs import Program
    from tests.helpers.world import World

Script = Generator[float | Reply, None, None]
SOON_S = 0.02
"""Between the birth of a task and its program's hello, at most."""


class Calls:
    """The calls of a program, and what it has by them."""

    def __init__(self, world: "World", name: str, uid: int, random: Random, ticket: bytes | None):
        self.world = world
        self.work = world.work
        self.name = name
        self.random = random
        self.client = world.work.sim.client(hello=False, uid=uid)
        self.contexts: dict[int, Owned] = {}
        self.streams: dict[int, Stream] = {}  # by call
        self.pid = 0
        self.node = world.owner(uid)  # its place in the tree of accounts, once it has a task
        self.taken: dict[int, Errand] = {}  # messages that it has not answered, the last one last
        self.waits: dict[int, str] = {}  # calls that wait for others, and what ps says of them
        self.ports: set[str] = set()
        self._ticket = ticket
        self._then: dict[int, Callable[[Reply], None]] = {}

    @property
    def tree(self) -> Tree:
        """Its task, as it must be."""
        return self.world.forest.tasks[self.pid]

    @property
    def serves(self) -> Errand | None:
        """The call that it works for."""
        return next((each for each in reversed(self.taken.values()) if not each.over), None)

    @property
    def payer(self) -> Node:
        """Whose place is charged for what it has computed."""
        serves = self.serves
        return self.node if serves is None else serves.payer

    def call(self, name: str, *args: Any, ids: list[int] | None = None,
             then: Callable[[Reply], None] | None = None) -> Reply:  # fmt: skip
        """Make a call; `then` is done when it has ended well."""
        reply = self.client.send(name, *args, ids=ids)
        if then is not None:
            self._then[reply.call] = then
        self.world.fresh.add(self)
        return reply

    def hello(self) -> Reply:
        """Become a new task, or the one that the ticket is for; ESTALE if that has ended."""

        def met(reply: Reply) -> None:
            self.pid = reply.result.pid
            self.world.by_pid[self.pid] = self
            if self._ticket is None:
                owner = self.world.owner(self.client.uid)
                self.world.forest.born(self.pid, INIT, owner, 0, "new")
            tree = self.world.forest.tasks[self.pid]
            tree.state, self.node = "live", tree.node

        return self.call("hello", self.name, self._ticket, then=met)

    def spawn(self, script: Callable[["Program"], Script], name: str, group: str | None) -> Reply:
        """Make a child, which comes soon; a group is made below the caller."""

        def born(reply: Reply) -> None:
            forest = self.world.forest
            above = forest.place(self.tree, self.node, group, 1) if group else self.node
            assert isinstance(above, Node), f"{name} is in {group}, and it should be {above!r}"
            forest.born(reply.result.pid, self.pid, above, 0, "new")
            soon, ticket = self.random.uniform(0, SOON_S), reply.result.ticket
            self.world.start(script, name, soon, self.client.uid, ticket)

        return self.call("spawn", name, False, 0, group, then=born)

    def wait(self) -> Reply:
        """Wait for a child that has ended; ESRCH if there is none any more."""

        def ended(reply: Reply) -> None:
            child = self.world.by_pid.get(reply.result.pid)
            if child is not None:  # it was killed just now
                child.end()
            self.world.forest.tasks.pop(reply.result.pid)

        reply = self.call("wait", then=ended)
        self.waits[reply.call] = "child"
        return reply

    def exit(self) -> Reply:
        """End."""
        return self.call("exit", then=lambda reply: self.end())

    def alloc(self) -> Owned:
        """Ask for an empty context."""
        owned = Owned(self, self.client.new_handle(), [])
        self.call("alloc_ctx", owned.handle, then=lambda reply: self._own(owned))
        return owned

    def _own(self, owned: Owned) -> None:
        self.contexts[owned.handle] = owned

    def fork(self, parent: Owned) -> Owned:
        """Ask for a context with the ids of another one."""
        owned = Owned(self, self.client.new_handle(), [])

        def forked(reply: Reply) -> None:
            owned.ids = parent.ids[: reply.result.length]
            owned.paid = parent.paid
            self._own(owned)

        self.call("fork_ctx", parent.handle, owned.handle, then=forked)
        return owned

    def append(self, owned: Owned, ids: list[int]) -> Reply:
        def appended(reply: Reply) -> None:
            owned.ids.extend(ids)
            self.world.appended.add(owned)
            self.world.spend(self, "input_ids", len(ids))

        return self.call("append", owned.handle, ids=ids, then=appended)

    def infer(self, owned: Owned, count: int, ids: list[int] | None = None) -> Reply:
        """Ask for ids."""
        seed = next(self.world.seeds)
        reply = self.call("infer", owned.handle, count, 1.0, 0, 1.0, 0.0, seed, (), True, ids=ids)
        stream = Stream(owned, reply, seed, ids or [], self.work.now)
        stream.appended = owned in self.world.appended
        self.world.appended.discard(owned)  # its prefill becomes part of this
        owned.stream = self.streams[reply.call] = self.world.streams[seed] = stream
        return reply

    def bind(self, port: str) -> Reply:
        def bound(reply: Reply) -> None:
            self.ports.add(port)
            self.world.ports[port] = self

        return self.call("bind", port, then=bound)

    def ask(self, port: str, timeout_s: float | None = None) -> Reply:
        """Call a port, and wait for the reply."""
        reply = self.call("call", port, b"please", timeout_s)
        self.waits[reply.call] = f"port:{port}"
        self.world.errands.append(Errand(self, port, reply, timeout_s))
        return reply

    def recv(self, port: str) -> Reply:
        """Wait for the next message of a port."""

        def took(reply: Reply) -> None:
            errand = self.world.errand(port, reply.result.pid)
            if errand is not None:  # it has not ended since
                self.taken[reply.result.message] = errand

        reply = self.call("recv", port, then=took)
        self.waits[reply.call] = f"recv:{port}"
        return reply

    def answer(self, message: int) -> Reply:
        """Reply to a message."""

        def answered(reply: Reply) -> None:
            if message in self.taken:  # who was deaf may not know whose it was
                self.taken.pop(message).answered = True

        return self.call("reply", message, b"here", then=answered)

    def free(self, owned: Owned) -> Reply:
        def freed(reply: Reply) -> None:
            self.contexts.pop(owned.handle, None)
            self.world.appended.discard(owned)

        return self.call("free_ctx", owned.handle, then=freed)

    def ids(self, count: int) -> list[int]:
        """Return ids that no other prompt is likely to have."""
        return [self.random.randrange(self.world.vocab) for _ in range(count)]
