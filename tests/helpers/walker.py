"""A walk: operations in a list, each of which can do without those before it, on a Sim of its own.

An operation is a name and a seed; what it does, and to whom, is drawn from that seed and from what
is there when it is done. So every part of a list is a list, and a walk that fails is made shorter
until nothing can be left out: what then fails is a few operations (tests/helpers/walks.py).

After every turn of the kernel and all work of the driver, `Sim.check` and tests/helpers/books.py
compare all that is there; before a turn, an operation is but a message that waits. Clients follow
their contexts as those of a crowd do (tests/helpers/crowd.py): each id that is sampled is what the
ids before it say.

To add an operation: a method of Walk, and its weight in OPS.
"""

from collections.abc import Callable, Iterable
from random import Random
from typing import Any, NamedTuple

from kernel.device import DeviceState
from kernel.stats import Totals
from syscalls.abi import Advice, Sig
from syscalls.errors import Errno
from tests.helpers.books import Books
from tests.helpers.crowd import LEGAL, VOCAB, Knobs, Member, Mirror
from tests.helpers.ground import BULK_BYTES, DISK, PAGE, Ground, WalkLink, Whim, store_of
from tests.helpers.sim import UID, Sim, SimClient

OWNERS = UID, 0
MODELS = "null", "other"


class Op(NamedTuple):
    """One operation."""

    name: str
    seed: int


class Walker(Member):
    """One client: what it asks for is drawn anew for each operation."""

    legal = LEGAL | {Errno.ENODEV, Errno.ENOENT, Errno.EDQUOT}

    def __init__(self, client: SimClient, families: list[list[int]]) -> None:
        super().__init__(client, Random(0))
        self.families = families
        self.size = client.sim.config.block_size

    def choose(self, busy: bool | None) -> Mirror | None:
        """Return one of its contexts: with an infer, without, or any."""
        known = [
            mirror for mirror in self.contexts.values()
            if not (mirror.infer and -mirror.infer.call in self.then)
            and (busy is None or busy == (mirror.infer is not None))
        ]  # fmt: skip
        return self.random.choice(known) if known else None

    def _alloc(self, handle: int) -> None:
        other = self.random.random() < 0.2
        self.client.send("alloc_ctx", handle, *([MODELS[1]] if other else []))

    def _ids(self, most: int) -> list[int]:
        """Return ids that others begin with, too, as often as not."""
        random, most = self.random, max(2, min(most, 5 * self.size))
        count = random.randint(1, most)
        if random.random() < 0.3:
            return [random.randrange(VOCAB) for _ in range(count)]
        begin = random.choice(self.families)[:count]
        return begin + [random.randrange(2) for _ in range(random.randint(0, 2))]

    def _knobs(self) -> Knobs:
        return super()._knobs() if self.random.random() < 0.05 else Knobs(seed=1)

    def see(self, events: list[list[Any]]) -> None:
        """Follow the events; a context is let go if nobody can know what an error has left in it:
        an infer that brought ids may end before it was seen to take them."""
        unsure = {-call for call in self.then if call < 0}
        mirrors = {m.infer.call: m for m in self.contexts.values() if m.infer is not None}
        super().see(events)
        for call in unsure - {-call for call in self.then}:
            if self.client.calls[call].errno and call in mirrors:
                self._free(mirrors[call])


