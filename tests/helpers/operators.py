"""Operators: programs of a scenario that do to others what others may do to them."""

from collections.abc import Callable
from random import Random

from syscalls.abi import Sig
from tests.helpers.forest import Node
from tests.helpers.limited import Limited
from tests.helpers.programs import Program, Script
from tests.helpers.scripts import SCRIPTS
from tests.helpers.sim import Reply
from tests.helpers.world import World

GROUPS = "lab", "shop"


class Operator:
    """Does to programs what others may do to them."""

    def __init__(self, world: World, random: Random, pause_s: float) -> None:
        self.world = world
        self.random = random
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
        if draw < 0.5:
            return self._stop(other)
        if draw < 0.6:
            return place(self.program, other, self.random.choice([None, *GROUPS]))
        if draw < 0.8:
            self._deafen(other)
            return None
        new = self.world.start(self.random.choice(SCRIPTS), "late", self.random.random())
        new.client.uid = other.client.uid
        if draw < 0.9:
            if other.deaf:
                self.world.blur(other)
            other.hear()
            other.die()
            return None
        return self._kill(other)

    def _kill(self, other: Program) -> Reply:
        """Kill it, or also what it has made."""
        forest, tree, whole = self.world.forest, other.tree, self.random.random() < 0.3

        def done(reply: Reply) -> None:
            reached = forest.tree([tree], tree.node) if whole else {tree}
            forest.signal(reached, Sig.KILL, whole, self.world.work.now)
            for each in reached:
                if each.pid in self.world.by_pid:
                    self.world.by_pid[each.pid].end()

        return self.program.call("kill", other.pid, int(Sig.KILL), whole, then=done)

    def _stop(self, other: Program) -> Reply:
        """Stop it, or let it go on, or also what it has made."""
        signal, whole = Sig.CONT if other.stopped else Sig.STOP, self.random.random() < 0.3
        forest, tree = self.world.forest, other.tree

        def done(reply: Reply) -> None:
            for each in forest.tree([tree], tree.node) if whole else {tree}:
                program = self.world.by_pid.get(each.pid)
                if program is not None:  # else it has not come yet, and is not stopped
                    program.stopped = signal is Sig.STOP
                    program.may_run()

        return self.program.call("kill", other.pid, int(signal), whole, then=done)

    def _deafen(self, other: Program) -> None:
        """It stops reading, or reads again."""
        if other.deaf:
            other.hear()
        elif not (other.ports and self.world.quiet):  # whose cost is it at, what it does then?
            self.world.work.sim.front.blocked.add(other.client.route)


def place(by: Program, other: Program, name: str | None) -> Reply:
    """Let one put another into a group with all below it, or take it out."""
    forest = by.world.forest

    def done(reply: Reply) -> None:
        node = other.node
        now, levels = node.up, forest.height(node)
        assert now is not None
        to = forest.place(forest.tasks[by.pid], now, name, levels) if name else forest.out_of(now)
        assert isinstance(to, Node), f"{other.name} is in {name}, and it should be {to!r}"
        deaf = [p for p in by.world.by_pid.values() if p.deaf and node in p.node.path()]
        for above in (now, to):  # what they do not know of stays charged where they stood
            node.up = above
            for program in deaf:
                by.world.blur(program)

    return by.call("group", other.pid, name, then=done)


def warden(limited: Limited, pause_s: float) -> Callable[[Program], Script]:
    """Return the script of a program that sets limits, and puts some into a group for it."""

    def script(program: Program) -> Script:
        random = program.random
        yield program.hello()
        while True:
            yield random.uniform(0.0, 2 * pause_s)
            others = [other for other in program.world.by_pid.values() if other is not program]
            if others and random.random() < 0.2:
                yield place(program, random.choice(others), random.choice(GROUPS))
            reply = limited.change(program, random)
            if reply is not None:
                yield reply

    return script
