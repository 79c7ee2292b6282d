"""Ports: bind, call, recv and reply, and every way in which a call can end."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from kernel.mail import MAX_CALLS, MAX_LEVEL, reranked
from kernel.policies.priority import Priority
from kernel.port import MAX_BYTES, MAX_NAMES, OVERHEAD
from kernel.task import Task
from syscalls import abi, wire
from syscalls.abi import MAX_BODY, Sig
from syscalls.errors import Errno
from tests.helpers.mailing import check_mail
from tests.helpers.sim import Reply, Sim, SimClient


@pytest.fixture
def sim() -> Iterator[Sim]:
    sim = Sim()
    yield sim
    check_mail(sim)
    sim.leave()


def task_of(client: SimClient) -> Task:
    task = client.sim.system.sessions[client.route].task
    assert task is not None
    return task


def wait_of(client: SimClient, by: SimClient) -> tuple[str, str]:
    """Return state and reason of a client's task as another one sees them."""
    row = by.ask("stat_task", task_of(client).pid).result
    return row.state, row.wait


def server(sim: Sim, name: str = "tools", depth: int = 64) -> SimClient:
    client = sim.client()
    assert client.ask("bind", name, depth).errno == 0
    return client


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


# --- time -----------------------------------------------------------------------------------------


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


# --- cycles -------------------------------------------------------------------------------------


def ring(sim: Sim, count: int) -> list[SimClient]:
    return [server(sim, f"p{n}") for n in range(count)]


def test_a_call_to_oneself_is_a_deadlock(sim: Sim) -> None:
    client = server(sim)
    assert client.ask("call", "tools", b"").errno == Errno.EDEADLK


@pytest.mark.parametrize("count", [2, 3, MAX_LEVEL])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_call_that_closes_a_cycle_is_a_deadlock(sim: Sim, count: int, backwards: bool) -> None:
    """In whichever order the others have come to wait."""
    tasks = ring(sim, count)
    order = range(count - 1)
    for n in reversed(order) if backwards else order:
        tasks[n].send("call", f"p{n + 1}", b"")
        sim.turn()
    check_mail(sim)
    closing = tasks[-1].ask("call", "p0", b"")
    assert closing.errno == Errno.EDEADLK and task_of(tasks[0]).name in closing.message
    outside = sim.client().send("call", "p0", b"")
    sim.turn()
    assert not outside.done, "who is not in it may wait"


@pytest.mark.parametrize("order", ["forth", "back", "middle last"])
def test_a_row_of_callers_is_no_longer_than_eight(sim: Sim, order: str) -> None:
    tasks = ring(sim, MAX_LEVEL + 2)
    links = list(range(MAX_LEVEL + 1))
    if order == "back":
        links.reverse()
    elif order == "middle last":
        links.append(links.pop(4))
    replies = []
    for n in links:
        replies.append(tasks[n].send("call", f"p{n + 1}", b""))
        sim.turn()
        check_mail(sim)
    assert [reply.done for reply in replies] == [False] * MAX_LEVEL + [True]
    assert replies[-1].errno == Errno.EINVAL and str(MAX_LEVEL) in replies[-1].message


def test_a_diamond_is_no_cycle(sim: Sim) -> None:
    top, left, right, bottom = ring(sim, 4)
    calls = [
        top.send("call", "p1", b""), top.send("call", "p2", b""), left.send("call", "p3", b""),
        right.send("call", "p3", b""),
    ]  # fmt: skip
    sim.turn()
    check_mail(sim)
    assert not any(call.done for call in calls)
    assert bottom.ask("call", "p0", b"").errno == Errno.EDEADLK


# --- ends ---------------------------------------------------------------------------------------


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


# --- who pays, and whose place it is --------------------------------------------------------------


def nice(client: SimClient, value: int) -> None:
    task_of(client).account.nice = value


def test_what_a_server_computes_is_its_callers(sim: Sim) -> None:
    tools, agents = server(sim), [sim.client() for _ in range(2)]
    own, one, two = (task_of(c).account for c in (tools, *agents))
    ctx = tools.context([1, 2, 3])
    running = tools.send("infer", ctx, 900, 0.0)
    sim.turn()
    request = sim.system.sessions[tools.route].infers[running.call]
    assert request.payer is request.rank is own
    for agent in agents:
        agent.send("call", "tools", b"")
    sim.turn()
    assert request.payer is own, "what waits does not pay"
    first = tools.ask("recv", "tools").result
    assert request.payer is request.rank is one, "it runs, and changes hands"
    second = tools.ask("recv", "tools").result
    assert request.payer is two, "the one that was taken last"
    other = tools.send("infer", tools.context([4, 5]), 900, 0.0)
    sim.turn()
    assert sim.system.sessions[tools.route].infers[other.call].payer is two
    tools.ask("reply", second.message)
    assert request.payer is one
    tools.ask("reply", first.message)
    assert request.payer is request.rank is own
    check_mail(sim)


