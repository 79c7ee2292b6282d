"""Programs of the simulator: what they do is a script, what they know comes from events only.

A script is a generator: it yields how many seconds it waits, or the Reply whose end it waits for.
A `Program` keeps what must be true of its task: its contexts with their ids, and its `Stream`s, the
infers that are not finished. tests/helpers/truth.py compares that with what ps says.
"""

from collections.abc import Callable, Generator
from random import Random
from typing import TYPE_CHECKING, Any

from kernel.task import INIT
from syscalls.errors import Errno
from tests.helpers.forest import Node
from tests.helpers.sim import Reply
from tests.helpers.streams import Errand, Owned, Stream

if TYPE_CHECKING:
    from tests.helpers.world import World

Script = Generator[float | Reply, None, None]
REACTION_S = 0.0005
"""Between the end of a call and what its program does about it, at most."""


class Program:
    """One program, and what must be true of its task."""

    def __init__(self, world: "World", script: Callable[["Program"], Script], name: str, uid: int,
                 random: Random) -> None:  # fmt: skip
        self.world = world
        self.work = world.work
        self.name = name
        self.random = random
        self.client = world.work.sim.client(hello=False, uid=uid)
        self.contexts: dict[int, Owned] = {}
        self.streams: dict[int, Stream] = {}  # by call
        self.pid = 0
        self.nice = 0
        self.node = world.owner(uid)  # its place in the tree of accounts, once it has a task
        self.taken: dict[int, Errand] = {}  # messages that it has not answered, the last one last
        self.stopped = False
        self.gone = False  # its program has died, or it was killed
        self.waits: dict[int, str] = {}  # calls that wait for others, and what ps says of them
        self.ports: set[str] = set()
        self.prompt_tokens = self.output_tokens = 0
        self._then: dict[int, Callable[[Reply], None]] = {}
        self._awaited: Reply | None = None
        self._late = False  # it would have gone on, and does not while it is deaf
        self._script = script(self)

    @property
    def deaf(self) -> bool:
        """Whether it does not read: then it knows nothing new."""
        return self.client.route in self.work.sim.front.blocked

    @property
    def serves(self) -> Errand | None:
        """The call that it works for."""
        return next((each for each in reversed(self.taken.values()) if not each.over), None)

    @property
    def payer(self) -> Node:
        """Whose place is charged for what it has computed."""
        serves = self.serves
        return self.node if serves is None else serves.payer

    # --- calls --------------------------------------------------------------------------------

    def call(self, name: str, *args: Any, ids: list[int] | None = None,
             then: Callable[[Reply], None] | None = None) -> Reply:  # fmt: skip
        """Make a call; `then` is done when it has ended well."""
        reply = self.client.send(name, *args, ids=ids)
        if then is not None:
            self._then[reply.call] = then
        self.world.fresh.add(self)
        return reply

    def hello(self) -> Reply:
        def met(reply: Reply) -> None:
            self.pid = reply.result.pid
            self.world.by_pid[self.pid] = self
            owner = self.world.owner(self.client.uid)
            self.node = self.world.forest.born(self.pid, INIT, owner, 0, "live").node

        return self.call("hello", self.name, then=met)

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

    # --- following ----------------------------------------------------------------------------

    def read(self) -> None:
        """Take what has come from the kernel."""
        self.client.take()
        for call, then in list(self._then.items()):
            reply = self.client.calls[call]
            if reply.done:
                del self._then[call]
                assert not reply.errno or reply.name != "hello", reply
                if not reply.errno:
                    then(reply)
                elif reply.errno == Errno.EDQUOT:
                    self.world.refused(self, reply)
        for call in [call for call in self.waits if self.client.calls[call].done]:
            del self.waits[call]
        for stream in list(self.streams.values()):
            self._follow(stream)
        self.world.fresh.add(self)
        if self._awaited is not None and self._awaited.done:
            self.world.errnos[self._awaited.errno] += 1
            self._awaited = None
            at = self.work.now + self.random.uniform(0, REACTION_S)
            grain = self.world.grain_s
            self.work.at(round(at / grain) * grain if grain else at, self.go_on)

    def _follow(self, stream: Stream) -> None:
        reply, owned = stream.reply, stream.owned
        new = reply.tokens[len(stream.times) :]
        if new or (reply.done and (not reply.errno or stream.exceeds)):
            self._accept(stream)
        owned.ids.extend(new)
        stream.times += [self.work.now] * len(new)
        self.output_tokens += len(new)
        self.world.spend(self, "output_ids", len(new))
        if reply.done:
            del self.streams[reply.call]
            self.world.ended(stream)
            if owned.stream is stream:
                owned.stream = None
            if stream.appended and not stream.accepted:
                self.world.appended.add(owned)
            if reply.errno == Errno.EDQUOT:
                self.world.refused(self, reply, stream)

    def _accept(self, stream: Stream) -> None:
        if not stream.accepted:
            self.world.spend(self, "input_ids", stream.accept())
            self.world.spend(self, "requests_per_min", 1)
            self.prompt_tokens += len(stream.owned.ids)

    def settle(self) -> None:
        """After the kernel has taken all calls: an infer that has no error has its ids."""
        for stream in self.streams.values():
            if not stream.reply.done and stream.owned.handle in self.contexts:
                self._accept(stream)

    def go_on(self) -> None:
        """Do what the script does next."""
        if self.gone:
            return
        self._late = self.deaf and self.world.quiet
        if self._late:
            return
        try:
            wanted = next(self._script)
        except StopIteration:
            return
        if not isinstance(wanted, Reply):
            self.work.after(wanted, self.go_on)
        elif wanted.done:
            self.work.after(0.0, self.go_on)
        else:
            self._awaited = wanted

    def hear(self) -> None:
        """Read again."""
        self.work.sim.front.blocked.discard(self.client.route)
        self.may_run()
        if self._late:
            self.work.after(self.random.uniform(0, REACTION_S), self.go_on)

    def may_run(self) -> None:
        """Note that its infers can run from now on, which they could not before."""
        for stream in self.streams.values():
            stream.event, stream.served = self.work.events, self.work.now

    # --- its end ------------------------------------------------------------------------------

    def end(self) -> None:
        """Note that its task has ended, or that its program has died: it does nothing any more."""
        if self.deaf:
            self.world.blur(self)
        self.gone = True
        self.world.appended.difference_update(self.contexts.values())
        self.contexts.clear()
        for stream in self.streams.values():
            self.world.ended(stream)
        self.streams.clear()
        self.waits.clear()
        for port in self.ports:
            if self.world.ports.get(port) is self:
                del self.world.ports[port]
        if self.world.by_pid.pop(self.pid, None) is not None:
            self.world.forest.end(self.world.forest.tasks[self.pid], 0, "")

    def die(self) -> None:
        """Die, as a process does."""
        self.work.sim.front.dead.add(self.client.route)
        self.end()
