"""Random programs that serve, call, publish and subscribe, and go in every way a program can.

Each message has a body of its own, so it is seen if one is taken twice, answered twice, or lost:
a call ends well if and only if a reply to its body was accepted.
"""

from itertools import count
from random import Random
from typing import Any

from kernel.loopback import LoopbackLink
from kernel.task import TaskState
from syscalls.abi import Sig
from syscalls.errors import Errno
from tests.helpers.mailing import check_mail
from tests.helpers.sim import Reply, Sim, SimClient

PORTS, TOPICS = ("p0", "p1", "p2", "p3"), ("t0", "t1")
LEGAL = {
    "bind": {Errno.EEXIST, Errno.ENOENT, Errno.ECANCELED},
    "call": {
        Errno.ENOENT, Errno.EAGAIN, Errno.EDEADLK, Errno.EINVAL, Errno.ETIMEDOUT, Errno.EPIPE,
        Errno.ECANCELED,
    },
    "recv": {Errno.ENOENT, Errno.ETIMEDOUT, Errno.EPIPE, Errno.ECANCELED},
    "reply": {Errno.ESRCH, Errno.ECANCELED},
    "publish": {Errno.EAGAIN, Errno.E2BIG, Errno.ENOMEM, Errno.ECANCELED},
    "subscribe": {Errno.EEXIST, Errno.ENOENT, Errno.EBADCTX, Errno.ECANCELED},
}  # fmt: skip
MAX_PROGRAMS = 7


class Program:
    """One client, and what it has taken."""

    def __init__(self, client: SimClient) -> None:
        self.client = client
        self.taken: dict[int, bytes] = {}
        self.seen = 0
        self.contexts: list[int] = []
        self.reasons: dict[int, str] = {}  # what ps is to say while a call is open


