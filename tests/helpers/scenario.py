"""Scenario: a mix of programs on a simulated kernel, drawn from a seed, each moment looked at.

    python -m tests.helpers.scenario SEED [SEED ...]

runs some again, and tells what each has seen. The scripts are below: chats, agents with tools,
floods, trees of forks; besides, an operator stops, lets go on, kills and deafens whom it likes.
"""

import sys
from collections import Counter
from collections.abc import Callable
from math import inf
from random import Random
from typing import NamedTuple

from kernel.panic import KernelPanic
from kernel.policies.fair import Fair
from kernel.policies.fifo import Fifo
from kernel.policies.priority import Priority
from kernel.policy import Policy
from syscalls.abi import Sig
from tests.helpers.batches import Batches
from tests.helpers.clockwork import Clockwork
from tests.helpers.inversions import Inversions
from tests.helpers.latency import Budgets, Latency, TimedLink
from tests.helpers.programs import Owned, Program, Script, World
from tests.helpers.sim import Clock, Reply, Sim
from tests.helpers.truth import Truth

VOCAB = 4096
PATIENCE_S = 2.0
"""Without a part of a step, under a policy that lets nobody starve."""
CHECKS = 24
"""Events between two looks at everything that Sim.check looks at."""


class Ground(NamedTuple):
    """What a scenario runs on."""

    num_blocks: int = 256
    prefill_chunk: int = 32
    target_us: int = 0
    latency: Latency = Latency(3000.0, 120.0, 400.0, 0.05, 0.05, 1000.0)
    budgets: Budgets = Budgets(128, 16)
    host_blocks: int = 0

    @classmethod
    def of(cls, random: Random) -> "Ground":
        """Return that of a seed."""
        return cls(
            random.choice([24, 48, 128, 512]), random.choice([16, 32, 64]),
            random.choice([0, 0, 10_000, 30_000]), host_blocks=random.choice([0, 64]),
            budgets=Budgets(random.choice([32, 64, 256]), random.choice([2, 4, 8, 32])),
        )  # fmt: skip


class Scenario:
    """A kernel, its clockwork, its programs, and what is true of them."""

    def __init__(self, seed: int, ground: Ground, policy: Policy | None = None) -> None:
        self.random = Random(seed)
        host_bytes = ground.host_blocks * 16 * 8
        link = TimedLink(Clock(), ground.latency, ground.budgets, host_bytes)
        self.sim = Sim(
            seed, f"null:vocab={VOCAB}", link, policy=policy, clock=link.clock,
            num_blocks=ground.num_blocks, prefill_chunk=ground.prefill_chunk,
            target_us=ground.target_us, stalled_messages=4, host_bytes=host_bytes,
            max_sessions=20_000, max_tasks=20_000,
        )  # fmt: skip
        self.ground = ground
        self.work = Clockwork(self.sim, link)
        self.world = World(self.work, seed, VOCAB)
        self.batches = Batches(self.world)
        room = min(ground.prefill_chunk, 16) if ground.target_us else ground.prefill_chunk
        self.truth = Truth(self.world, self.batches, ground.budgets, room)
        self.patience_s = PATIENCE_S if isinstance(policy, Fair) else inf
        self.longest_s = 0.0  # that a task has waited for its part of a step
        self.work.watchers += [self.truth.look, self._check_waits, self._check]

    def _check_waits(self) -> None:
        """No task that could run goes without, while others are served."""
        served: dict[Program, float] = {}
        for stream in self.world.streams.values():
            program = stream.owned.program
            if stream.accepted and not (program.stopped or program.deaf):
                served[program] = max(served.get(program, 0.0), stream.served)
        for program, since in served.items():
            waited = self.work.now - since
            assert waited <= self.patience_s, f"{program.name} got nothing for {waited:.3f} s"
            self.longest_s = max(self.longest_s, waited)

    def _check(self) -> None:
        if self.work.events % max(CHECKS, len(self.world.by_pid)) == 0:
            self.sim.check()
            self.truth.check_shares()

    def leave(self) -> None:
        """Everybody goes; nothing may be left."""
        self.work.link.latency = Latency()
        self.sim.leave()


# --- scripts ------------------------------------------------------------------------------------


def chat(program: Program) -> Script:
    """A person: a question, an answer, a thought, and again."""
    random = program.random
    yield program.hello()
    while True:
        owned = program.alloc()
        for _ in range(random.randint(1, 4)):
            yield program.infer(owned, random.randint(2, 12), program.ids(random.randint(2, 40)))
            yield random.uniform(0.1, 2.0)
        yield program.free(owned)


