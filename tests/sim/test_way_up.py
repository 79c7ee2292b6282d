"""Kernels, stores and drivers that die while everything is saved or comes back, at every moment."""

from collections.abc import Callable

import pytest

from drivers.store import base
from syscalls.abi import Restore, Sig
from syscalls.errors import Errno
from tests.helpers.disks import MemoryFiles
from tests.helpers.hibernating import (
    HibernatingSim,
    Known,
    all_there,
    family,
    forked,
    goes_on,
    grown,
    ids_of,
    program,
    reunited,
    slowly,
)
from tests.helpers.sim import Reply


def test_a_kernel_killed_at_every_moment_of_the_way_down() -> None:
    """The next one has all of it, or nothing; in between its contexts are saves to load by hand."""
    moment, states = 0, set()
    while True:
        files = MemoryFiles()
        sim = HibernatingSim(files)
        _, known = family(sim)
        sim.client().send("shutdown", 0.0, True)
        killed = False
        for now in slowly(sim, lambda: sim.kernel.stopped):  # noqa: B023
            if now == moment:
                killed = True
                break
        sim.crash()
        if not killed:
            break
        sim = HibernatingSim(files)
        states.add(sim.system.comeback.state)
        client, reply = sim.attach(known.pid, known.token)
        if sim.system.comeback.state is Restore.NONE:
            assert reply.errno == Errno.ESRCH
            client, _ = program(sim)
            for number, name in enumerate(sim.saves(client)):
                assert client.ask("load_ctx", 5 + number, name).errno == 0
                handle = int(name.rpartition("/")[2])
                assert list(client.ask("read_ctx", 5 + number).ids) == known.ids[handle]
                goes_on(client, 5 + number, list(known.ids[handle]), 1)
                assert client.ask("drop_save", name).errno == 0
        else:
            assert reply.errno == 0
            all_there(client, known)
        assert sim.saves(client) == []
        sim.leave()
        moment += 1
    assert states == {Restore.NONE, Restore.DONE}


def test_kernels_killed_at_every_moment_of_the_way_up() -> None:
    """A crash in the middle begins anew; one in that, too; a program that came early loses none."""
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    sim.hibernate()
    start = files.copy()
    moment = 0
    while True:
        files = start.copy()
        killed = 0
        for again in (moment, moment // 2):
            sim = HibernatingSim(files, wait=False, boot=False)
            for now in slowly(sim, lambda: not sim.system.comeback.under_way):  # noqa: B023
                assert len([t for t in sim.system.tasks if t.pid == known.pid]) <= 1
                if now == again:
                    killed += 1
                    break
            over = sim.system.comeback.head is not None and sim.system.comeback.head.restored
            done = any(isinstance(m, base.DropSave) for m in sim.asked)
            sim.crash()
            files = files.copy()
            if over or done:
                break
        if not killed:
            return
        if not (over or done):
            sim = HibernatingSim(files)
            reunited(sim, known)
            assert sim.saves(sim.client()) == []
            sim.leave()
        else:  # it was there as a whole before anything of it went
            sim = HibernatingSim(files)
            assert sim.system.comeback.state in (Restore.NONE, Restore.DONE)
            assert sim.system.comeback.left == 0
            assert sim.saves(sim.client()) == []
            sim.leave()
        moment += 1


@pytest.mark.parametrize("what", ["store", "driver"])
def test_a_death_at_every_moment_of_the_way_up(what: str) -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files, host_blocks=32)
    _, known = family(sim)
    sim.hibernate()
    start = files.copy()
    moment = 0
    while True:
        sim = HibernatingSim(start.copy(), host_blocks=32, wait=False, boot=False)
        died = False
        for now in slowly(sim, lambda: not sim.system.comeback.under_way):  # noqa: B023
            if now == moment:
                died = True
                (sim.loopback if what == "store" else sim.link).die()
        if not died:
            assert moment > 14
            return
        sim.settle()
        sim.check()
        reunited(sim, known)
        assert sim.saves(sim.client()) == []
        sim.leave()
        moment += 1


def test_a_task_that_is_killed_at_every_moment_of_the_way_up() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    sim.hibernate()
    start, moment, killed = files.copy(), 0, True
    while killed:
        sim = HibernatingSim(start.copy(), wait=False, boot=False)
        killer, kill = sim.client(hello=False), Reply(0, "")
        killer.send("hello", "killer")
        killed = False
        for now in slowly(sim, lambda: not sim.system.comeback.under_way):  # noqa: B023
            if now == moment:
                killed = True
                kill = killer.send("kill", known.pid, int(Sig.KILL))
        sim.settle()
        assert not killed or kill.done
        assert (sim.system.tasks.peek(known.pid) is None) == (killed and not kill.errno)
        assert sim.saves(killer) == []
        sim.check()
        sim.leave()
        moment += 1
    assert moment > 20


def test_an_old_record_that_is_put_back_is_no_record() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    sim.hibernate()
    old = files.copy()
    sim = HibernatingSim(files)
    sim.crash()
    for path, inode in old.names_of.items():
        if path not in files.names_of:
            files.names_of[path] = number = 1 + max(files.inodes)
            files.inodes[number] = bytearray(old.inodes[inode])
    sim = HibernatingSim(files)
    assert sim.system.comeback.state is Restore.FAILED
    assert sim.attach(known.pid, known.token)[1].errno == Errno.ESRCH
    assert len(sim.system.tasks) == 1 and sim.system.num_contexts == 0
    sim.leave()


def test_a_thousand_contexts_in_bounded_turns() -> None:
    """No turn asks the store for more than a few messages, nor makes more than one context."""
    files = MemoryFiles()
    sim = HibernatingSim(files, num_blocks=256, overcommit=1000.0)
    client, known = program(sim)
    first = grown(client, known, ids_of(1, 33))
    for _ in range(999):
        forked(client, known, first, [])
    reply = sim.client().send("shutdown", 0.0, True)
    most = _most_messages(sim, lambda: sim.kernel.stopped)
    assert most <= 3 and reply.result.contexts == 1000

    sim = HibernatingSim(files, num_blocks=256, overcommit=1000.0, wait=False, boot=False)
    made = 0

    def few() -> bool:
        nonlocal made
        now = sim.system.num_contexts
        assert now - made <= 2
        made = now
        return not sim.system.comeback.under_way

    assert _most_messages(sim, few) <= 3
    assert made == 1000
    client, _ = sim.attach(known.pid, known.token)
    all_there(client, Known(known.pid, known.token, dict(list(known.ids.items())[::97])))
    sim.leave()


def _most_messages(sim: HibernatingSim, done: Callable[[], bool]) -> int:
    most = 0
    for _ in range(200_000):
        if done():
            return most
        before = len(sim.asked)
        sim.clock.now += 0.001
        sim.kernel.turn()
        most = max(most, len(sim.asked) - before)
        sim.asked.clear()
        sim.link.pump()
        sim.loopback.pump()
        for client in sim.clients:
            client.read()
    raise AssertionError("not done")