class Post:
    """A kernel with random programs."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        link = LoopbackLink("null0", host_bytes=1 << 16, beside=Random(seed))
        self.sim = Sim(seed, num_blocks=32, host_bytes=1 << 16, max_ctx=200, link=link)
        self.programs: list[Program] = []
        self.bodies = count()
        self.sent: dict[bytes, Reply] = {}  # calls by body
        self.taken: set[bytes] = set()
        self.tried: set[bytes] = set()  # bodies to which a reply was sent
        self.answered: set[bytes] = set()  # and accepted, as far as its server lived to hear
        self.replies: dict[int, tuple[Reply, bytes]] = {}
        self.news: dict[bytes, list[int]] = {}  # by body: who has got it
        self.ends: dict[str, int] = {}

    def run(self, events: int) -> None:
        """Let programs do `events` random things, checking after each turn."""
        for _ in range(events):
            self.act()
            if self.random.random() < 0.7:
                self.turn()
        for program in self.programs:
            task = self.sim.system.sessions[program.client.route].task
            if task is not None:
                self.programs[0].client.send("kill", task.pid, int(Sig.CONT))
        self.turn()
        self.sim.clock.now += 100.0  # all deadlines
        self.turn()
        self.sim.leave()
        for program in self.programs:
            for reply in program.client.calls.values():
                if not reply.done:
                    assert reply.name in ("call", "recv", "infer"), reply

    def turn(self) -> None:
        """One turn, and what must hold after it."""
        self.sim.turn()
        check_mail(self.sim)
        self.sim.check()
        for program in self.programs:
            self._read(program)
            self._check_ps(program)
        for reply, body in list(self.replies.values()):
            if reply.done:
                del self.replies[id(reply)]
                if reply.errno == 0:
                    assert body not in self.answered, "answered twice"
                    self.answered.add(body)
        for body, call in self.sent.items():
            if call.done and call.errno == 0:
                assert call.result.body == body[::-1] and body in self.tried
            elif call.done:
                assert body not in self.answered, f"{body!r} was answered, and {call.message}"

    def _check_ps(self, program: Program) -> None:
        """Compare what ps says with what the program knows that it waits for."""
        session = self.sim.system.sessions.get(program.client.route)
        task = session.task if session is not None else None
        if task is None:
            return
        state, wait = task.letter()
        if task.state is TaskState.STOPPED or state != "S":
            assert state == "T" or any(ctx.request for ctx in task.contexts.values())
            return
        calls = program.client.calls
        waits = [why for call, why in program.reasons.items() if not calls[call].done]
        first = [why for why in waits if why.startswith("port:")] or waits or ["program"]
        assert wait in first, f"{wait}, and it waits for {waits}"

    def _read(self, program: Program) -> None:
        calls = program.client.calls
        for reply in list(calls.values())[program.seen :]:
            if not reply.done:
                continue
            if reply.errno and reply.name in LEGAL:
                assert Errno(reply.errno) in LEGAL[reply.name], (reply.name, reply.message)
        for number in list(calls):
            reply = calls[number]
            if not reply.done or getattr(reply, "read", False):
                continue
            reply.read = True  # type: ignore[attr-defined]
            key = f"{reply.name} {Errno(reply.errno).name if reply.errno else 'ok'}"
            self.ends[key] = self.ends.get(key, 0) + 1
            if reply.name == "recv" and reply.errno == 0:
                self._took(program, reply)

    def _took(self, program: Program, reply: Reply) -> None:
        row = reply.result
        if row.message:
            assert row.body not in self.taken, "a message is taken once"
            self.taken.add(row.body)
            program.taken[row.message] = row.body
        else:
            readers = self.news[row.body]
            assert id(program) not in readers, "a subscriber gets it once"
            readers.append(id(program))

    # --- acting -------------------------------------------------------------------------------

    def act(self) -> None:
        """Let one program do something."""
        random = self.random
        if not self.programs or (len(self.programs) < MAX_PROGRAMS and random.random() < 0.3):
            self.programs.append(Program(self.sim.client()))
        program = random.choice(self.programs)
        act: Any = random.choices(
            (
                self._bind, self._call, self._recv, self._reply, self._cancel, self._signal,
                self._go, self._publish, self._subscribe, self._feed, self._infer, self._wait,
                self._stand,
            ),
            (6, 20, 20, 14, 4, 6, 2, 8, 5, 2, 6, 2, 4),
        )[0]  # fmt: skip
        act(program)

    def _timeout(self) -> float | None:
        return self.random.choice((None, 0.0, 0.003, 5.0))

    def _bind(self, program: Program) -> None:
        depth = self.random.choice((0, 1, 3, 64))
        program.client.send("bind", self.random.choice(PORTS), depth)

    def _call(self, program: Program) -> None:
        body = b"body %d" % next(self.bodies)
        bound = [port.name for port in self.sim.system.ports]
        port = self.random.choice(bound if bound and self.random.random() < 0.8 else PORTS)
        call = self.sent[body] = program.client.send("call", port, body, self._timeout())
        program.reasons[call.call] = f"port:{port}"

    def _recv(self, program: Program) -> None:
        task = self.sim.system.sessions[program.client.route].task
        mail = None if task is None else task.mail
        if self.random.random() < 0.7:
            own = PORTS if mail is None or self.random.random() < 0.1 else (*mail.ports,) or PORTS
            name = self.random.choice(own)
            recv = program.client.send("recv", name, None, self._timeout())
            program.reasons[recv.call] = f"recv:{name}"
        else:
            own = TOPICS if mail is None else (*mail.subscriptions,) or TOPICS
            name = self.random.choice(own)
            recv = program.client.send("recv", None, name, self._timeout())
            program.reasons[recv.call] = f"topic:{name}"

    def _reply(self, program: Program) -> None:
        if not program.taken:
            return
        number = self.random.choice(list(program.taken))
        body = program.taken[number]
        if self.random.random() < 0.9:
            del program.taken[number]
        reply = program.client.send("reply", number, body[::-1])
        self.tried.add(body)
        self.replies[id(reply)] = reply, body

    def _cancel(self, program: Program) -> None:
        open_calls = [call for call, reply in program.client.calls.items() if not reply.done]
        if open_calls:
            program.client.send("cancel", self.random.choice(open_calls))

    def _signal(self, program: Program) -> None:
        other = self.sim.system.sessions[self.random.choice(self.programs).client.route].task
        if other is not None:
            signal = self.random.choice((Sig.INT, Sig.STOP, Sig.CONT, Sig.CONT))
            program.client.send("kill", other.pid, int(signal))

    def _go(self, program: Program) -> None:
        client, draw = program.client, self.random.random()
        task = self.sim.system.sessions[client.route].task
        if draw < 0.4 and task is not None and len(self.programs) > 1:
            by = next(other for other in self.programs if other is not program)
            by.client.send("kill", task.pid, int(Sig.KILL))
        elif draw < 0.6:
            client.send("exit", 0)
        else:
            self.sim.front.dead.add(client.route)
        self.turn()
        self.sim.front.dead.add(client.route)
        self.turn()
        self.programs.remove(program)

    def _publish(self, program: Program) -> None:
        body = b"news %d" % next(self.bodies)
        self.news[body] = []
        ids = [self.random.randrange(251) for _ in range(self.random.choice((1, 5, 20)))]
        ids = ids if self.random.random() < 0.5 else None  # type: ignore[assignment]
        program.client.send("publish", self.random.choice(TOPICS), body, ids=ids)

    def _subscribe(self, program: Program) -> None:
        depth, full = self.random.choice((0, 1, 2, 8)), self.random.choice(("refuse", "drop"))
        program.client.send("subscribe", self.random.choice(TOPICS), depth, full)

    def _feed(self, program: Program) -> None:
        if not program.contexts:
            program.contexts.append(program.client.context([1, 2, 3]))
        handle = self.random.choice(program.contexts)
        window = self.random.choice((0, 30, 30))
        topic = self.random.choice(TOPICS)
        program.client.send("subscribe", topic, window, "refuse", handle)

    def _infer(self, program: Program) -> None:
        if len(program.contexts) < 3:
            program.contexts.append(program.client.context([4, 5]))
        handle = self.random.choice(program.contexts)
        program.client.send("infer", handle, self.random.randint(1, 20), 0.0)

    def _stand(self, program: Program) -> None:
        other = self.sim.system.sessions[self.random.choice(self.programs).client.route].task
        if other is None:
            return
        draw = self.random.random()
        if draw < 0.3:
            program.client.send("renice", 0, self.random.randint(-20, 19), "a")
        elif draw < 0.6:
            program.client.send("renice", other.pid, self.random.randint(-20, 19))
        else:
            program.client.send("group", other.pid, self.random.choice(("a", "b", None)))

    def _wait(self, program: Program) -> None:
        self.sim.clock.now += self.random.choice((0.01, 6.0))
