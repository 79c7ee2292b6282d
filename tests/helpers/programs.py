"""Programs of the simulator: what they do is a script, what they know comes from events only.

A script is a generator: it yields how many seconds it waits, or the Reply whose end it waits for.
A `Program` keeps what must be true of its task: its contexts with their ids, and its `Stream`s, the
infers that are not finished. tests/helpers/truth.py compares that with what ps says.
"""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from syscalls.errors import Errno
from tests.helpers.calls import Calls, Script
from tests.helpers.sim import Reply
from tests.helpers.streams import Stream

if TYPE_CHECKING:
    from tests.helpers.world import World

REACTION_S = 0.0005
"""Between the end of a call and what its program does about it, at most."""


class Program(Calls):
    """One program, and what must be true of its task."""

    def __init__(self, world: "World", script: Callable[["Program"], Script], name: str, uid: int,
                 random: Random, ticket: bytes | None = None) -> None:  # fmt: skip
        super().__init__(world, name, uid, random, ticket)
        self.nice = 0
        self.stopped = False
        self.gone = False  # its program has died, or it was killed
        self.prompt_tokens = self.output_tokens = 0
        self._awaited: Reply | None = None
        self._late = False  # it would have gone on, and does not while it is deaf
        self._script = script(self)

    @property
    def deaf(self) -> bool:
        """Whether it does not read: then it knows nothing new."""
        return self.client.route in self.work.sim.front.blocked

    # --- following ----------------------------------------------------------------------------

    def read(self) -> None:
        """Take what has come from the kernel."""
        self.client.take()
        for call, then in list(self._then.items()):
            reply = self.client.calls[call]
            if reply.done:
                del self._then[call]
                assert not reply.errno or reply.name != "hello" or self._ticket, reply
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
        for told in self.world.on_ids if new else ():
            told(stream, new)
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
        self.world.left(self)

    def die(self) -> None:
        """Die, as a process does."""
        self.work.sim.front.dead.add(self.client.route)
        self.end()
