"""A crowd of random clients on a Sim, each with a mirror of what its contexts must hold.

The mirror is fed by events only. Every sampled id is compared with an oracle: the null driver's
rule applied to the mirror's ids, so an id that was computed from a wrong, stale, skipped or early
reused block is seen at once.
"""

from random import Random
from typing import Any

from syscalls.abi import Event, Finish, Flag, Sig
from syscalls.errors import Errno
from tests.helpers.oracle import Knobs, next_id, scores
from tests.helpers.sim import Reply, Sim, SimClient

VOCAB = 251
MOST_CONTEXTS = 10
"""Of one client; then it frees."""
LEGAL = {
    Errno.EBADCTX, Errno.EBUSY, Errno.ECANCELED, Errno.ENOMEM, Errno.E2BIG, Errno.EINVAL,
    Errno.ESRCH, Errno.EIO, Errno.EAGAIN,
}  # fmt: skip


class Mirror:
    """One context as its client knows it."""

    def __init__(self, handle: int, ids: list[int]) -> None:
        self.handle = handle
        self.ids = ids
        self.infer: Reply | None = None
        self.knobs = Knobs()
        self.start: int | None = None  # of its score, if that is what runs
        self.scored = 0


class Member:
    """One client of the crowd: random calls, and what must follow from them."""

    legal = LEGAL

    def __init__(self, client: SimClient, random: Random) -> None:
        self.client = client
        self.random = random
        self.contexts: dict[int, Mirror] = {}
        self.then: dict[int, Any] = {}  # call -> what its FIN means for the mirror
        self.alive = True
        self.stopped = False
        self.checked = 0

    # --- acting -------------------------------------------------------------------------------

    def act(self) -> int:
        """Make one to four calls; return how many."""
        before = self.client._last
        # An infer that brought ids: whether it took them is known after the next turn.
        known = [m for m in self.contexts.values() if not (m.infer and -m.infer.call in self.then)]
        idle = [m for m in known if m.infer is None]
        busy = [m for m in known if m.infer is not None]
        draw = self.random.random()
        if known and len(self.contexts) >= MOST_CONTEXTS:
            self._free(self.random.choice(known))
        elif idle and not self.then and self.random.random() < 0.15:
            self._branch(self.random.choice(idle))
        elif draw < 0.2 or not known:
            self._begin()
        elif draw < 0.34:
            self._fork(self.random.choice(known))
        elif draw < 0.46 and idle:
            self._append(self.random.choice(idle))
        elif draw < 0.66 and idle:
            self._infer(self.random.choice(idle))
        elif draw < 0.76 and idle:
            self._trim(self.random.choice(idle))
        elif draw < 0.88 and busy:
            self._cancel(self.random.choice(busy))
        elif draw < 0.94:
            self._read(self.random.choice(known))
        else:
            self._free(self.random.choice(known))
        return self.client._last - before

    def _ids(self, most: int) -> list[int]:
        return [self.random.randrange(VOCAB) for _ in range(self.random.randint(1, most))]

    def _begin(self) -> None:
        """alloc, append, fork and infer back to back, none waited for."""
        handle = self.client.new_handle()
        self._alloc(handle)
        mirror = Mirror(handle, self._ids(70))
        ids = list(mirror.ids)
        mirror.ids = []
        self.contexts[handle] = mirror
        reply = self.client.send("append", handle, ids=ids)
        self.then[reply.call] = lambda: mirror.ids.extend(ids)
        if self.random.random() < 0.7:
            self._fork(mirror)
        if self.random.random() < 0.7:
            self._infer(mirror, extra=False)

    def _alloc(self, handle: int) -> None:
        self.client.send("alloc_ctx", handle)

    def _fork(self, mirror: Mirror) -> None:
        handle = self.client.new_handle()
        child = Mirror(handle, [])
        reply = self.client.send("fork_ctx", mirror.handle, handle)

        def forked() -> None:
            assert reply.result.length == len(mirror.ids), "a fork has the committed ids"
            child.ids = list(mirror.ids)
            self.contexts[handle] = child

        self.then[reply.call] = forked

    def _branch(self, mirror: Mirror) -> None:
        """Fork, add an id, go back before the fork, add others and infer, none waited for."""
        handle = self.client.new_handle()
        child = self.contexts[handle] = Mirror(handle, list(mirror.ids))
        self.client.send("fork_ctx", mirror.handle, handle)
        self._append(child, 1)
        if self.random.random() < 0.6:
            self._trim(child, max(0, len(mirror.ids) - self.random.randint(0, 8)))
            self._append(child, 5)
        if self.random.random() < 0.8:
            self._infer(child, extra=False)

    def _append(self, mirror: Mirror, most: int = 40) -> None:
        ids = self._ids(most)
        reply = self.client.send("append", mirror.handle, ids=ids)
        self.then[reply.call] = lambda: mirror.ids.extend(ids)

    def _infer(self, mirror: Mirror, extra: bool = True) -> None:
        if self.random.random() < 0.2:
            self._score(mirror)
            return
        knobs = self._knobs()
        count = self.random.randint(1, 12)
        stop = (self.random.randrange(VOCAB),) if self.random.random() < 0.2 else ()
        ids = self._ids(20) if extra and self.random.random() < 0.3 else None
        most = len(mirror.ids) + len(ids or ())
        begin = self.random.choice([None, None, self.random.randint(0, most)])
        if knobs == Knobs(knobs.temperature, seed=knobs.seed):
            begin = None
        reply = self.client.send(
            "infer", mirror.handle, count, knobs.temperature, knobs.top_k, 1.0, 0.0, knobs.seed,
            stop, False, self.random.choice([None, 0, 2]), knobs.repetition, knobs.presence,
            knobs.frequency, knobs.bias, begin, ids=ids,
        )  # fmt: skip
        mirror.infer, mirror.start = reply, None

        def accepted() -> None:  # at its first event
            mirror.ids.extend(ids or ())
            mirror.knobs = knobs._replace(output_from=len(mirror.ids) if begin is None else begin)

        self.then[-reply.call] = accepted

    def _knobs(self) -> Knobs:
        random = self.random
        knobs = Knobs(random.choice([0.0, 1.0, 4.0]), seed=random.getrandbits(64))
        if random.random() < 0.3:
            knobs = knobs._replace(
                repetition=random.choice([1.0, 1.25, 0.5]), presence=random.choice([0.0, 1.5]),
                frequency=random.choice([0.0, 0.75, -0.5]), top_k=random.choice([0, 7]),
            )  # fmt: skip
        if random.random() < 0.2:
            some = random.sample(range(VOCAB), 3)
            knobs = knobs._replace(bias=tuple((token, random.randint(-8, 80)) for token in some))
        return knobs

    def _score(self, mirror: Mirror) -> None:
        ids = self._ids(30) if self.random.random() < 0.5 else None
        start = self.random.randint(1, max(1, len(mirror.ids)))
        top = self.random.choice([0, 2])
        reply = self.client.send("score", mirror.handle, start, top, ids=ids)
        mirror.infer, mirror.start, mirror.scored = reply, start, 0
        self.then[-reply.call] = lambda: mirror.ids.extend(ids or ())

    def _trim(self, mirror: Mirror, length: int | None = None) -> None:
        if mirror.infer is not None:
            return
        if length is None:
            length = self.random.randint(0, len(mirror.ids))
        reply = self.client.send("trim_ctx", mirror.handle, length)

        def trimmed() -> None:
            del mirror.ids[length:]

        self.then[reply.call] = trimmed

    def _cancel(self, mirror: Mirror) -> None:
        assert mirror.infer is not None
        infer = mirror.infer
        keep = None if self.random.random() < 0.5 else self.random.randint(0, len(infer.tokens))
        if mirror.start is not None:
            keep = None  # a score keeps nothing
        reply = self.client.send("cancel", infer.call, keep)

        def cancelled() -> None:
            if keep is not None:
                surplus = len(infer.tokens) - keep
                del mirror.ids[len(mirror.ids) - surplus :]
            assert reply.result.length == len(mirror.ids)

        self.then[reply.call] = cancelled

    def _read(self, mirror: Mirror) -> None:
        reply = self.client.send("read_ctx", mirror.handle)

        def compare() -> None:
            assert list(reply.ids) == mirror.ids, "the context holds what its client knows"

        self.then[reply.call] = compare

    def _free(self, mirror: Mirror) -> None:
        self.client.send("free_ctx", mirror.handle)
        self.contexts.pop(mirror.handle, None)

    # --- seeing -------------------------------------------------------------------------------

    def see(self, events: list[list[Any]]) -> None:
        """Follow the events in their order."""
        by_call = {m.infer.call: m for m in self.contexts.values() if m.infer is not None}
        for event in events:
            kind, call = event[0], event[1]
            mirror = by_call.get(call)
            if mirror is not None and kind != Event.ERR:
                self._accepted(call)
            if kind == Event.TOKEN and mirror is not None and mirror.start is not None:
                self._scores(mirror, *event[2:5])
            elif kind == Event.TOKEN and mirror is not None:
                self._token(mirror, event[2])
            elif kind == Event.FIN:
                self._finish(call, mirror, event)
            elif kind == Event.ERR and call:
                assert event[2] in self.legal, event
                self.then.pop(call, None)
                self.then.pop(-call, None)
                if mirror is not None:
                    mirror.infer = None

    def settle_accepted(self) -> None:
        """After the turn that took the calls in: an infer without ERR has appended its ids."""
        for mirror in self.contexts.values():
            if mirror.infer is not None and not mirror.infer.done:
                self._accepted(mirror.infer.call)

    def _accepted(self, call: int) -> None:
        then = self.then.pop(-call, None)
        if then is not None:
            then()

    def _token(self, mirror: Mirror, tokens: list[int]) -> None:
        for token in tokens:
            expected = next_id(mirror.ids, mirror.knobs)
            assert token == expected, f"{token} was sampled, the ids say {expected}"
            mirror.ids.append(token)
            self.checked += 1

    def _scores(self, mirror: Mirror, ids: list[int], logprobs: list[float], top: Any) -> None:
        assert mirror.start is not None
        first = mirror.start + mirror.scored
        mirror.scored += len(ids)
        upto = mirror.ids[: mirror.start + mirror.scored]
        assert ids == upto[first:], "scored is what the context holds, in order"
        right = scores(upto, first)
        assert all(abs(a - b) < 1e-3 for a, b in zip(logprobs, right, strict=True)), "wrong scores"
        assert top is None or [len(best) for best in top] == [2] * len(ids)
        self.checked += len(ids)

    def _finish(self, call: int, mirror: Mirror | None, event: list[Any]) -> None:
        then = self.then.pop(call, None)
        if then is not None:
            then()
        if mirror is not None:
            mirror.infer = None
            finish, length = event[2][0], event[2][1]
            if finish != Finish.CANCELLED:
                scored = mirror.start is None or mirror.start + mirror.scored == length
                assert scored, "a score ends with the last id"
                assert length == len(mirror.ids), "FIN names the context's length"


