"""Truth: what ps must say of every task, worked out from what programs know and the driver has got.

    R, P    a step that the driver has not ended has a sequence of it: of one position and its
            sample, or of others (tests/helpers/batches.py)
    D       it has an infer in no such step, and its table names blocks with no place on the device
    Q       it has an infer in no such step, and that came after the step was sent or did not fit
            into it, or there is no driver; else never while the device has no step at all
    T       somebody has stopped it and nobody let it go on
    S       none of these; port, recv: a call of it waits there; client: it does not read

Calls between tasks wait for each other in no circle.

Tokens and contexts are counted from the ends of calls, blocks from all tables as 1/n each. Kernel
objects are asked for their block tables only, never for a state.
"""

from collections import Counter
from math import inf, isclose

from kernel.block import NOT_RESIDENT, Move
from kernel.context import Context
from kernel.device import DeviceState
from kernel.sys_task import task_row
from kernel.task import INIT, Task
from syscalls.abi import TaskRow
from tests.helpers.batches import Batches
from tests.helpers.forest import Tree
from tests.helpers.latency import Budgets
from tests.helpers.programs import Program
from tests.helpers.sim import at_once
from tests.helpers.streams import Owned, Stream
from tests.helpers.world import World

MANY = 64
"""Tasks that are looked at after an event."""
COMING = Move.IN, Move.UP
ZOMBIE_S = 59.0
"""After which one may go that nobody has waited for."""


