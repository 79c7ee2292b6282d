"""Agents: 64 of them on a pool for a quarter, once as calls of tools that the kernel sees, under
fair, and once as pauses that it does not, under fifo, on the same driver.

All begin with the same 1,024 ids; a turn is 32 ids of a question or of what a tool gave, 16 ids of
an answer (in long turns, three times of each), and a tool that takes 0.05 to 1 s (86 %), 1 to 10 s
(9 %) or 10 to 30 s (5 %). What no agent uses can stay on the device, lie in the host tier, or be
computed again: the time until all have finished, until half of them have, and the ids that were
computed again. The tools of one agent take 32 s: no way is faster. Each difference alone is told
beside.

On the null driver with the times of smollm2 on two cores, whose clock is a fake one: every run of a
seed is the same.
"""

from collections.abc import Callable, Iterator
from itertools import product
from random import Random
from statistics import median
from typing import NamedTuple

from bench.record import Result
from kernel.policies.fair import Fair
from kernel.policies.fifo import Fifo
from kernel.policy import Policy
from tests.helpers.batches import Batches
from tests.helpers.clockwork import Clockwork
from tests.helpers.latency import Budgets, Latency, TimedLink
from tests.helpers.programs import Program, Script
from tests.helpers.sim import Clock, Reply, Sim
from tests.helpers.world import World

AGENTS, TURNS = 64, 6
SHARED = 1024
BLOCK = 16
TOOLS = {"look": (0.86, 0.05, 1.0), "build": (0.09, 1.0, 10.0), "crawl": (0.05, 10.0, 30.0)}
"""How often each is used, and how long it takes, at least and at most."""
COMING_S = 2.0
"""In which all agents begin, one after the other."""
VOCAB = 32_000
SMOLLM2 = Latency(11_800.0, 435.0, 630.0, 0.0, 0.55)
"""On two cores: 2,300 ids a second of prefill, 12.4 ms for one id, 51 ms for 64 of them; a block is
368,640 bytes there and 128 bytes here, so copies are as much slower here."""


class Turn(NamedTuple):
    """Ids of one."""

    asked: int
    answered: int


SHORT, LONG = Turn(32, 16), Turn(96, 48)


class Use(NamedTuple):
    """Of a tool."""

    tool: str
    seconds: float


def uses(agent: int, seed: int = 1) -> list[Use]:
    """Return what tools an agent uses between its turns."""
    random = Random(seed * 1000 + agent)
    found = []
    for tool in random.choices(list(TOOLS), [part for part, _, _ in TOOLS.values()], k=TURNS - 1):
        _, least, most = TOOLS[tool]
        found.append(Use(tool, random.uniform(least, most)))
    return found


class Outcome(NamedTuple):
    """Of one way to run all agents."""

    finished_s: float  # the last one
    median_s: float
    recomputed: int  # ids


def need(agents: int, turn: Turn = SHORT) -> int:
    """Return the blocks of all agents, if all of it stayed on the device."""
    return (SHARED + agents * TURNS * sum(turn)) // BLOCK


def run() -> Iterator[Result]:
    """Compare the ways in the simulator: both turns, without and with a host tier."""
    for length, tier in product(("short", "long"), ("no", "whole")):
        turn = SHORT if length == "short" else LONG
        host_blocks = need(AGENTS, turn) if tier == "whole" else 0
        ways = {
            f"{name}, {'calls' if calls else 'pauses'}": simulate(
                calls, policy(), host_blocks, turn=turn
            )
            for name, policy in (("fair", Fair), ("fifo", Fifo))
            for calls in (True, False)
        }
        known, guessed = ways["fair, calls"], ways["fifo, pauses"]
        yield Result(
            "agents", f"{length} turns, {tier} host tier", known.finished_s, "s",
            known.finished_s / guessed.finished_s, "fifo, LRU and no calls",
            {name: outcome._asdict() for name, outcome in ways.items()},
        )  # fmt: skip


# --- on a fake clock ----------------------------------------------------------------------------


def simulate(
    calls: bool,
    policy: Policy,
    host_blocks: int = 0,
    agents: int = AGENTS,
    pool: int = 0,
    turn: Turn = SHORT,
) -> Outcome:
    """Run all agents on the null driver; `calls`: tools are called through ports. `pool`: blocks of
    the device, 0: a quarter of what they need."""
    host_bytes = host_blocks * BLOCK * 8
    link = TimedLink(Clock(), SMOLLM2, Budgets(2048, 256), host_bytes)
    sim = Sim(
        1, f"null:vocab={VOCAB}", link, policy=policy, clock=link.clock,
        num_blocks=(pool or need(agents, turn) // 4) + 1, prefill_chunk=512, target_us=30_000,
        host_bytes=host_bytes,
    )  # fmt: skip
    work = Clockwork(sim, link)
    world = World(work, 1, VOCAB)
    batches = Batches(world)
    work.watchers += [world.settle, batches.identify]
    ended: list[float] = []
    begun = work.now + COMING_S
    shared = Random(0).choices(range(VOCAB), k=SHARED)
    world.start(_first(shared), "first")
    world.start(_tools, "tools")
    for agent in range(agents):
        when = COMING_S * (1 + agent / agents)
        script = _agent(uses(agent), shared, calls, turn, ended)
        world.start(script, f"agent{agent}", when)
    while len(ended) < agents:
        work.step()
    times = [when - begun for when in ended]
    return Outcome(max(times), median(times), sim.system.tasks.accounts.root.usage.recomputed_ids)


def _first(shared: list[int]) -> Callable[[Program], Script]:
    """What begins like all of them, so that they find its blocks."""

    def script(program: Program) -> Script:
        yield program.hello()
        yield program.infer(program.alloc(), 1, shared)

    return script


def _tools(program: Program) -> Script:
    """Serve all tools, many calls at a time."""
    yield program.hello()
    for tool in TOOLS:
        yield program.bind(tool)
        _take(program, tool)


def _take(program: Program, tool: str) -> None:
    """Take the next call of a tool, and answer it when its time is over."""

    def taken(reply: Reply) -> None:
        message = reply.result
        seconds = float(message.body)
        program.work.after(seconds, lambda: program.call("reply", message.message, b"done"))
        program.work.after(0.0, lambda: _take(program, tool))

    program.call("recv", tool, then=taken)


def _agent(
    tools: list[Use], shared: list[int], calls: bool, each: Turn, ended: list[float]
) -> Callable[[Program], Script]:
    """One agent; the time of its end goes to `ended`."""

    def script(program: Program) -> Script:
        yield program.hello()
        owned = program.alloc()
        for turn in range(TURNS):
            asked = program.ids(each.asked)
            answer = program.infer(owned, each.answered, [*shared, *asked] if turn == 0 else asked)
            yield answer
            assert not answer.errno, answer
            if turn < TURNS - 1:
                use = tools[turn]
                if calls:
                    yield program.call("call", use.tool, str(use.seconds).encode())
                else:
                    yield use.seconds
        ended.append(program.work.now)
        yield program.call("exit")

    return script
