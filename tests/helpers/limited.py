"""Limited: hard limits of programs, and of groups of them, in a scenario: none is exceeded by more
than two steps can add, and what a limit ends, ends for that and at once.

What is used is counted here from what programs have sent and got and from what the driver was told,
by the place in the tree of accounts that pays for it; the kernel's usage must be the same, as far
as it is known: who does not read does not know what it has used. Blocks of the device are taken
from the kernel, of all tables each with whoever it is charged to.

    output_ids, input_ids, requests_per_min, children    never exceeded
    device_s       by the last two steps that somebody below was in, at most
    device_blocks  by what the last two steps that were sent needed for those below, and by what
                   copies have brought for them meanwhile
"""

import re
from collections import Counter, defaultdict
from random import Random
from typing import Any

from kernel.limits import WINDOW_S
from kernel.usage import Tier
from syscalls.abi import Resource
from tests.helpers.batches import Batch, Batches, Seq
from tests.helpers.caps import STOPPING, Cap
from tests.helpers.forest import Node
from tests.helpers.programs import Program
from tests.helpers.sim import Reply
from tests.helpers.streams import Owned, Stream
from tests.helpers.world import World

COUNTS = Resource.OUTPUT_IDS, Resource.INPUT_IDS
RESOURCES = (
    *STOPPING, Resource.INPUT_IDS, Resource.DEVICE_BLOCKS, Resource.REQUESTS_PER_MIN,
    Resource.CHILDREN,
)  # fmt: skip
BLOCK = 16
_TOLD = re.compile(
    r"the limit (\w+) of (\w+ \w+) is ([\d.]+): ([\d.]+) used(?:, ([\d.]+) more asked for)?"
)


