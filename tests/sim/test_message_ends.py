"""Every way in which a call, a recv or a port can end: once, and nothing is left."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from syscalls import abi, wire
from syscalls.abi import MAX_BODY, Sig
from syscalls.errors import Errno
from tests.helpers.mailing import check_mail, server, task_of, wait_of
from tests.helpers.sim import Reply, Sim, SimClient


@pytest.fixture
def sim() -> Iterator[Sim]:
    sim = Sim()
    yield sim
    check_mail(sim)
    sim.leave()


def end(sim: Sim, client: SimClient, how: str, by: SimClient) -> None:
    if how == "exit":
        client.send("exit", 0)
    elif how == "kill":
        by.send("kill", task_of(client).pid, int(Sig.KILL))
    elif how == "dies":
        sim.front.dead.add(client.route)
    elif how == "unbind":
        client.send("bind", "tools", 0)
    sim.turn()


@pytest.mark.parametrize("how", ["exit", "kill", "dies", "unbind"])
def test_callers_of_a_server_that_goes_are_told_once(sim: Sim, how: str) -> None:
    tools, agents = server(sim), [sim.client() for _ in range(3)]
    calls = [agent.send("call", "tools", b"x", 100.0) for agent in agents]
    sim.turn()
    got = tools.ask("recv", "tools").result
    end(sim, tools, how, agents[0])
    assert [call.errno for call in calls] == [Errno.EPIPE] * 3
    assert "not answered" in calls[0].message and "not taken" in calls[1].message
    assert agents[0].ask("call", "tools", b"").errno == Errno.ENOENT
    assert sim.kernel.timeout() is None or how == "kill", "no deadline is left"
    if how == "unbind":
        assert tools.ask("reply", got.message).errno == Errno.ESRCH
    check_mail(sim)


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("how", ["exit", "kill", "dies", "cancel", "INT"])
def test_a_caller_that_goes_or_gives_up_leaves_no_message(sim: Sim, how: str, taken: bool) -> None:
    tools, agent = server(sim), sim.client()
    call = agent.send("call", "tools", b"x")
    sim.turn()
    got = tools.ask("recv", "tools").result if taken else None
    if how == "cancel":
        assert agent.ask("cancel", call.call).errno == 0
    elif how == "INT":
        tools.ask("kill", task_of(agent).pid, int(Sig.INT))
    else:
        end(sim, agent, how, tools)
    assert how == "dies" or call.errno == Errno.ECANCELED
    if got is not None:
        assert tools.ask("reply", got.message).errno == Errno.ESRCH
    assert tools.ask("recv", "tools", None, 0.0).errno == Errno.ETIMEDOUT
    assert len(sim.system.ports) == 1 and not sim.system.ports.bytes
    assert task_of(tools).payer is task_of(tools).account


@pytest.mark.parametrize("how", ["cancel", "INT", "unbind"])
def test_a_recv_that_is_given_up_takes_nothing(sim: Sim, how: str) -> None:
    tools, agent = server(sim), sim.client()
    recv = tools.send("recv", "tools")
    sim.turn()
    if how == "cancel":
        assert tools.ask("cancel", recv.call).errno == 0
    elif how == "INT":
        agent.ask("kill", task_of(tools).pid, int(Sig.INT))
    else:
        tools.ask("bind", "tools", 0)
    assert recv.errno == (Errno.EPIPE if how == "unbind" else Errno.ECANCELED)
    if how != "unbind":
        agent.send("call", "tools", b"x")
        assert tools.ask("recv", "tools").result.body == b"x"


def test_a_cancel_of_no_call_is_refused(sim: Sim) -> None:
    tools, agent = server(sim), sim.client()
    call = agent.send("call", "tools", b"")
    sim.turn()
    assert agent.ask("cancel", call.call, 1).errno == Errno.ESRCH, "there is nothing to keep"
    assert tools.ask("cancel", call.call).errno == Errno.ESRCH, "another's"
    assert not call.done


def test_a_server_that_is_stopped_takes_nothing_until_it_goes_on(sim: Sim) -> None:
    tools, agent, watcher = server(sim), sim.client(), sim.client()
    pid = task_of(tools).pid
    recv = tools.send("recv", "tools")
    sim.turn()
    assert wait_of(tools, watcher) == ("S", "recv:tools")
    watcher.ask("kill", pid, int(Sig.STOP))
    call = agent.send("call", "tools", b"x")
    sim.turn()
    late = tools.send("recv", "tools")
    sim.turn()
    assert not recv.done and not late.done and not call.done
    assert wait_of(tools, watcher)[0] == "T" and wait_of(agent, watcher) == ("S", "port:tools")
    watcher.ask("kill", pid, int(Sig.CONT))
    assert recv.result.body == b"x" and not late.done, "the recv that was first"
    tools.ask("reply", recv.result.message)
    assert call.done and wait_of(agent, watcher) == ("S", "program")


def test_a_port_can_be_bound_again(sim: Sim) -> None:
    tools, agent = server(sim), sim.client()
    sim.front.dead.add(tools.route)
    sim.turn()
    server(sim)
    call = agent.send("call", "tools", b"")
    sim.turn()
    assert not call.done


def test_a_repeated_recv_is_answered_from_what_is_kept(sim: Sim) -> None:
    """A message sent twice is taken once; and what is kept of long results is bounded."""
    tools, agent = server(sim), sim.client()
    agent.send("call", "tools", b"one")
    agent.send("call", "tools", b"two")
    recv = tools.ask("recv", "tools")
    tools.calls[recv.call] = Reply(recv.call, "recv")
    tools.send_raw([wire.pack_request(abi.BY_NAME["recv"].number, recv.call, 0, ("tools",))])
    sim.turn()
    assert tools.calls[recv.call].result == recv.result
    assert len(sim.system.ports.find(tools.uid, "tools").waiting) == 1
    for _ in range(40):
        agent.send("call", "tools", b"x" * MAX_BODY)
        got = tools.ask("recv", "tools").result
        tools.ask("reply", got.message, b"")
    kept: Any = sim.system.sessions[tools.route]._kept
    assert sum(map(len, kept.values())) <= 1 << 20


def test_every_order_of_three_ends_leaves_nothing(sim: Sim) -> None:
    """A caller, a server that calls, and the server behind it, going in each order."""
    for order in itertools.permutations(range(3)):
        back, mid, agent = server(sim, "back"), server(sim, "mid"), sim.client()
        agent.send("call", "mid", b"")
        mid.ask("recv", "mid")
        mid.send("call", "back", b"")
        back.ask("recv", "back")
        for n in order:
            sim.front.dead.add((back, mid, agent)[n].route)
            sim.turn()
            check_mail(sim)
        assert not len(sim.system.ports) and not sim.system.ports.names
