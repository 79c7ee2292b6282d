"""The KV of a task in a call: first to go when room is needed, and back when the reply comes."""

from collections.abc import Iterator

import pytest

from kernel.idle import CHUNK
from kernel.loopback import LoopbackLink
from kernel.policies.fair import Fair
from kernel.port import FIRST_GUESS_S
from tests.helpers.mailing import check_mail
from tests.helpers.oracle import expected
from tests.helpers.sim import Sim, SimClient

PROMPT = [7 * n % 251 for n in range(60)]


@pytest.fixture
def sim() -> Iterator[Sim]:
    link = LoopbackLink("null0", host_bytes=1 << 16)
    sim = Sim(num_blocks=9, block_size=16, host_bytes=1 << 16, link=link)
    yield sim
    check_mail(sim)
    sim.leave()


def context(sim: Sim, client: SimClient, handle: int) -> "object":
    task = sim.system.sessions[client.route].task
    assert task is not None
    return task.contexts[handle]


def on_device(client: SimClient, handle: int) -> int:
    row = client.ask("stat_ctx", handle).result
    return int(row.blocks - row.host_blocks - row.disk_blocks)


def prepared(sim: Sim) -> tuple[SimClient, SimClient, SimClient, int, int]:
    """Return a server, an agent that will call it, another task, and a context of each of these.

    The agent's context was used last: without a call the other one would be the first to go.
    """
    tools, agent, other = sim.client(), sim.client(), sim.client()
    tools.ask("bind", "tools")
    idle, mine = other.context([]), agent.context([])
    for client, handle in ((other, idle), (agent, mine)):
        assert client.ask("infer", handle, 1, 0.0, ids=PROMPT).errno == 0
    return tools, agent, other, mine, idle


def need_room(sim: Sim, client: SimClient) -> None:
    """Compute four blocks, for which four others have to go."""
    handle = client.context([])
    assert client.ask("infer", handle, 1, 0.0, ids=[9 * n % 251 for n in range(60)]).errno == 0
    assert client.ask("free_ctx", handle).errno == 0
    client.ask("drop_cache")
    sim.settle()


@pytest.mark.parametrize("calls", [False, True])
def test_it_goes_before_what_was_used_longer_ago(sim: Sim, calls: bool) -> None:
    tools, agent, other, mine, idle = prepared(sim)
    call = agent.send("call", "tools", b"") if calls else None
    sim.turn()
    need_room(sim, tools)
    assert (on_device(agent, mine) < 4) == calls
    assert (on_device(other, idle) < 4) == (not calls)
    if call is not None:
        tools.ask("reply", tools.ask("recv", "tools").result.message)


def test_it_goes_before_all_others_however_many_there_are() -> None:
    """Also if more were used longer ago than the policy is asked about at a time."""
    link = LoopbackLink("null0", host_bytes=1 << 16)
    sim = Sim(num_blocks=CHUNK + 12, block_size=16, host_bytes=1 << 16, link=link)
    tools, agent, other = sim.client(), sim.client(), sim.client()
    tools.ask("bind", "tools")
    for n in range(CHUNK + 4):
        other.ask("infer", other.context([]), 1, 0.0, ids=[n % 251] * 10)
    mine = agent.context([])
    agent.ask("infer", mine, 1, 0.0, ids=PROMPT)
    agent.send("call", "tools", b"")
    sim.turn()
    need_room(sim, tools)
    assert on_device(agent, mine) < 4
    check_mail(sim)
    sim.leave()


def test_the_reply_brings_it_back(sim: Sim) -> None:
    tools, agent, _, mine, _ = prepared(sim)
    agent.send("call", "tools", b"")
    sim.turn()
    need_room(sim, tools)
    assert on_device(agent, mine) < 4
    came = sim.model.swap.moved
    before = dict(came)
    tools.ask("reply", tools.ask("recv", "tools").result.message)
    sim.settle()
    assert on_device(agent, mine) == 4 and sum(came.values()) > sum(before.values())
    infer = agent.ask("infer", mine, 3, 0.0)
    first = expected(PROMPT, 1)
    assert infer.tokens == expected([*PROMPT, *first], 3)
    assert infer.result.cached == 60, "nothing was computed again"


def test_what_comes_back_takes_free_places_only(sim: Sim) -> None:
    tools, agent, other, mine, idle = prepared(sim)
    agent.send("call", "tools", b"")
    sim.turn()
    hog = tools.context([])
    assert tools.ask("infer", hog, 1, 0.0, ids=[9 * n % 251 for n in range(60)]).errno == 0
    left = on_device(agent, mine)
    assert left < 4 and on_device(other, idle) == 4
    tools.ask("reply", tools.ask("recv", "tools").result.message)
    sim.settle()
    assert on_device(tools, hog) == on_device(other, idle) == 4, "nobody else has to leave"
    assert on_device(agent, mine) == left


def test_contexts_know_when_the_reply_is_to_be_expected(sim: Sim) -> None:
    tools, agent, _, mine, _ = prepared(sim)
    ctx = context(sim, agent, mine)
    agent.send("call", "tools", b"")
    sim.turn()
    assert ctx.returns_at == pytest.approx(sim.clock.now + FIRST_GUESS_S, abs=0.01)  # type: ignore[attr-defined]
    message = tools.ask("recv", "tools").result.message
    sim.clock.now += 4.0
    tools.ask("reply", message)
    usual = sim.system.ports.find(tools.uid, "tools").usual_s
    assert 4.0 < usual < 4.1
    called = sim.clock.now
    call = agent.send("call", "tools", b"")
    sim.turn()
    assert ctx.returns_at == pytest.approx(called + usual, abs=0.01)  # type: ignore[attr-defined]
    agent.ask("cancel", call.call)
    assert ctx.returns_at == 0.0  # type: ignore[attr-defined]
    again = agent.send("call", "tools", b"")
    sim.turn()
    tools.ask("reply", tools.ask("recv", "tools").result.message)
    assert again.done
    faster = sim.system.ports.find(tools.uid, "tools").usual_s
    assert 0.7 * usual < faster < usual, "a moving average"


def test_a_tool_that_answers_at_once_costs_nobody_a_place() -> None:
    """The policy weighs how long the task is away against the way there and back."""
    policy = Fair()
    assert policy.parks(1.0, 1000.0) and not policy.parks(0.001, 1000.0)


def test_of_two_in_a_call_the_one_that_is_away_for_longer_goes(sim: Sim) -> None:
    quick, slow = sim.client(), sim.client()
    agents = [sim.client(), sim.client()]
    handles = [agent.context([]) for agent in agents]
    for server, name, took in ((quick, "quick", 1.0), (slow, "slow", 30.0)):
        server.ask("bind", name)
        agents[0].send("call", name, b"")
        message = server.ask("recv", name).result.message
        sim.clock.now += took
        server.ask("reply", message)
    for agent, handle in zip(agents, handles, strict=True):
        agent.ask("infer", handle, 1, 0.0, ids=PROMPT)
    agents[1].send("call", "slow", b"")
    agents[0].send("call", "quick", b"")
    sim.turn()
    need_room(sim, quick)
    assert on_device(agents[0], handles[0]) == 4, "it is back in a second"
    assert on_device(agents[1], handles[1]) < 4