def agent(program: Program) -> Script:
    """A prompt that it shares with others, then turns, with a tool between each two."""
    random, world = program.random, program.world
    shared = Random(world.random.randrange(2)).choices(range(VOCAB), k=random.choice([32, 56]))
    yield program.hello()
    while True:
        owned = program.alloc()
        yield program.append(owned, shared)
        for _ in range(random.randint(1, 6)):
            yield program.infer(owned, random.randint(2, 8), program.ids(random.randint(2, 30)))
            yield tool_wait(random)
        yield program.free(owned)


def tool_wait(random: Random) -> float:
    """Return how long a tool takes: mostly moments, sometimes long."""
    draw = random.random()
    if draw < 0.86:
        return random.uniform(0.05, 1.0)
    return random.uniform(1.0, 10.0) if draw < 0.95 else random.uniform(10.0, 30.0)


def flood(program: Program) -> Script:
    """Never without work: several infers at any time, as long as they may be."""
    random = program.random
    yield program.hello()
    open_: list[tuple[Owned, Reply]] = []
    while True:
        while len(open_) < 6:
            owned = program.alloc()
            prompt = program.ids(random.randint(20, 120))
            open_.append((owned, program.infer(owned, random.randint(4, 30), prompt)))
        yield open_[0][1]
        ended = [each for each in open_ if each[1].done]
        for owned, _ in ended:
            program.free(owned)
        open_ = [each for each in open_ if not each[1].done]
        if any(reply.errno for _, reply in ended):
            yield 0.1


def tree(program: Program) -> Script:
    """Forks of one prompt that answer side by side, then all of them go."""
    random = program.random
    yield program.hello()
    while True:
        root = program.alloc()
        yield program.append(root, program.ids(random.randint(10, 100)))
        yield random.uniform(0.0, 0.05)
        children = [program.fork(root) for _ in range(random.randint(1, 5))]
        answers = [program.infer(child, random.randint(2, 10)) for child in children]
        yield from answers
        for child in (root, *children):
            yield program.free(child)
        yield random.uniform(0.0, 0.5)


def server(program: Program) -> Script:
    """Does what others ask of its port, sometimes by asking a model, sometimes another server."""
    random, port = program.random, program.random.choice(PORTS)
    yield program.hello()
    yield program.bind(port)
    owned = program.alloc()
    while port in program.ports:
        message = program.recv(port)
        yield message
        if message.errno:
            return
        draw = random.random()
        if draw < 0.5:
            yield program.infer(owned, random.randint(1, 6), program.ids(random.randint(1, 20)))
        elif draw < 0.7:
            yield program.ask(random.choice(PORTS))  # EDEADLK if that one waits for this one
        else:
            yield random.uniform(0.0, 0.3)
        yield program.call("reply", message.result.message, b"here")


def caller(program: Program) -> Script:
    """Asks the model, asks a server, and again."""
    random = program.random
    yield program.hello()
    owned = program.alloc()
    while True:
        answer = program.infer(owned, random.randint(1, 8), program.ids(random.randint(1, 30)))
        yield answer
        if answer.errno:
            yield program.free(owned)
            owned = program.alloc()
        yield program.ask(random.choice(PORTS), random.choice([None, 0.2]))
        yield random.uniform(0.0, 0.1)


PORTS = "left", "right"
SCRIPTS: tuple[Callable[[Program], Script], ...] = (
    chat, agent, flood, tree, server, server, caller, caller,
)  # fmt: skip


# --- the operator -------------------------------------------------------------------------------


class Operator:
    """Does to programs what others may do to them."""

    def __init__(self, scenario: Scenario, pause_s: float) -> None:
        self.scenario = scenario
        self.world = scenario.world
        self.random = Random(scenario.random.random())
        self.pause_s = pause_s
        self.program = self.world.start(self._script, "operator")

    def _script(self, program: Program) -> Script:
        yield program.hello()
        while True:
            yield self.random.uniform(0.0, 2 * self.pause_s)
            others = [p for p in self.world.by_pid.values() if p is not program]
            if others:
                reply = self._act(self.random.choice(others))
                if reply is not None:
                    yield reply

    def _act(self, other: Program) -> Reply | None:
        draw = self.random.random()
        if draw < 0.6:
            return self._stop(other)
        if draw < 0.8:
            self._deafen(other)
            return None
        new = self.world.start(self.random.choice(SCRIPTS), "late", self.random.random())
        new.client.uid = other.client.uid
        if draw < 0.9:
            self._hear(other)
            other.die()
            return None
        return self.program.call("kill", other.pid, int(Sig.KILL), then=lambda _: other.end())

    def _stop(self, other: Program) -> Reply:
        """Stop it, or let it go on."""
        signal = Sig.CONT if other.stopped else Sig.STOP

        def done(reply: Reply) -> None:
            other.stopped = signal is Sig.STOP
            other.may_run()

        return self.program.call("kill", other.pid, int(signal), then=done)

    def _deafen(self, other: Program) -> None:
        """It stops reading, or reads again."""
        if other.deaf:
            self._hear(other)
        else:
            self.world.work.sim.front.blocked.add(other.client.route)

    def _hear(self, other: Program) -> None:
        self.world.work.sim.front.blocked.discard(other.client.route)
        other.may_run()