class Truth:
    """What is true of the tasks of a world, and whether ps says it."""

    def __init__(self, world: World, batches: Batches, budgets: Budgets, room: int) -> None:
        self.world = world
        self.sim = world.work.sim
        self.batches = batches
        self.compared = 0
        self.seen: Counter[str] = Counter()  # states, to know what was compared
        self._turn = 0
        self._max_tokens, self._max_seqs = budgets
        self._room = room  # positions of prefill that a step has room for, at least

    def look(self) -> None:
        """Compare ps with what is true, after an event."""
        self.world.settle()
        self.batches.identify()
        seqs = [seq for batch in self.batches.flying for seq in batch.seqs]
        flying = {seq.owned for seq in seqs if seq.owned is not None and seq.lives}
        loose = self.world.loose
        strangers = any(
            seq.owned is None or (seq.stream is None and loose(seq.owned)) for seq in seqs
        )
        tasks = self.sim.system.tasks
        for program in self._some():
            task = tasks.peek(program.pid)
            assert task is not None, f"{program.name} lives, and ps has no task {program.pid}"
            row = at_once(task_row(self.sim.system, task))
            self._compare(program, task, row, flying, strangers)
            self.compared += 1
        self._check_circles()
        if not len(tasks) - 1 == len(self.world.forest.tasks) == len(self.world.by_pid):
            known = {INIT, *self.world.forest.tasks}
            left = [task.pid for task in tasks if task.pid not in known and self._unknown(task)]
            assert not left, f"ps has tasks {left}, of programs that have gone"
            for tree in self.world.forest.tasks.values():
                if tree.pid not in self.world.by_pid:
                    self._look_at(tree)

    def _some(self) -> list[Program]:
        """Return the programs to look at: all, or if there are many, the next of those that have
        infers and a few others."""
        programs = self.world.by_pid
        if len(programs) <= MANY:
            return list(programs.values())
        busy = list({stream.owned.program: None for stream in self.world.streams.values()})
        some = [
            group[(self._turn + i) % len(group)]
            for group, count in ((busy, MANY), (list(programs.values()), MANY // 8)) if group
            for i in range(min(count, len(group)))
        ]  # fmt: skip
        self._turn += MANY
        return [program for program in dict.fromkeys(some) if program.pid in programs]

    def _check_circles(self) -> None:
        """Who waits for a reply waits for a server, which may wait for another one, and so on."""
        for program in self.world.by_pid.values():
            seen = {program}
            while program.waits:
                reason = next(iter(program.waits.values()))
                server = self.world.ports.get(reason.removeprefix("port:"))
                if server is None or server is program:
                    break  # it receives itself, or the server has gone and it will hear of that
                assert server not in seen, f"{server.name} waits for itself"
                seen.add(server)
                program = server

    def _look_at(self, tree: Tree) -> None:
        """Look at a task whose program has not come yet, or that its parent has not waited for."""
        task = self.sim.system.tasks.peek(tree.pid)
        parent = self.world.by_pid.get(tree.parent)
        if task is None:
            late = self.world.ended_at.get(tree.pid, inf) < self.world.work.now - ZOMBIE_S
            waited = parent is not None and parent.deaf  # it does not know that it has it
            assert not tree.lives and (late or waited), f"ps has no task {tree.pid}"
            return
        row = at_once(task_row(self.sim.system, task))
        shown, right = (row.state, row.wait), ("S", "program") if tree.lives else ("Z", "parent")
        assert shown == right, f"pid {row.pid} ({row.name}), ps has {shown}, it is {right}"
        assert row.parent == tree.parent, f"pid {row.pid}: parent {row.parent}, not {tree.parent}"
        self.seen[f"{row.state} {row.wait} {tree.state}"] += 1

    def _unknown(self, task: Task) -> bool:
        """Whether nobody knows of a task; a program that is deaf knows less."""
        session = task.session
        return session is None or session.route not in self.sim.front.blocked

    def _compare(self, program: Program, task: Task, row: TaskRow, flying: set[Owned],
                 strangers: bool) -> None:  # fmt: skip
        where = f"pid {row.pid} ({row.name}), ps has {row.state} {row.wait!r}"
        self.seen[f"{row.state} {row.wait.split()[-1] if row.wait else ''}".strip()] += 1
        if not program.deaf:
            tokens = sum(len(owned.ids) for owned in program.contexts.values())
            counts = len(program.contexts), tokens, program.prompt_tokens, program.output_tokens
            said = row.contexts, row.tokens, row.prompt_tokens, row.output_tokens
            assert said == counts, f"{where}: contexts, ids, in, out are {counts}, not {said}"
        place = program.tree.parent, self.world.forest.group_of(program.tree)
        assert (row.parent, row.group) == place, f"{where}: parent and group are {place}"
        states = self._states(program, task, row, flying, strangers)
        assert (row.state, row.wait) in states, f"{where}, it is one of {states}"
        open_ = [stream for stream in program.streams.values() if stream.accepted]
        lacks = sum(self._lacks(task, stream) for stream in open_)
        known = row.lacks <= lacks or program.deaf  # it may have infers that it does not know of
        assert known and row.lacks >= 0, f"{where}: lacks {row.lacks} of the {lacks} it has not"

    # --- one task -----------------------------------------------------------------------------

    def _states(self, program: Program, task: Task, row: TaskRow, flying: set[Owned],
                strangers: bool) -> list[tuple[str, str]]:  # fmt: skip
        """Return the states that a task may be in: several where what is seen allows several."""
        if program.stopped:
            return [("T", "signal")]
        letters = {
            "R" if seq.running else "P"
            for batch in self.batches.flying for seq in batch.seqs
            if seq.owned is not None and seq.owned.program is program and seq.lives
            and (seq.stream is not None or not self.world.loose(seq.owned))
        }  # fmt: skip
        states = [("S", "client")] if program.deaf else []
        if program.deaf and self.world.limited:
            return [(row.state, row.wait)]  # what it has may have been ended by a limit
        if "R" in letters:
            return [*states, ("R", "")]
        if program.deaf and (strangers or not letters):
            return [(row.state, row.wait)]  # it may not know what it has
        states += [("P", "")] if letters or strangers else []
        if letters:
            return states
        open_ = [s for s in program.streams.values() if s.accepted and s.owned not in flying]
        for stream in open_:
            states += self._waits(task, row, stream)
        if not open_:
            states.append(("S", next(iter(program.waits.values()), "program")))
            if any(owned in self.world.appended for owned in program.contexts.values()):
                states += [("Q", "step")] if self.batches.flying or self._unready else []
        return states

    def _waits(self, task: Task, row: TaskRow, stream: Stream) -> list[tuple[str, str]]:
        """Return what an infer in no step may wait for."""
        lacks = self._lacks(task, stream)
        if self._unready:
            stream.coming = 0
            return [("Q", "step")]  # it is the driver that it waits for, and for nothing else
        states = [("D", f"{row.lacks} blocks")] if lacks and row.lacks else []
        coming, before = self._coming(task, stream), stream.coming
        stream.coming = coming
        if coming < before:  # the next step may have it, this one could not
            stream.event = self.world.work.events
        states += [("D", "copies")] if coming and not row.lacks else []
        if self._came_later(stream) or self._full():
            states.append(("Q", "step"))
        elif not lacks:
            states.append(("?", "it can run, and the step has room for it"))
        return states

    @property
    def _unready(self) -> bool:
        """Whether there is no driver that serves."""
        return self.sim.system.device.state is not DeviceState.UP

    def _lacks(self, task: Task, stream: Stream) -> int:
        """Return how many blocks of an infer's table have no place on the device."""
        ctx: Context | None = task.contexts.get(stream.owned.handle)
        blocks = ctx.blocks if ctx else ()
        return sum(b.id == NOT_RESIDENT and b.moving not in COMING for b in blocks)

    def _coming(self, task: Task, stream: Stream) -> int:
        """Return how many blocks of an infer's table are being copied to the device."""
        ctx: Context | None = task.contexts.get(stream.owned.handle)
        return sum(block.moving in COMING for block in ctx.blocks) if ctx else 0

    def _came_later(self, stream: Stream) -> bool:
        """Whether an infer has come, or may run again, only since the last step was sent, or the
        scrub for which the next one waits."""
        computing = self.batches.computing
        return bool(computing) and stream.event >= computing[-1][1]

    def _full(self) -> bool:
        flying = self.batches.flying
        if not flying:
            return False
        last = flying[-1]
        prefilled = sum(len(seq.tokens) for seq in last.seqs if not seq.decodes)
        return (
            last.num_tokens >= self._max_tokens
            or len(last.seqs) >= self._max_seqs
            or prefilled >= self._room
        )

    # --- all of them --------------------------------------------------------------------------

    def check_shares(self) -> None:
        """Blocks in ps are 1/n of each that n tables name, and sum up to the pool's used ones."""
        k = self.sim.system
        named = Counter(block for ctx in self.sim.tables() for block in ctx.blocks)
        total = 0.0
        for task in k.tasks:
            row = at_once(task_row(k, task))
            mine = list(task.contexts.values())
            mine += [*k.graves, *k.floating] if task.pid == INIT else []
            share = sum(
                1 / named[block]
                for ctx in mine for block in ctx.blocks if block.id != NOT_RESIDENT
            )  # fmt: skip
            assert isclose(row.blocks, share, abs_tol=1e-6), f"pid {row.pid}: {row.blocks}, {share}"
            total += row.blocks
        used = sum(model.pool.counts.used for model in self.sim.loaded)
        assert k.graves or isclose(total, used, abs_tol=1e-6), f"shares {total}, pool {used}"