class Limited:
    """The limits of a world."""

    def __init__(self, world: World, batches: Batches) -> None:
        self.world = world
        self.batches = batches
        self.seen: Counter[str] = Counter()  # what limits have refused and ended
        self._caps: dict[tuple[str, Resource], Cap] = {}
        self._told: defaultdict[tuple[str, str], set[str]] = defaultdict(set)  # all limits so far
        self._spent: defaultdict[Node, Counter[str]] = defaultdict(Counter)
        self._ended: set[int] = set()  # by seed
        world.quiet = world.limited = True
        world.on_spent.append(self._spend)
        self._fresh: list[tuple[Program, Reply, Stream | None]] = []  # refused in this event
        world.on_refused.append(lambda *refused: self._fresh.append(refused))
        world.loose = self.loose
        batches.on_end.append(self._end)
        batches.on_sent.append(self._sent)

    # --- setting them -------------------------------------------------------------------------

    def change(self, by: Program, random: Random) -> Reply | None:
        """Set, change or remove a limit of one of those that can be known well."""
        known = [p for p in self.world.by_pid.values() if p is not by and p.payer is p.node]
        nodes = [
            (node, program)  # a place above several is there several times
            for program in known for node in program.node.path()
            if (node.group or node is program.node) and not self._vague(node)
        ]  # fmt: skip
        if not nodes:
            return None
        node, program = random.choice(nodes)
        resource = random.choice(RESOURCES)
        label = f"group {node.group}" if node.group else f"task {program.pid}"
        cap = self._caps.get((label, resource)) or self._cap(node, program, label, resource)
        hard = None if random.random() < 0.1 else self._hard(cap, random)

        def done(reply: Reply) -> None:
            self._told[label, resource.value].add(_number(hard or 0.0))
            self._caps.pop((label, resource), None)
            if hard is not None:
                self._caps[label, resource] = cap
                cap.set(hard)

        pid, group = (0, node.group) if node.group else (program.pid, None)
        return by.call("set_limit", resource.value, None, hard, pid, group, False, then=done)

    def _cap(self, node: Node, program: Program, label: str, resource: Resource) -> Cap:
        tasks = self.world.work.sim.system.tasks
        account: Any = tasks.find(program.pid).account
        if node.group:
            account = tasks.accounts.find_group(program.client.uid, node.group)
        return Cap(node, account, label, resource)

    def _hard(self, cap: Cap, random: Random) -> float:
        match cap.resource:
            case Resource.REQUESTS_PER_MIN:
                return float(random.randint(1, 12))
            case Resource.DEVICE_S:
                return round(cap.charged + random.uniform(0.0, 0.1), 6)
        room = {
            Resource.CHILDREN: 1,
            Resource.OUTPUT_IDS: 12,
            Resource.INPUT_IDS: 150,
            Resource.DEVICE_BLOCKS: 12,
        }
        return float(cap.charged + random.randint(0, room[cap.resource]))

    # --- counting -----------------------------------------------------------------------------

    def _spend(self, program: Program, what: str, count: int) -> None:
        path = program.payer.path()
        for node in path:
            self._spent[node][what] += count
        if what == Resource.REQUESTS_PER_MIN.value:
            for cap in self._caps.values():
                if cap.resource is Resource.REQUESTS_PER_MIN and cap.node in path:
                    cap.times.append(self.world.work.now)

    def _end(self, batch: Batch) -> None:
        """Count the time of a step: whoever decodes pays for its part, of others it is not known
        whether their positions were computed before."""
        took_us = round(batch.flight.end * 1e6) - round(batch.flight.begin * 1e6)
        for seq in batch.seqs:
            if seq.owned is not None and seq.lives and seq.decodes:
                for node in seq.owned.program.payer.path():
                    self._spent[node]["device_us"] += took_us // batch.num_tokens
                    self._spent[node]["parts"] += 1
        for cap in self._caps.values():
            if any(self._may_pay(cap, seq) for seq in batch.seqs):
                cap.took_us.append(took_us)

    def _sent(self, batch: Batch) -> None:
        for cap in self._caps.values():
            if cap.resource is Resource.DEVICE_BLOCKS:
                mine = [s for s in batch.seqs if self._may_pay(cap, s) or self._shares(cap, s)]
                cap.grown.append(sum(_blocks(seq) for seq in mine))
                cap.brought.append(cap.account.usage.in_blocks)
            assert not cap.reached or not any(
                seq.owned is not None and seq.lives and cap.node in seq.owned.program.payer.path()
                for seq in batch.seqs
            ), f"{cap.label} has used up its {cap.resource.value}, and goes on"

    def _may_pay(self, cap: Cap, seq: Seq) -> bool:
        """Whether a sequence may be at the cost of a limited place; one that has ended may be at
        that of whoever paid for it then."""
        if seq.owned is None:
            return True
        program = seq.owned.program
        return cap.node in program.payer.path() or cap.node in program.node.path() or not seq.lives

    def _shares(self, cap: Cap, seq: Seq) -> bool:
        """Whether a sequence may compute blocks that somebody below pays for, who has them too."""
        assert seq.owned is not None
        return any(
            other.ids[:BLOCK] == seq.owned.ids[:BLOCK]
            for program in self.world.by_pid.values() if cap.node in program.node.path()
            for other in program.contexts.values()
        )  # fmt: skip

    def loose(self, owned: Owned) -> bool:
        """Whether the prefill of an append may have been given up for want of blocks."""
        path = owned.program.node.path()
        return any(
            cap.node in path
            for cap in self._caps.values() if cap.resource is Resource.DEVICE_BLOCKS
        )  # fmt: skip

    def _vague(self, node: Node) -> bool:
        """Whether somebody does not know what it has spent, at the cost of a place."""
        deaf = (p for p in self.world.by_pid.values() if p.deaf)
        return node in self.world.blurred or any(
            node in program.node.path() or node in program.payer.path() for program in deaf
        )

    # --- looking ------------------------------------------------------------------------------

    def settle(self) -> None:
        """Forget limits of those that have gone, and what is not computed any more."""
        for key, cap in list(self._caps.items()):
            if not self.world.forest.living(cap.node):
                del self._caps[key]
            elif cap.reached:
                self.world.appended = {
                    owned for owned in self.world.appended
                    if cap.node not in owned.program.payer.path()
                }  # fmt: skip

    def look(self) -> None:
        """Compare all limits with what is used, after an event."""
        for refused in self._fresh:
            self._check_refused(*refused)
        self._fresh.clear()
        for cap in self._caps.values():
            where = f"{cap.resource.value} of {cap.label}, at most {cap.hard:g},"
            if cap.resource in (*COUNTS, Resource.CHILDREN):
                self._check_count(cap, where)
            elif cap.resource is Resource.DEVICE_S:
                self._check_time(cap, where)
            elif cap.resource is Resource.DEVICE_BLOCKS:
                self._check_blocks(cap, where)
            else:
                count = self._count(cap)
                assert count <= cap.most, f"{where} were {count} of a minute"
            if cap.reached:
                self._check_ended(cap, where)

    def _count(self, cap: Cap) -> Any:
        """Return what is used as far as it can be counted; None: it cannot."""
        if cap.resource in COUNTS:
            return self._spent[cap.node][cap.resource.value]
        if cap.resource is Resource.CHILDREN:
            return sum(task.node is not cap.node for task in self.world.forest.living(cap.node))
        if cap.resource is not Resource.REQUESTS_PER_MIN:
            return None
        return sum(at > self.world.work.now - WINDOW_S for at in cap.times)

    def _check_count(self, cap: Cap, where: str) -> None:
        count, charged = self._count(cap), cap.charged
        assert count <= cap.most, f"{where} are {count}"
        exact = count == charged or self._vague(cap.node)
        assert exact and count <= charged, f"{where} are {count}, and {charged:g} are charged"

    def _check_time(self, cap: Cap, where: str) -> None:
        spent, charged_us = self._spent[cap.node], round(cap.charged * 1e6)
        least = spent["device_us"] - spent["parts"]
        assert least <= charged_us, f"{where} are {least} us, {charged_us} are charged"
        most = round(cap.most * 1e6) + sum(cap.took_us)
        rises = charged_us > cap.last_us
        assert not rises or charged_us <= most, f"{where} are {charged_us} us, with two: {most}"
        cap.last_us = charged_us

    def _check_blocks(self, cap: Cap, where: str) -> None:
        tables = {block for ctx in self.world.work.sim.tables() for block in ctx.blocks}
        here = [
            block for block in tables
            if block.tier == Tier.DEVICE and block.payer.is_below(cap.account)
        ]  # fmt: skip
        assert len(here) == cap.charged, f"{where} are {len(here)}, {cap.charged:g} are charged"
        most = cap.hard + sum(cap.grown) + cap.account.usage.in_blocks - cap.brought[0]
        rises = len(here) > cap.most  # else they are on their way off
        assert not rises or len(here) <= most, f"{where} are {len(here)}, with two steps {most:g}"
        cap.most = max(cap.hard, len(here))
        cap.over = cap.over if len(here) > cap.hard else self.batches.sent
        seqs = (seq for batch in self.batches.flying for seq in batch.seqs)
        leaving = any(block.moving for block in here) or not all(seq.lives for seq in seqs)
        if self.batches.sent > cap.over + 2 and not leaving:
            self._check_ended(cap, where)

    def _check_ended(self, cap: Cap, where: str) -> None:
        for stream in self.world.streams.values():
            program = stream.owned.program
            if stream.accepted and not program.deaf and cap.node in program.payer.path():
                raise AssertionError(f"{where} are used up, and an infer of {program.name} goes on")

    def _check_refused(self, program: Program, reply: Reply, stream: Stream | None) -> None:
        """A limit has ended a call: it was reached, and it is one of theirs."""
        if reply.name == "group":  # whom it would have moved there has too many blocks
            return
        told = _TOLD.match(reply.message)
        assert told is not None, reply
        resource, label, hard, used, more = told.groups()
        assert hard in self._told[label, resource], f"nobody has set {reply.message}"
        exceeded = float(used) + float(more or 0) > float(hard) or (
            more is None and used == hard and Resource(resource) in STOPPING
        )
        assert exceeded, f"{program.name}: {reply.message}"
        ended = stream is not None and stream.accepted
        self.seen[f"{resource} {'ended' if ended else 'refused'}"] += 1
        if stream is not None:
            assert stream.seed not in self._ended, f"{program.name} ends twice: {reply.message}"
            self._ended.add(stream.seed)
        cap = self._caps.get((label, Resource(resource)))
        if cap is not None:
            mine = cap.node in program.payer.path() or cap.node in program.node.path()
            assert mine or self._vague(cap.node), f"{program.name} is not below: {reply.message}"
            count = self._count(cap)
            known = count is not None and not self._vague(cap.node)
            assert not known or count >= float(used), f"{count} are used: {reply.message}"


def _blocks(seq: Seq) -> int:
    """Return how many blocks a sequence of a step writes to, at most."""
    return (seq.start + len(seq.tokens) - 1) // BLOCK - seq.start // BLOCK + 1


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")
