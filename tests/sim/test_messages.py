"""Ports: bind, call, recv and reply, their limits and deadlines."""

from collections.abc import Iterator

import pytest

from kernel.mail import MAX_CALLS
from kernel.port import MAX_BYTES, MAX_NAMES, OVERHEAD
from syscalls.abi import MAX_BODY
from syscalls.errors import Errno
from tests.helpers.mailing import check_mail, server, task_of
from tests.helpers.sim import Sim


@pytest.fixture
def sim() -> Iterator[Sim]:
    sim = Sim()
    yield sim
    check_mail(sim)
    sim.leave()


def test_a_call_ends_with_the_reply(sim: Sim) -> None:
    tools, agent = server(sim), sim.client()
    call = agent.send("call", "tools", b"\x00what time is it\xff")
    got = tools.ask("recv", "tools").result
    assert (got.body, got.pid, got.sender) == (
        b"\x00what time is it\xff", task_of(agent).pid, task_of(agent).name,
    )  # fmt: skip
    assert not call.done and (got.waiting, got.missing) == (0, 0)
    assert tools.ask("reply", got.message, b"noon").errno == 0
    assert call.done and call.result == (b"noon", task_of(tools).pid)
    again = tools.ask("reply", got.message, b"noon")
    assert again.errno == Errno.ESRCH, "a message is answered once"


def test_messages_are_taken_in_order_by_recvs_in_order(sim: Sim) -> None:
    tools, agents = server(sim), [sim.client() for _ in range(3)]
    first = [tools.send("recv", "tools") for _ in range(2)]
    calls = [agent.send("call", "tools", b"%d" % n) for n, agent in enumerate(agents)]
    sim.turn()
    assert [recv.result.body for recv in first] == [b"0", b"1"]
    third = tools.ask("recv", "tools", None, 0.0).result
    assert third.body == b"2"
    for number, recv in ((2, third), (0, first[0].result), (1, first[1].result)):
        tools.ask("reply", recv.message, b"to %d" % number)
        assert calls[number].result.body == b"to %d" % number
    assert tools.ask("recv", "tools", None, 0.0).errno == Errno.ETIMEDOUT


def test_who_may_bind_and_take(sim: Sim) -> None:
    tools, other = server(sim), sim.client()
    taken = other.ask("bind", "tools")
    assert taken.errno == Errno.EEXIST and f"task {task_of(tools).pid}" in taken.message
    assert other.ask("recv", "tools").errno == Errno.ENOENT, "it is not its port"
    assert other.ask("call", "toolz", b"").errno == Errno.ENOENT
    call = other.send("call", "tools", b"x")
    got = tools.ask("recv", "tools").result
    assert other.ask("reply", got.message).errno == Errno.ESRCH, "it has not taken the message"
    assert not call.done
    assert other.ask("bind", "tools", 0).errno == Errno.ENOENT, "nor can it give it up"
    for both in (("tools", "news"), (None, None)):
        assert tools.ask("recv", *both).errno == Errno.EINVAL
    tools.ask("reply", got.message)


def test_a_port_is_of_one_user(sim: Sim) -> None:
    tools, root = server(sim), sim.client(uid=0)
    assert root.ask("call", "tools", b"").errno == Errno.ENOENT
    assert root.ask("bind", "tools").errno == 0, "two users can have the same name"
    call = root.send("call", "tools", b"")
    sim.turn()
    assert call.errno == Errno.EDEADLK, "its own one"
    assert tools.ask("recv", "tools", None, 0.0).errno == Errno.ETIMEDOUT


