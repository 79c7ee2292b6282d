"""Trees of tasks in a simulated kernel: programs that spawn programs, and what ps shows of them."""

from typing import Any

from kernel.task import Task
from syscalls import abi
from syscalls.abi import Event
from tests.helpers.sim import UID, Sim, SimClient


def pid_of(client: SimClient) -> int:
    """Return the pid of a program's task."""
    return task_of(client).pid


def task_of(client: SimClient) -> Task:
    task = client.sim.system.sessions[client.route].task
    assert task is not None
    return task


def child_of(parent: SimClient, name: str = "child", **place: Any) -> SimClient:
    """Spawn a task, and connect its program."""
    row = abi.Spawn(name, **place)
    return begin(parent.sim, parent.ask("spawn", *row).result.ticket, parent.uid)


def begin(sim: Sim, ticket: bytes, uid: int = UID, grace_s: float = 0.0) -> SimClient:
    """Connect the program of a ticket; its handles go on behind those that it finds."""
    client = sim.client(hello=False, uid=uid)
    hello = client.ask("hello", "program", ticket, False, None, grace_s)
    assert hello.errno == 0, hello.message
    client.handle = hello.result.connection << 24
    return client


def told(client: SimClient) -> list[int]:
    """Return the signals that a program has been told of."""
    return [event[2] for event in client.session_events if event[0] == Event.SIGNAL]


def chain(top: SimClient, depth: int) -> list[SimClient]:
    """Return programs, each the child of the one before it, the first one of `top`."""
    programs = [top]
    for _ in range(depth):
        programs.append(child_of(programs[-1]))
    return programs[1:]


def rows(client: SimClient) -> dict[int, abi.TaskRow]:
    """Return what ps shows, by pid."""
    found, cursor = {}, 0
    while True:
        page = client.ask("snapshot", "tasks", cursor).result
        found |= {row[0]: abi.TaskRow(*row) for row in page.rows}
        cursor = page.cursor
        if not cursor:
            return found
