"""Calls that would wait for each other."""

from collections.abc import Iterator

import pytest

from kernel.mail import MAX_LEVEL
from syscalls.errors import Errno
from tests.helpers.mailing import check_mail, server, task_of
from tests.helpers.sim import Sim, SimClient


@pytest.fixture
def sim() -> Iterator[Sim]:
    sim = Sim()
    yield sim
    check_mail(sim)
    sim.leave()


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