def test_a_server_has_the_place_of_the_best_that_waits_for_it(sim: Sim) -> None:
    """Queued and taken, through other servers, up to the last one."""
    backend, middle = server(sim, "back"), server(sim, "mid")
    batch, person = sim.client(), sim.client()
    nice(batch, 19), nice(person, -5), nice(backend, 10), nice(middle, 10)
    batch.send("call", "mid", b"")
    middle.ask("recv", "mid")
    middle.send("call", "back", b"")
    got = backend.ask("recv", "back").result
    ctx = backend.context([1, 2])
    infer = backend.send("infer", ctx, 900, 0.0)
    sim.turn()
    request = sim.system.sessions[backend.route].infers[infer.call]
    # The middle server is at 10 itself, but works for the batch.
    assert request.payer is task_of(batch).account
    assert request.rank is task_of(batch).account
    urgent = person.send("call", "mid", b"")
    sim.turn()
    check_mail(sim)
    assert request.payer is task_of(batch).account, "who waits does not pay"
    assert request.rank is task_of(person).account, "but nobody stands in front of it"
    person.ask("cancel", urgent.call)
    assert request.rank is task_of(batch).account
    backend.ask("reply", got.message)
    assert request.rank is request.payer is task_of(backend).account
    check_mail(sim)


def test_a_caller_that_is_reniced_takes_its_servers_along(sim: Sim) -> None:
    back, middle, other = server(sim, "back"), server(sim, "mid"), sim.client()
    agents = [sim.client(), sim.client()]
    for agent in agents:
        agent.send("call", "mid", b"")
    sim.turn()
    middle.ask("recv", "mid")
    middle.send("call", "back", b"")
    other.send("call", "back", b"")
    sim.turn()
    one, two, third = (task_of(client).account for client in (*agents, other))
    assert task_of(back).rank is task_of(back).account
    for account, value, best in ((two, -5, two), (third, -3, two), (two, 7, third)):
        account.nice = value
        reranked(sim.system.tasks, account)
        check_mail(sim)
        assert task_of(back).rank is best
    third.nice = 9
    reranked(sim.system.tasks, third)
    nice(back, 19)
    reranked(sim.system.tasks, task_of(back).account)
    assert task_of(back).rank is one, "at nice 0, of the three that wait in the end"
    check_mail(sim)


def test_who_gives_up_does_not_pay_any_longer(sim: Sim) -> None:
    """Nor does one who has got the reply: the server that still asks others does it for itself."""
    back, other, middle = server(sim, "back"), server(sim, "other"), server(sim, "mid")
    agents = [sim.client(), sim.client()]
    calls = [agent.send("call", "mid", b"") for agent in agents]
    sim.turn()
    first = middle.ask("recv", "mid").result
    middle.send("call", "back", b"")
    back.ask("recv", "back")
    back.send("call", "other", b"")
    other.ask("recv", "other")
    second = middle.ask("recv", "mid").result  # it works for the second one, the others do not
    infer = other.send("infer", other.context([1]), 900, 0.0)
    sim.turn()
    request = sim.system.sessions[other.route].infers[infer.call]
    one, two, mid = (task_of(client).account for client in (*agents, middle))
    assert request.payer is one and task_of(middle).payer is two
    agents[0].ask("cancel", calls[0].call)
    assert request.payer is mid and task_of(middle).payer is two
    check_mail(sim)
    assert middle.ask("reply", first.message).errno == Errno.ESRCH
    middle.ask("reply", second.message)
    assert task_of(middle).payer is mid and request.payer is mid


def test_nobody_in_between_is_served_before_a_server_that_a_person_waits_for() -> None:
    """Priority inversion: the server is nicer than the batch, and the person is not."""
    sim = Sim(policy=Priority())
    tools, batch, person = server(sim), sim.client(), sim.client()
    nice(tools, 10), nice(batch, 0), nice(person, -10)
    served = tools.send("infer", tools.context([1, 2]), 900, 0.0)
    other = batch.send("infer", batch.context([3, 4]), 900, 0.0)
    sim.turn()

    def first() -> Any:
        requests = [r for r in sim.model.sched.requests.values() if not r.background]
        return next(iter(sim.model.sched.policy.order(requests)))

    requests = {c: sim.system.sessions[c.route].infers for c in (tools, batch)}
    assert first() is requests[batch][other.call]
    call = person.send("call", "tools", b"")
    sim.turn()
    assert first() is requests[tools][served.call], "before it takes the message, too"
    person.ask("cancel", call.call)
    assert first() is requests[batch][other.call]
    sim.leave()


def test_an_append_in_the_background_changes_hands_too(sim: Sim) -> None:
    tools, agent = server(sim), sim.client()
    handle = tools.new_handle()
    tools.ask("alloc_ctx", handle)
    tools.send("append", handle, ids=[1] * 500)
    agent.send("call", "tools", b"")
    sim.turn()
    tools.send("recv", "tools")
    sim.kernel_turn()
    request = task_of(tools).contexts[handle].request
    assert request is not None and request.background
    assert request.payer is task_of(agent).account
    check_mail(sim)


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
