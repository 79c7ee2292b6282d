"""attach: who may become the program of a task that came back, when, and what nobody comes for."""

from kernel.task import INIT
from syscalls.abi import Sig
from syscalls.errors import Errno
from tests.helpers.disks import MemoryFiles
from tests.helpers.hibernating import (
    HibernatingSim,
    all_there,
    family,
    program,
    reunited,
    slowly,
)


def test_attach_refuses_all_strangers_alike() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    sim.hibernate()
    sim = HibernatingSim(files)
    other, other_known = program(sim, "other")
    wrong = [
        (known.pid, bytes(32)), (known.pid, b""), (known.pid, known.token[:-1] + b"\0"),
        (known.pid + 500, known.token), (INIT, known.token), (INIT, bytes(32)), (0, b""),
        (other_known.pid, other_known.token),  # it has a program
    ]  # fmt: skip
    answers = {(r.errno, r.message) for r in (sim.attach(*args)[1] for args in wrong)}
    assert len(answers) == 1 and answers.pop()[0] == Errno.ESRCH
    assert other.ask("attach", known.pid, known.token).errno == Errno.EBUSY
    client = reunited(sim, known)
    assert sim.attach(known.pid, known.token)[1].errno == Errno.ESRCH, "once is enough"
    assert client.ask("attach", known.pid, known.token).errno == Errno.EBUSY
    sim.leave()


def test_hello_and_attach_wait_for_what_they_need() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    sim.hibernate()
    sim = HibernatingSim(files, wait=False, boot=False)
    client = sim.client(hello=False)
    attach = client.send("attach", known.pid, known.token)
    twice = client.send("attach", known.pid, known.token)
    early = sim.client(hello=False)
    hello = early.send("hello", "early")
    wrong = sim.client(hello=False).send("attach", known.pid, bytes(32))
    gone = sim.client(hello=False)
    gone.send("hello", "gone")
    sim.turn(pump=0)
    assert twice.errno == Errno.EBUSY and not attach.done and not hello.done
    sim.front.dead.add(gone.route)
    task = sim.system.tasks
    for _ in slowly(sim, lambda: attach.done):
        if hello.done:
            assert hello.result.pid > known.pid, "no pid is given out twice"
            assert wrong.errno == Errno.ESRCH, "a stranger learns nothing from how long it takes"
        if task.peek(known.pid) is None:
            assert not hello.done
    assert attach.errno == 0
    all_there(client, known)
    sim.settle_restore()
    assert len(task) == 3, "init, the one that came back, the early one"
    sim.leave()


def test_attach_waits_for_the_contexts_of_its_task_only() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    _, other = family(sim, "other", 30)
    sim.hibernate()
    sim = HibernatingSim(files, wait=False, boot=False)
    tasks, clients = sim.system.tasks, [sim.client(hello=False) for _ in range(2)]
    sim.until(lambda: tasks.peek(known.pid) is not None)
    assert sim.system.num_contexts == 0
    first = clients[0].send("attach", known.pid, known.token)
    wrong = clients[1].send("attach", other.pid, known.token)
    for _ in slowly(sim, lambda: first.done):
        assert len(tasks.find(known.pid).contexts) < 5
    assert first.errno == 0 and wrong.errno == Errno.ESRCH
    assert len(tasks.find(known.pid).contexts) == 4 and len(tasks.find(other.pid).contexts) < 4
    all_there(clients[0], known)
    sim.settle_restore()
    sim.leave()


def test_a_lease_ends_what_has_nothing_and_keeps_the_rest() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    _, idle = program(sim, "idle")
    sim.hibernate()
    sim = HibernatingSim(files, attach_s=50.0)
    sim.clock.now += 49.0
    sim.turn()
    assert sim.system.tasks.peek(idle.pid) is not None
    sim.clock.now += 2.0
    sim.until(lambda: sim.system.tasks.peek(idle.pid) is None)
    task = sim.system.tasks.find(known.pid)
    assert len(task.contexts) == 4 and all(ctx.demoted for ctx in task.contexts.values())
    assert sim.hibernate().errno == 0, "and it is saved again"
    sim = HibernatingSim(files)
    reunited(sim, known)
    sim.leave()


def test_the_operator_ends_what_came_back() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    sim.hibernate()
    sim = HibernatingSim(files)
    for signal in (Sig.STOP, Sig.CONT, Sig.INT, Sig.TERM):
        assert sim.client().ask("kill", known.pid, int(signal)).errno == 0
    assert sim.attach(known.pid, known.token)[1].errno == Errno.ESRCH
    sim.leave()
