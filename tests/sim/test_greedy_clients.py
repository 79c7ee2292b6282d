"""Clients that want too much, come again without having left, or take another's place."""

from typing import Any

import pytest

from kernel import syscall
from syscalls.abi import Finish, Flag, Sig
from syscalls.errors import Errno
from tests.helpers.sim import Sim, SimClient

QUEUE = int(Flag.QUEUE)


@pytest.fixture
def sim() -> Sim:
    return Sim()


def started(sim: Sim, **config: Any) -> SimClient:
    client = sim.client()
    client.ask("alloc_ctx", 1)
    client.ask("append", 1, ids=[1, 2, 3])
    return client


def pid_of(sim: Sim, client: SimClient) -> int:
    task = sim.system.sessions[client.route].task
    assert task is not None
    return task.pid


def test_there_is_no_call_0_to_cancel(sim: Sim) -> None:
    client = started(sim)
    running = client.send("infer", 1, 50, 0.0)
    queued = [client.send("infer", 1, 5, 0.0, flags=QUEUE) for _ in range(2)]
    sim.turn()
    assert client.ask("cancel", 0).errno == Errno.ESRCH
    sim.until(lambda: all(reply.done for reply in (running, *queued)))
    assert [reply.result.finish for reply in queued] == [Finish.LENGTH] * 2


@pytest.mark.parametrize("relief", ["cancel", "free_ctx", "exit", "kill"])
def test_a_client_at_its_limit_of_calls_may_still_end_some(relief: str) -> None:
    sim = Sim(max_calls=4)
    client = started(sim)
    infers = [client.send("infer", 1, 500, 0.0, flags=QUEUE) for _ in range(4)]
    sim.turn(pump=0)
    refused = client.send("stat_ctx", 1)
    sim.turn(pump=0)
    assert refused.errno == Errno.EAGAIN
    kill = (pid_of(sim, client), int(Sig.INT))
    arguments = {"cancel": (infers[0].call,), "free_ctx": (1,), "exit": (), "kill": kill}[relief]
    assert client.ask(relief, *arguments).errno == 0
    assert infers[0].done


def test_ids_that_can_never_fit_do_not_wait_in_a_queue(sim: Sim) -> None:
    client = started(sim)
    infer = client.send("infer", 1, 500, 0.0)
    sim.turn(pump=0)
    late = client.send("append", 1, ids=[1] * 8193, flags=QUEUE)
    sim.turn(pump=0)
    assert late.errno == Errno.E2BIG and "8193" in late.message and not infer.done


def test_what_waits_in_a_queue_is_run_once(sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again and again each time when one of them has come to its end."""
    client = started(sim)
    calls = [client.send("infer", 1, 1, 0.0, flags=QUEUE) for _ in range(200)]
    runs = 0
    run = syscall.run

    def counted(*args: Any, **options: Any) -> None:
        nonlocal runs
        runs += 1
        run(*args, **options)

    monkeypatch.setattr(syscall, "run", counted)
    sim.until(lambda: all(reply.done for reply in calls))
    assert runs <= 2 * len(calls)
    assert [reply.result.length for reply in calls] == list(range(4, 204)), "in their order"


def test_int_ends_a_wait(sim: Sim) -> None:
    parent, operator = sim.client(), sim.client()
    child = parent.ask("spawn", "kid").result.pid
    wait = parent.send("wait", child)
    sim.turn()
    operator.ask("kill", pid_of(sim, parent), int(Sig.INT))
    sim.turn()
    assert wait.errno == Errno.ECANCELED and "INT" in wait.message
    operator.ask("kill", child, int(Sig.TERM))
    assert parent.ask("wait", child).result.pid == child, "the status is still there"


def test_a_program_that_connects_again_has_left_its_old_session(sim: Sim) -> None:
    client = started(sim)
    sim.settle()
    sim.front.closed.add(client.route)
    assert sim.pool.counts.used == 1
    again = sim.client(hello=False)
    again.pid = client.pid
    assert again.ask("hello", "again").errno == 0
    sim.settle()
    assert client.route not in sim.system.sessions and sim.pool.counts.used == 0
    assert len(sim.system.tasks) == 2, "init and the one that came again"


def test_two_connections_of_one_program_are_two_tasks(sim: Sim) -> None:
    client = started(sim)
    other = sim.client(hello=False)
    other.pid = client.pid
    assert other.ask("hello", "other").errno == 0
    assert client.ask("stat_ctx", 1).errno == 0


def test_sessions_without_a_connection_make_room_at_the_limit() -> None:
    sim = Sim(max_sessions=3)
    gone = [sim.client() for _ in range(2)]
    sim.client()
    refused = sim.client(hello=False)
    refused.send("hello", "one too many")
    sim.turn()
    assert [event[2] for event in refused.session_events] == [Errno.EAGAIN]
    sim.front.closed.update(client.route for client in gone)
    sim.clock.now += 2  # they are asked about once a second
    assert sim.client(hello=False).ask("hello", "now").errno == 0
    assert len(sim.system.sessions) == 2


def test_a_routing_id_is_no_identity(sim: Sim) -> None:
    """A client may choose its id: another program's, whose connection is gone."""
    victim = started(sim)
    sim.front.closed.add(victim.route)
    thief = sim.client(hello=False)
    sim.clients.remove(victim)
    thief.route = victim.route
    reply = thief.ask("read_ctx", 1)
    assert reply.errno == Errno.EPERM and not reply.ids
    assert len(sim.system.tasks) == 1, "the victim's task ended with its session"


def test_who_takes_the_route_of_a_session_that_is_being_closed_keeps_it(sim: Sim) -> None:
    """Three messages of no ABI, and another program with the same id in the same turn."""
    rude = sim.client()
    other = sim.client(hello=False)
    sim.clients.remove(rude)
    other.route = rude.route
    for _ in range(3):
        rude.send_raw([b"\xc1"])
    other.send("hello", "other")
    alloc = other.send("alloc_ctx", 1)
    sim.turn()
    assert alloc.done and len(sim.system.sessions) == 1
    assert [task.name for task in sim.system.tasks] == ["init", "other"]
    sim.front.dead.add(other.route)
    sim.turn()
    sim.check_empty()


def test_at_the_limit_connections_are_looked_at_once_in_a_while() -> None:
    sim = Sim(max_sessions=3)
    for _ in range(3):
        sim.client()
    asked = 0
    alive = sim.front.alive

    def counted(route: bytes) -> bool:
        nonlocal asked
        asked += 1
        return alive(route)

    sim.front.alive = counted  # type: ignore[method-assign]
    for _ in range(50):
        sim.client(hello=False).send("hello", "one too many")
        sim.turn()
    assert asked <= 6


def test_more_best_ids_than_there_are_ids() -> None:
    sim = Sim(path="null:vocab=8")
    client = started(sim)
    refused = client.ask("infer", 1, 3, 0.0, 0, 1.0, 0.0, None, [], True, 9)
    assert refused.errno == Errno.EINVAL and "8" in refused.message
    assert client.ask("infer", 1, 3, 0.0, 0, 1.0, 0.0, None, [], True, 8).errno == 0
    assert sim.system.device.epoch == 1
