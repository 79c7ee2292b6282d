"""Who pays for what a server computes, and in whose place it is done."""

from collections.abc import Iterator
from typing import Any

import pytest

from kernel.mail import reranked
from kernel.policies.priority import Priority
from syscalls.errors import Errno
from tests.helpers.mailing import check_mail, nice, server, task_of
from tests.helpers.sim import Sim


@pytest.fixture
def sim() -> Iterator[Sim]:
    sim = Sim()
    yield sim
    check_mail(sim)
    sim.leave()


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