def test_the_limits_are_named(sim: Sim) -> None:
    tools, agent = server(sim, depth=3), sim.client()
    tall = agent.ask("call", "tools", b"x" * (MAX_BODY + 1))
    assert tall.errno == Errno.E2BIG and str(MAX_BODY) in tall.message
    calls = [agent.send("call", "tools", b"x" * MAX_BODY) for _ in range(3)]
    got = tools.ask("recv", "tools").result
    full = agent.ask("call", "tools", b"")
    assert full.errno == Errno.EAGAIN and "2 messages waiting and 1 taken" in full.message
    assert tools.ask("reply", got.message, b"y" * (MAX_BODY + 1)).errno == Errno.E2BIG
    assert not calls[0].done, "a reply that is refused ends nothing"
    tools.ask("reply", got.message, b"y" * MAX_BODY)
    assert calls[0].done and agent.send("call", "tools", b"") is not None
    sim.turn()


def test_what_waits_of_one_user_is_bounded(sim: Sim) -> None:
    server(sim, depth=1024), server(sim, "more", 1024)
    for _ in range(4):
        agent = sim.client()
        calls = [agent.send("call", "tools", b"x" * MAX_BODY) for _ in range(MAX_CALLS + 1)]
        sim.turn()
        assert calls[-1].errno == Errno.EAGAIN and f"{MAX_CALLS} calls" in calls[-1].message
        assert not any(call.done for call in calls[:-1])
    size = MAX_BODY + OVERHEAD
    room = (MAX_BYTES - 4 * MAX_CALLS * size) // size
    agent = sim.client()
    calls = [agent.send("call", "more", b"x" * MAX_BODY) for _ in range(room + 1)]
    sim.turn()
    assert [call.done for call in calls] == [False] * room + [True]
    assert calls[-1].errno == Errno.EAGAIN and str(MAX_BYTES) in calls[-1].message


def test_names_are_bounded(sim: Sim) -> None:
    client = sim.client()
    replies = [client.send("bind", f"p{n}") for n in range(MAX_NAMES + 1)]
    sim.turn()
    assert {r.errno for r in replies[:-1]} == {0} and replies[-1].errno == Errno.EAGAIN
    assert client.ask("bind", "p0", 0).errno == 0 and client.ask("bind", "again").errno == 0


@pytest.mark.parametrize("taken", [False, True])
def test_a_call_whose_time_is_over(sim: Sim, taken: bool) -> None:
    tools, agent = server(sim), sim.client()
    call = agent.send("call", "tools", b"x", 2.0)
    sim.turn()
    got = tools.ask("recv", "tools").result if taken else None
    timeout = sim.kernel.timeout()
    assert timeout is not None and 1.9 < timeout <= 2.0, "the loop wakes up for it"
    sim.clock.now += 1.9
    sim.turn()
    assert not call.done
    sim.clock.now += 0.2
    sim.turn()
    assert call.errno == Errno.ETIMEDOUT
    assert ("not answered" if taken else "not taken") in call.message
    assert sim.kernel.timeout() is None
    if got is not None:
        assert tools.ask("reply", got.message).errno == Errno.ESRCH
    else:
        assert tools.ask("recv", "tools", None, 0.0).errno == Errno.ETIMEDOUT


def test_a_recv_whose_time_is_over_takes_nothing(sim: Sim) -> None:
    tools, agent = server(sim), sim.client()
    late, kept = tools.send("recv", "tools", None, 1.0), tools.send("recv", "tools", None, 9.0)
    sim.turn()
    sim.clock.now += 1.5
    sim.turn()
    assert late.errno == Errno.ETIMEDOUT and not kept.done
    agent.send("call", "tools", b"x")
    sim.turn()
    assert kept.result.body == b"x"
    tools.ask("reply", kept.result.message)


def test_deadlines_of_calls_that_have_ended_are_not_kept(sim: Sim) -> None:
    tools, agent, other = server(sim), sim.client(), sim.client()
    server(sim, "slow")
    other.send("call", "slow", b"", 1e5)  # stays the next one that is due
    for _ in range(300):
        agent.send("call", "tools", b"", 1e6)
        tools.ask("reply", tools.ask("recv", "tools").result.message)
    assert len(sim.system.ports._due) < 100