def ranked(seed: int, num_blocks: int = 4096) -> tuple[Scenario, Inversions]:
    """Return a scenario under strict priority, of callers and servers of different nice values."""
    random = Random(seed)
    budgets = Budgets(random.choice([32, 64]), random.choice([2, 4]))
    ground = Ground(num_blocks, budgets.max_tokens, 0, Latency(3000.0, 120.0, 400.0), budgets)
    scenario = Scenario(seed, ground, Priority())
    scripts = [server, server, caller, caller, caller, caller, flood, flood, chat]
    for number, script in enumerate(scripts):
        nice = random.choice([-10, -5, 0, 5, 10])
        scenario.world.start(reniced(script, nice), f"{script.__name__}{number}", random.random())
    patience = 0 if num_blocks >= 4096 else 1
    return scenario, Inversions(scenario.world, scenario.batches, patience)


def reniced(script: Callable[[Program], Script], nice: int) -> Callable[[Program], Script]:
    """Return a script whose task has a nice value."""

    def first(program: Program) -> Script:
        for number, wanted in enumerate(script(program)):
            yield wanted
            if number == 0:  # it has said hello
                program.nice = nice
                yield program.call("renice", 0, nice)

    return first


# --- thousands ----------------------------------------------------------------------------------


def now_and_then(program: Program) -> Script:
    """One of thousands: short turns with long waits between them."""
    random = program.random
    yield program.hello()
    owned = program.alloc()
    yield program.append(owned, program.ids(4))
    while True:
        yield round(random.uniform(0.0, 4.0), 2)
        yield program.infer(owned, random.randint(1, 4), program.ids(random.randint(1, 12)))


def thousands(seed: int, count: int, policy: Policy | None = None) -> Scenario:
    """Return a scenario of many tasks, of which few run at a time; they come hundreds at once."""
    budgets = Budgets(512, 128)
    ground = Ground(4 * count, 128, 30_000, Latency(3000.0, 50.0, 100.0, 0.01), budgets)
    scenario = Scenario(seed, ground, policy)
    scenario.world.grain_s = 0.01
    for number in range(count):
        scenario.world.start(now_and_then, f"one{number}", number // 500 * 0.001)
    return scenario


# --- running ------------------------------------------------------------------------------------


def mix(seed: int, policy: Policy | None = None) -> Scenario:
    """Return a scenario of a seed, not begun."""
    random = Random(seed)
    ground, drawn = Ground.of(random), random.choice([Fair, Fair, Fifo, Priority])()
    scenario = Scenario(seed, ground, policy or drawn)
    for number in range(random.randint(2, 12)):
        script = random.choice(SCRIPTS)
        scenario.world.start(script, f"{script.__name__}{number}", random.random())
    Operator(scenario, random.choice([0.2, 1.0, 5.0]))
    return scenario


def play(seed: int, events: int, policy: Policy | None = None) -> Scenario:
    """Run the scenario of a seed; what is wrong is told with how to see it again."""
    scenario = None
    try:
        scenario = mix(seed, policy)
        scenario.work.run(events=events)
        scenario.leave()
    except (AssertionError, KernelPanic, LookupError, ValueError) as error:
        work = scenario.work if scenario else None
        when = f"event {work.events}, {work.now:.6f} s" if work else "its boot"
        ground = scenario.ground if scenario else ""
        raise AssertionError(
            f"seed {seed}, {when}: {error!r}; {ground}; again with: "
            f"python -m tests.helpers.scenario {seed}"
        ) from error
    return scenario


EVENTS = 160
"""Of a scenario, if nothing else is said: a few seconds of its clock."""


def main() -> None:
    """Entry point."""
    for seed in map(int, sys.argv[1:]):
        try:
            scenario = play(seed, EVENTS)
        except AssertionError as error:
            print(error)
            continue
        seen: Counter[str] = scenario.truth.seen
        steps, longest = scenario.batches.steps, round(scenario.longest_s, 3)
        print(f"{seed}: {steps} steps, {longest} s the longest wait, {dict(seen)}")


if __name__ == "__main__":
    main()
