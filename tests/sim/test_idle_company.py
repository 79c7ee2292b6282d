"""Those who do nothing cost nothing: what a step takes does not depend on how many they are."""

import pytest

from kernel.loop import FEW_TASKS
from kernel.session import Session
from kernel.task import Task
from tests.helpers.oracle import expected
from tests.helpers.sim import Sim

IDLE = FEW_TASKS + 100
STEPS = 40


def test_idle_tasks_are_not_looked_at_while_others_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = Sim(num_blocks=1024)
    clients = [sim.client() for _ in range(IDLE)]
    for client in clients:
        client.context([1, 2, 3])
    sim.settle()
    infer = clients[7].send("infer", 1, STEPS, 0.0)
    sealed: list[Session] = []
    looks: list[Task] = []
    seal = Session.seal
    timed = Task.timed.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Session, "seal", lambda self: (sealed.append(self), seal(self))[1])
    monkeypatch.setattr(Task, "timed", property(lambda self: (looks.append(self), timed(self))[1]))
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([1, 2, 3], STEPS)
    assert len({session.route for session in sealed}) == 1 and len(sealed) <= 4 * STEPS
    assert len(looks) <= 2 * (IDLE + 1), "once a second"
    monkeypatch.undo()
    sim.leave()


def test_a_ticket_among_many_tasks_ends_in_time() -> None:
    """Whether the time of any task comes is not seen in every turn, but soon enough."""
    sim = Sim(num_blocks=1024, ticket_s=5.0)
    clients = [sim.client() for _ in range(IDLE)]
    spawned = clients[0].ask("spawn", "child")
    assert spawned.errno == 0
    born = sim.clock.now
    while any(task.pid == spawned.result.pid and not task.ended_already
              for task in sim.system.tasks):  # fmt: skip
        timeout = sim.kernel.timeout()
        assert timeout is not None and sim.clock.now < born + 5.0 + 3.0
        sim.clock.now += max(timeout, 0.001)
        sim.kernel.turn()
    sim.clock.now += sim.config.zombie_s + 2
    sim.leave()


def test_who_does_not_read_is_tried_again_and_dropped_in_the_end() -> None:
    sim = Sim(num_blocks=64, stalled_s=5.0)
    client, other = sim.client(), sim.client()
    sim.front.blocked.add(client.route)
    client.send("stat_task")
    sim.turn()
    assert list(sim.system.speaking) == [sim.system.sessions[client.route]]
    sim.front.blocked.clear()
    sim.turn()
    assert not sim.system.speaking and client.calls[2].done
    sim.front.blocked.add(client.route)
    client.send("stat_task")
    sim.turn()
    sim.clock.now += 6.0
    sim.turn()
    assert client.route not in sim.system.sessions and not sim.system.speaking
    assert other.ask("stat_task").errno == 0
    sim.leave()