class Walk:
    """A Sim and its clients of two users."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        part = PAGE * (1 + (ground.host_blocks * 8 * ground.block_size - 1) // PAGE)
        link = WalkLink(ground, part * 4)
        policy = Whim(Random(ground.seed + 3), ground.swaps)
        self.sim = Sim(
            ground.seed, link=link, policy=policy, num_blocks=ground.num_blocks,
            block_size=ground.block_size, prefill_chunk=ground.prefill_chunk, host_bytes=part,
            zombie_s=0.05, bulk_bytes=BULK_BYTES, store=store_of(link) if ground.disk else None,
            overlap=ground.overlap, **DISK if ground.disk else {},
        )  # fmt: skip
        link.sim = self.sim
        self.random = Random(0)
        families = Random(ground.seed + 4)
        self.families = [[families.randrange(VOCAB) for _ in range(80)] for _ in range(3)]
        self.operators = {uid: self.sim.client(uid=uid) for uid in OWNERS}
        self.walkers = [self._connect(OWNERS[n % 2]) for n in range(4)]
        self.books = Books(self.sim)
        self.deaths = 0
        self.done = 0

    @property
    def totals(self) -> Totals:
        """What the kernel's schedulers and pools have done."""
        return self.sim.system.device.models.totals

    def _connect(self, uid: int) -> Walker:
        return Walker(self.sim.client(uid=uid), self.families)

    # --- walking ------------------------------------------------------------------------------

    def run(self, ops: Iterable[Op]) -> None:
        """Do operations, one after the other."""
        for op in ops:
            self.do(op)

    def do(self, op: Op) -> None:
        """Do one operation, then as many turns as it draws."""
        self.random = Random(op.seed)
        OPS[op.name][1](self)
        self.done += 1
        for _ in range(self.random.choice([0, 1, 1, 1, 2])):
            self.turn(self.random.choice([0, 1, 1, 2]))

    def turn(self, pump: int = 1) -> None:
        """One turn of the kernel, then the clients look, then the driver does so many messages."""
        sim = self.sim
        sim.clock.now += 0.001
        sim.kernel_turn()
        for walker in self.walkers:
            walker.see(walker.client.take())
            walker.settle_accepted()
        for operator in self.operators.values():
            operator.take()
        self.look()
        stored = sim.store.pump(pump) if sim.store is not None else 0
        if sim.link.pump(pump) + stored:
            self.books.check_bytes()  # the kernel knows of nothing yet

    def look(self) -> None:
        """Compare all that is there."""
        device = self.sim.system.device
        assert device.epoch == 1 + self.deaths, f"the driver was replaced: {device.note}"
        self.sim.check()
        self.books.check()

    def rest(self, turns: int = 3000) -> None:
        """Let everything end, that of stopped tasks later; then let all go and see what is left."""
        self._all_end(lambda walker: not walker.stopped, turns)
        for walker in self.walkers:
            if walker.stopped:
                self._signal(walker)
        self._all_end(lambda walker: True, turns)
        for walker in self.walkers:
            for handle in list(walker.contexts):
                walker.client.send("free_ctx", handle)
            walker.client.send("exit")
        for operator in self.operators.values():
            operator.send("exit")
        self._all_end(lambda walker: True, turns)
        self.sim.settle()
        self.sim.turn()
        self.sim.check_empty()

    def _all_end(self, which: Callable[[Walker], bool], turns: int) -> None:
        """Every call of some walkers ends, in so many turns."""
        for _ in range(turns):
            calls = [
                call for walker in self.walkers if which(walker)
                for call in walker.client.calls.values() if not call.done
            ]  # fmt: skip
            operators = [c for o in self.operators.values() for c in o.calls.values() if not c.done]
            if not calls and not operators and not self.sim.system.jobs:
                return
            self.turn(1)
        raise AssertionError(f"not ended after {turns} turns: {[call.name for call in calls]}")

    # --- operations ---------------------------------------------------------------------------

    def _walker(self) -> Walker:
        walker = self.random.choice(self.walkers)
        walker.random = self.random
        return walker

    def _on(self, busy: bool | None) -> tuple[Walker, Mirror] | None:
        walker = self._walker()
        mirror = walker.choose(busy)
        return None if mirror is None else (walker, mirror)

    def begin(self) -> None:
        walker = self._walker()
        if len(walker.contexts) < 5:
            walker._begin()
        else:
            walker._free(self.random.choice(list(walker.contexts.values())))

    def append(self) -> None:
        if found := self._on(False):
            found[0]._append(found[1])

    def infer(self) -> None:
        if found := self._on(False):
            found[0]._infer(found[1])

    def fork(self) -> None:
        if (found := self._on(None)) and len(found[0].contexts) < 8:
            found[0]._fork(found[1])

    def branch(self) -> None:
        if (found := self._on(False)) and not found[0].then and len(found[0].contexts) < 8:
            found[0]._branch(found[1])

    def trim(self) -> None:
        if found := self._on(False):
            found[0]._trim(found[1])

    def cancel(self) -> None:
        if found := self._on(True):
            found[0]._cancel(found[1])

    def read(self) -> None:
        if found := self._on(None):
            found[0]._read(found[1])

    def free(self) -> None:
        if found := self._on(None):
            found[0]._free(found[1])

    def advise(self) -> None:
        if found := self._on(None):
            verb = self.random.choice(list(Advice)).value
            ttl = [self.random.choice([0.01, 1.0, 60.0])] if verb == Advice.RETAIN.value else []
            found[0].client.send("advise_ctx", found[1].handle, verb, *ttl)

    def inspect(self) -> None:
        """All that tools ask: it must change nothing, and what it says is checked elsewhere."""
        if found := self._on(None):
            client, handle = found[0].client, found[1].handle
            name, *args = self.random.choice(
                [("explain", handle), ("pmap", handle), ("stat_ctx", handle), ("stat_task",),
                 ("snapshot", "contexts"), ("snapshot", "pools"), ("snapshot", "kernel")]
            )  # fmt: skip
            client.send(name, *args)

    def drop_cache(self) -> None:
        self._walker().client.send("drop_cache")

    def signal(self) -> None:
        self._signal(self._walker())

    def _signal(self, walker: Walker) -> None:
        """Stop it, or let it go on."""
        pid = self._pid(walker)
        if pid:
            walker.stopped = not walker.stopped
            signal = Sig.STOP if walker.stopped else Sig.CONT
            self.operators[walker.client.uid].send("kill", pid, int(signal))

    def _pid(self, walker: Walker) -> int:
        session = self.sim.system.sessions.get(walker.client.route)
        return session.task.pid if session is not None and session.task is not None else 0

    def kill(self) -> None:
        """A program dies or is killed, another one comes."""
        walker = self._walker()
        pid = self._pid(walker)
        if pid and self.random.random() < 0.5:
            self.operators[walker.client.uid].send("kill", pid, int(Sig.KILL))
        else:
            self.sim.front.dead.add(walker.client.route)
        self.turn(0)
        walker.alive = False
        self.walkers[self.walkers.index(walker)] = self._connect(walker.client.uid)

    def die(self) -> None:
        """The driver dies, wherever it is; or the store does, with the swap file and its keys."""
        if self.sim.store is not None and self.random.random() < 0.5:
            self.sim.store.die()
            self.turn(0)
        elif self.sim.system.device.state is DeviceState.UP:
            self.deaths += 1
            self.sim.link.die()
            self.turn(0)

    def models(self) -> None:
        """A model is loaded, or goes whether it is used or not."""
        name = self.random.choice(MODELS)
        self.turn(0)  # what was sent is taken, or not, before the model goes
        operator, models = self.operators[UID], self.sim.system.device.models
        if models.find(name) is None:
            blocks = self.random.randint(4, 32)
            operator.send("load_model", name, f"null:vocab={VOCAB}", None, None, 0, blocks)
        elif self.random.random() < 0.3:
            operator.send("unload_model", name, True)

    def wait(self) -> None:
        for _ in range(self.random.randint(1, 8)):
            self.turn(self.random.choice([1, 2, 4]))


OPS: dict[str, tuple[int, Callable[[Walk], None]]] = {
    "begin": (16, Walk.begin), "append": (10, Walk.append), "infer": (30, Walk.infer),
    "fork": (6, Walk.fork), "branch": (6, Walk.branch), "trim": (8, Walk.trim),
    "cancel": (6, Walk.cancel), "read": (3, Walk.read), "free": (5, Walk.free),
    "advise": (9, Walk.advise), "inspect": (3, Walk.inspect),
    "drop_cache": (1, Walk.drop_cache), "signal": (3, Walk.signal), "kill": (2, Walk.kill),
    "die": (1, Walk.die), "models": (2, Walk.models), "wait": (4, Walk.wait),
}  # fmt: skip
"""How often each is drawn, and what it does."""


def draw(seed: int, count: int) -> list[Op]:
    """Return the first operations of a seed."""
    random, names, weights = Random(seed), list(OPS), [weight for weight, _ in OPS.values()]
    return [
        Op(random.choices(names, weights)[0], random.getrandbits(32)) for _ in range(count)
    ]  # fmt: skip
