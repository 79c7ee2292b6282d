"""World: all programs of a simulated kernel, and what they know together."""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from random import Random

from tests.helpers.clockwork import Clockwork
from tests.helpers.forest import Forest, Node
from tests.helpers.programs import Program, Script
from tests.helpers.sim import UID, Reply
from tests.helpers.streams import Errand, Owned, Stream


class World:
    """All programs of a Sim."""

    def __init__(self, work: Clockwork, seed: int, vocab: int) -> None:
        self.work = work
        self.random = Random(seed)
        self.vocab = vocab
        self.programs: list[Program] = []
        self.by_pid: dict[int, Program] = {}
        self.streams: dict[int, Stream] = {}  # by seed
        self.finished: list[Stream] = []
        self.ports: dict[str, Program] = {}  # of all users, who are one here
        self.appended: set[Owned] = set()  # got ids that no infer has come for yet
        self.fresh: set[Program] = set()  # have made calls since the kernel was at rest
        self.seeds = count(1)
        self.errnos: Counter[int] = Counter()  # of calls that scripts have waited for
        self.forest = Forest()  # of the tasks that there must be
        self.ended_at: dict[int, float] = {}  # by pid
        self.errands: list[Errand] = []  # in the order of their calls
        self.blurred: set[Node] = set()  # places of which it is not known what they have spent
        self.limited = False  # a limit may end what somebody has asked for
        self.quiet = False  # who is deaf does nothing, so whoever acts knows what has come of it
        self.on_ids: list[Callable[[Stream, list[int]], None]] = []  # that have come
        self.on_end: list[Callable[[Stream], None]] = []
        self.on_spent: list[Callable[[Program, str, int], None]] = []
        self.on_refused: list[Callable[[Program, Reply, Stream | None], None]] = []
        self.loose: Callable[[Owned], bool] = lambda owned: False  # see Limited.loose
        self._owners = {UID: self.forest.owner}
        self.grain_s = 0.0  # what programs do is rounded to this, so that thousands act at once

    def start(
        self, script: Callable[[Program], Script], name: str, at: float = 0.0, uid: int = UID,
        ticket: bytes | None = None,
    ) -> Program:  # fmt: skip
        """Let a program begin some time from now."""
        program = Program(self, script, name, uid, Random(self.random.random()), ticket)
        self.programs.append(program)
        self.work.readers[program.client.route] = program.read
        self.work.after(at, program.go_on)
        return program

    def left(self, program: Program) -> None:
        """Note that a program's task has ended; its parent may not have waited for it."""
        if self.by_pid.pop(program.pid, None) is not None:
            self.ended_at[program.pid] = self.work.now
            tree = self.forest.tasks.get(program.pid)
            if tree is not None:  # it has not gone with its tree
                self.forest.end(tree, 0, "")

    def owner(self, uid: int) -> Node:
        """Return the place of a user."""
        if uid not in self._owners:
            self._owners[uid] = Node(self.forest.owner.up)
        return self._owners[uid]

    # --- what is told -------------------------------------------------------------------------

    def spend(self, program: Program, what: str, count: int) -> None:
        """Note what a program has used, at its payer's cost."""
        for told in self.on_spent if count else ():
            told(program, what, count)

    def refused(self, program: Program, reply: Reply, stream: Stream | None = None) -> None:
        """Note that a limit has ended a call."""
        for told in self.on_refused:
            told(program, reply, stream)

    def blur(self, program: Program) -> None:
        """Note that nobody will know what a program, which is deaf, was charged meanwhile."""
        self.blurred.update(program.node.path(), program.payer.path())

    def errand(self, port: str, pid: int) -> Errand | None:
        """Return the call of a task that the server of a port takes now."""
        self.errands = [each for each in self.errands if not (each.over or each.taken)]
        for each in self.errands:
            if (each.port, each.caller.pid) == (port, pid):
                each.taken = True
                return each
        return None

    def ended(self, stream: Stream) -> None:
        self.appended.discard(stream.owned)
        for told in self.on_end:
            told(stream)
        if self.streams.pop(stream.seed, None) is not None:
            self.finished.append(stream)

    def uncomputed(self) -> Iterator[Owned]:
        """Yield the contexts that may have something to be computed."""
        yield from {stream.owned for stream in self.streams.values()} | self.appended

    def settle(self) -> None:
        """After the kernel has come to rest."""
        for program in self.fresh:
            program.settle()
        self.fresh.clear()
