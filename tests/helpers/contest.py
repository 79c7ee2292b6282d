"""Contest: tasks that never lack requests, of two users, on a kernel that has room for few of them.

    python -m tests.helpers.contest SEED [SEED ...]

plays some under each policy, and tells how far the service of any two moved apart, as a part of the
bound (tests/helpers/service.py).
"""

import sys
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from kernel.policies.fair import Fair
from kernel.policies.fifo import Fifo
from kernel.policy import Policy
from tests.helpers.latency import Budgets, Latency
from tests.helpers.programs import Program, Script
from tests.helpers.scenario import Ground, Scenario
from tests.helpers.service import Service
from tests.helpers.sim import UID, Reply
from tests.helpers.streams import Owned

EVENTS = 400


class Load(NamedTuple):
    """What a task asks for, again and again."""

    depth: int  # infers at a time
    prompt: tuple[int, int]
    output: tuple[int, int]

    @classmethod
    def of(cls, random: Random) -> "Load":
        """Return that of a seed: some write much, some read much, some ask for a lot at a time."""
        prompt, output = random.choice(
            [((2, 20), (2, 12)), ((60, 200), (1, 3)), ((2, 6), (20, 60)), ((20, 80), (5, 30))]
        )
        return cls(random.choice([4, 8, 24]), prompt, output)


def asks(load: Load, nice: int = 0) -> Callable[[Program], Script]:
    """Return the script of a task that has `depth` infers at any time."""

    def script(program: Program) -> Script:
        random = program.random
        yield program.hello()
        program.nice = program.work.sim.system.tasks.find(program.pid).account.nice = nice
        open_: list[tuple[Owned, Reply]] = []
        while True:
            while len(open_) < load.depth:
                owned = program.alloc()
                prompt = program.ids(random.randint(*load.prompt))
                open_.append((owned, program.infer(owned, random.randint(*load.output), prompt)))
            yield next(reply for _, reply in open_ if not reply.done)
            for owned, reply in open_:
                if reply.done:
                    program.free(owned)
            open_ = [each for each in open_ if not each[1].done]

    return script


class Contest(Scenario):
    """A scenario of such tasks, and what each gets."""

    def __init__(self, seed: int, policy: Policy) -> None:
        random = Random(seed)
        budgets = Budgets(random.choice([32, 64, 128]), random.choice([2, 4, 8]))
        latency = Latency(3000.0, 120.0, 400.0, 0.05)
        ground = Ground(8192, budgets.max_tokens, 0, latency, budgets)
        super().__init__(seed, ground, policy)
        self.service = Service(self.world, self.batches, ground.budgets)
        for number in range(random.randint(2, 6)):
            uid = UID if number == 0 else random.choice([UID, 0])
            load = Load.of(random)
            name = f"asks{load.depth}-{load.prompt[1]}-{load.output[1]}"
            nice = random.choice([0, 0, 0, -5, 5, 10])
            self.world.start(asks(load, nice), name, random.random() * 0.05, uid)


def play(seed: int, policy: Policy, events: int = EVENTS) -> Contest:
    """Play a contest to its end."""
    contest = Contest(seed, policy)
    contest.work.run(events=events)
    return contest


def main() -> None:
    """Entry point."""
    for seed in map(int, sys.argv[1:]):
        for policy in (Fair(), Fifo()):
            contest = play(seed, policy)
            service = contest.service
            got = {p.name: service.got["pid", p.pid] for p in contest.world.programs}
            print(
                seed, type(policy).__name__, f"{service.excess:.3f}", *contest.ground.budgets, got
            )


if __name__ == "__main__":
    main()