class Crowd:
    """Random clients, deaths, delays and rubbish, all from one seed."""

    def __init__(self, sim: Sim, members: int) -> None:
        self.sim = sim
        self.random = sim.random
        self.members = [Member(sim.client(), Random(sim.random.random())) for _ in range(members)]
        self.calls = 0

    def run(self, calls: int, deaths: float = 0.002, checks: float = 0.01) -> None:
        """Let the crowd make `calls` calls."""
        while self.calls < calls:
            for _ in range(self.random.randint(1, 8)):
                member = self.random.choice(self.members)
                if member.alive and self._reads(member):
                    self.calls += member.act()
            self._trouble(deaths)
            self.turn()
            if self.random.random() < checks:
                self.sim.check()

    def turn(self) -> None:
        """One turn of the kernel, a random amount of driver work, then the clients look."""
        sim = self.sim
        sim.clock.now += 0.001
        sim.kernel_turn()
        for member in self.members:
            member.see(member.client.take())
            if self._reads(member):
                member.settle_accepted()
        note = sim.system.device.note
        refused = "PLAN_INVALID" in note or "SLOT_LOST" in note
        assert not refused, f"the driver refused a plan: {note}"
        if self.random.random() < 0.9:
            sim.link.pump(1)

    def _reads(self, member: Member) -> bool:
        """The client has read everything that the kernel had for it."""
        route = member.client.route
        session = self.sim.system.sessions.get(route)
        return route not in self.sim.front.blocked and not (session and session.outbox)

    def _trouble(self, deaths: float) -> None:
        draw = self.random.random()
        if draw < deaths:
            self.sim.link.die()
        elif draw < 3 * deaths:
            self._replace(self.random.randrange(len(self.members)))
        elif draw < 6 * deaths:
            self._signal(self.random.choice(self.members))
        elif draw < 7 * deaths:
            self.sim.client(hello=False).send_raw([self.random.randbytes(20)])
        elif draw < 9 * deaths:
            self._stall(self.random.choice(self.members))

    def _stall(self, member: Member) -> None:
        """A client stops reading, or reads again."""
        self.sim.front.blocked ^= {member.client.route}

    def _replace(self, index: int) -> None:
        """A program dies by itself or is killed by another; a new one takes its place."""
        member = self.members[index]
        if self.random.random() < 0.5:
            self.sim.front.dead.add(member.client.route)
        else:
            killer = self.sim.client()
            task = self.sim.system.sessions[member.client.route].task
            if task is not None:
                killer.ask("kill", task.pid, int(Sig.KILL))
            killer.ask("exit")
        member.alive = False
        self.members[index] = Member(self.sim.client(), Random(self.random.random()))

    def _signal(self, member: Member) -> None:
        session = self.sim.system.sessions.get(member.client.route)
        if session is None or session.task is None:
            return
        member.stopped = not member.stopped
        helper = self.sim.client()
        helper.ask("kill", session.task.pid, int(Sig.STOP if member.stopped else Sig.CONT))
        helper.ask("exit")

    def leave(self) -> None:
        """Everybody goes: by exit, by death, or by freeing all contexts first."""
        self.sim.front.blocked.clear()
        for member in self.members:
            draw = self.random.random()
            if member.stopped:
                self._signal(member)
            if draw < 0.3:
                self.sim.front.dead.add(member.client.route)
                member.alive = False
            elif draw < 0.6:
                member.client.send("exit")
            else:
                for handle in list(member.contexts):
                    member.client.send("free_ctx", handle)
                member.client.send("exit", flags=int(Flag.QUEUE))
        for _ in range(20):
            self.turn()
        self.sim.settle()
        self.sim.turn()

    def check_ended(self) -> None:
        """Every call of every client that lives ended once (the booking sees to `once`)."""
        for member in self.members:
            if member.alive:
                unfinished = [r.name for r in member.client.calls.values() if not r.done]
                assert not unfinished, unfinished
