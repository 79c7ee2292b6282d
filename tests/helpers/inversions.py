"""Inversions: whether a task with a lower nice value ever waits for one with a higher, under strict
priority. A server stands in the place of the best of those that wait for it, and they for it.

Looked at in every step: an infer that could have run and is not in it is left out for the sake of
those that stand no worse; but one step may go to a worse one that blocks were made free for, before
the better one came. Of those that lack blocks, the first waits for copies, or for the blocks of
worse ones, for as many steps as `longest` counts.
"""

from collections import Counter
from collections.abc import Callable
from random import Random

from kernel.block import NOT_RESIDENT
from kernel.policies.priority import Priority
from tests.helpers.batches import Batch, Batches
from tests.helpers.latency import Budgets, Latency
from tests.helpers.programs import Program, Script
from tests.helpers.scenario import Ground, Scenario
from tests.helpers.scripts import caller, chat, flood, server
from tests.helpers.streams import Stream
from tests.helpers.world import World


class Inversions:
    """The order of the steps of a world, whose policy is strict priority."""

    def __init__(self, world: World, batches: Batches, patience: int) -> None:
        self.world = world
        self.compared = 0  # infers that were left out
        self.inherited = 0  # that stand elsewhere than their own tasks
        self.longest = 0  # steps that one waited for blocks while worse ones ran
        self.patience = patience  # steps in a row that may go to worse ones
        self._behind: Counter[int] = Counter()  # by seed, steps in a row
        self._waits: Counter[int] = Counter()  # likewise, for blocks
        batches.on_sent.append(self._look)

    def _look(self, batch: Batch) -> None:
        nice = self._standings()
        known = [seq for seq in batch.seqs if seq.owned is not None and seq.lives]
        left = [s for s in self.world.streams.values() if self._left_out(s, batch)]
        lacking = [stream for stream in left if self._lacks(stream)]
        first = min(lacking, key=lambda s: (nice[s.owned.program], s.seed), default=None)
        behind, waits = self._behind, self._waits
        self._behind, self._waits = Counter(), Counter()
        for stream in left:
            program = stream.owned.program
            worse = [s for s in known if s.owned and nice[s.owned.program] > nice[program]]
            if stream in lacking:
                if stream is first and worse:
                    self._waits[stream.seed] = waits[stream.seed] + 1
                    self.longest = max(self.longest, self._waits[stream.seed])
                continue
            self.compared += 1
            self.inherited += nice[program] != program.nice
            if worse:
                self._behind[stream.seed] = behind[stream.seed] + 1
            names = [f"{s.owned.program.name} ({nice[s.owned.program]})" for s in worse if s.owned]
            late, told = self._behind[stream.seed], f"{program.name} ({nice[program]})"
            assert late <= self.patience, f"{told} waits for {names}, {late} steps already"

    def _left_out(self, stream: Stream, batch: Batch) -> bool:
        """Whether an infer could have been in a step, if it had blocks, and is not."""
        program = stream.owned.program
        held = program.stopped or program.deaf or not stream.accepted
        inside = any(seq.stream is stream for seq in batch.seqs)
        return not inside and not held and stream.event < batch.event

    def _standings(self) -> dict[Program, int]:
        """Return in what place each program stands: that of the best who waits for it, if any."""
        waiting: dict[Program, list[Program]] = {}
        for program in self.world.by_pid.values():
            for reason in program.waits.values():
                server = self.world.ports.get(reason.removeprefix("port:"))
                if reason.startswith("port:") and server is not None:
                    waiting.setdefault(server, []).append(program)

        def stands(program: Program) -> int:
            callers = waiting.get(program)
            return min(map(stands, callers)) if callers else program.nice

        return {program: stands(program) for program in self.world.by_pid.values()}

    def _lacks(self, stream: Stream) -> bool:
        """Whether an infer needs places on the device, or copies, before it can run."""
        program = stream.owned.program
        task = self.world.work.sim.system.tasks.peek(program.pid)
        ctx = task.contexts.get(stream.owned.handle) if task else None
        return ctx is None or any(b.id == NOT_RESIDENT or b.moving for b in ctx.blocks)


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
