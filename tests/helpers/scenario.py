"""Scenario: a mix of programs on a simulated kernel, drawn from a seed, each moment looked at.

    python -m tests.helpers.scenario [--events N] SEED [SEED ...]

runs some again, and tells what each has seen. tests/helpers/scripts.py has the programs: chats,
agents with tools, floods, trees of forks, servers, teams of tasks that make others; besides, an
operator stops, lets go on, kills, deafens and groups whom it likes (tests/helpers/operators.py).
In some, tasks and groups have limits (tests/helpers/limited.py); in some, the driver dies now and
then (tests/helpers/deaths.py).
"""

import argparse
from collections import Counter
from math import inf
from random import Random
from typing import NamedTuple

from kernel.panic import KernelPanic
from kernel.policies.fair import Fair
from kernel.policies.fifo import Fifo
from kernel.policies.priority import Priority
from kernel.policy import Policy
from tests.helpers.batches import Batches
from tests.helpers.clockwork import Clockwork
from tests.helpers.deaths import Deaths, Ids
from tests.helpers.latency import Budgets, Latency, TimedLink
from tests.helpers.limited import Limited
from tests.helpers.operators import Operator, warden
from tests.helpers.programs import Program
from tests.helpers.scripts import SCRIPTS, now_and_then
from tests.helpers.sim import Clock, Sim
from tests.helpers.truth import Truth
from tests.helpers.world import World

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
            random.choice([16, 24, 32, 512]), random.choice([16, 32, 64]),
            random.choice([0, 0, 10_000, 30_000]), host_blocks=random.choice([0, 64, 64]),
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
        self.limited: Limited | None = None
        self.deaths: Deaths | None = None
        self.ids = Ids(self.world)
        self.longest_s = 0.0  # that a task has waited for its part of a step
        self.work.watchers += [self.truth.look, self._check_waits, self._check]

    def limit(self, pause_s: float) -> None:
        """Let somebody set limits, about as often as that."""
        self.limited = limited = Limited(self.world, self.batches)
        self.world.start(warden(limited, pause_s), "warden")
        self.work.watchers.insert(0, limited.settle)
        self.work.watchers.append(limited.look)

    def endanger(self, random: Random, pause_s: float) -> None:
        """Let the driver die, about as often as that."""
        link, load_us = self.work.link, random.choice([1e3, 5e4, 2e5])
        link.latency = link.latency._replace(load_us=load_us)
        self.deaths = Deaths(self.world, self.batches, random, pause_s)
        self.work.watchers.insert(0, self.deaths.look)

    def _check_waits(self) -> None:
        """No task that could run goes without, while others are served."""
        served: dict[Program, float] = {}
        for stream in self.world.streams.values():
            program = stream.owned.program
            if stream.accepted and not (program.stopped or program.deaf):
                served[program] = max(served.get(program, 0.0), stream.served)
        for program, since in served.items():
            waited = self.work.now - since
            if self.deaths is not None:
                waited -= self.deaths.away(since)
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


# --- thousands ----------------------------------------------------------------------------------


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
    Operator(scenario.world, Random(random.random()), random.choice([0.2, 1.0, 5.0]))
    if random.random() < 0.5:
        scenario.limit(random.choice([0.05, 0.2]))
    if random.random() < 0.3:
        scenario.endanger(Random(random.random()), random.choice([0.1, 0.5]))
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
            f"python -m tests.helpers.scenario --events {events} {seed}"
        ) from error
    return scenario


EVENTS = 160
"""Of a scenario, if nothing else is said: a few seconds of its clock."""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.scenario")
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("seeds", type=int, nargs="+")
    given = parser.parse_args()
    for seed in given.seeds:
        try:
            scenario = play(seed, given.events)
        except AssertionError as error:
            print(error)
            continue
        seen: Counter[str] = scenario.truth.seen
        steps, longest = scenario.batches.steps, round(scenario.longest_s, 3)
        print(f"{seed}: {steps} steps, {longest} s the longest wait, {dict(seen)}")


if __name__ == "__main__":
    main()
