"""A kernel that saves everything: what it takes meanwhile, what fails, and what it costs."""

from collections.abc import Callable
from typing import Any

import pytest

from syscalls.abi import Finish, Restore
from syscalls.errors import Errno
from tests.helpers.disks import FailingFiles, MemoryFiles
from tests.helpers.hibernating import (
    HibernatingSim,
    Known,
    all_there,
    family,
    goes_on,
    grown,
    ids_of,
    program,
    reunited,
    slowly,
)
from tests.helpers.sim import Reply, SimClient


def test_no_new_work_while_it_saves_but_looks_and_ends() -> None:
    sim = HibernatingSim(MemoryFiles())
    client, known = family(sim)
    first = next(iter(known.ids))
    victim, victim_known = family(sim, "victim", 50)
    slow = client.send("infer", first, 500, 0.0)
    sim.until(lambda: bool(slow.tokens))
    operator = sim.client()
    reply = operator.send("shutdown", 1000.0, True)
    sim.turn()
    handle = client.new_handle()
    refused: list[tuple[Any, ...]] = [
        ("alloc_ctx", handle), ("fork_ctx", first, handle), ("trim_ctx", first, 3),
        ("infer", first + 1, 3), ("save_ctx", first, "x"), ("load_ctx", handle, "x"),
        ("spawn", "x"), ("advise_ctx", first, "pin"), ("load_model", "m", "null:vocab=9"),
    ]  # fmt: skip
    for name, *args in refused:
        assert client.ask(name, *args).errno == Errno.ECANCELED, name
    assert client.ask("append", first, ids=[1]).errno == Errno.ECANCELED
    assert client.ask("stat_task").errno == 0 and client.ask("read_ctx", first).errno == 0
    assert operator.ask("shutdown", 0.0, True).errno == Errno.EBUSY
    assert victim.ask("free_ctx", next(iter(victim_known.ids))).errno == 0
    assert not reply.done, "the infer has its grace"
    assert client.ask("cancel", slow.call).errno == 0
    sim.until(lambda: reply.done)
    assert reply.errno == 0 and reply.result.contexts == 7
    assert sim.kernel.stopped


def test_what_was_queued_before_ends_too() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    client, known = program(sim)
    handle = grown(client, known, ids_of(3, 30))
    slow = client.send("infer", handle, 500, 0.0)
    queued = client.send("append", handle, ids=[5, 6], flags=1)
    behind = client.send("infer", handle, 3, 0.0, flags=1)
    sim.until(lambda: bool(slow.tokens))
    waiting = client.send("wait", 0)
    assert sim.hibernate().errno == 0
    client.read()
    assert slow.result.finish == Finish.CANCELLED
    assert queued.done and waiting.done, "each call has its end"
    assert behind.result.finish == Finish.CANCELLED
    known.ids[handle] += slow.tokens
    if not queued.errno:
        known.ids[handle] += [5, 6]
    assert client.session_events[-1][2] == Errno.ECONNRESET
    assert client.session_events[-1][5] == {"saved": 1}
    sim = HibernatingSim(files)
    reunited(sim, known)
    sim.leave()


def test_what_is_given_up_in_the_middle_does_not_come_back() -> None:
    """Contexts are freed, and programs die, at every moment of the way down."""
    moment, free = 0, Reply(0, "")
    while True:
        files = MemoryFiles()
        sim = HibernatingSim(files)
        client, known = family(sim)
        dying, _ = family(sim, "dying", 60)
        reply = sim.client().send("shutdown", 0.0, True)
        freed = False
        for now in slowly(sim, lambda: sim.kernel.stopped):  # noqa: B023
            if now == moment:
                freed = True
                free = client.send("free_ctx", 1)
                sim.front.dead.add(dying.route)
        if not freed:
            return
        assert reply.errno == 0
        sim = HibernatingSim(files)
        attached, answer = sim.attach(known.pid, known.token)
        assert answer.errno == 0
        gone = attached.ask("read_ctx", 1).errno == Errno.EBADCTX
        assert gone == (free.done and not free.errno), "what was given up is gone for good"
        assert sim.system.comeback.left == 0
        if gone:
            del known.ids[1]
        all_there(attached, known)
        sim.leave()
        assert sim.saves(sim.client()) == []
        moment += 1


# --- it fails, and goes on ------------------------------------------------------------------------


def test_without_a_state_directory_it_is_refused() -> None:
    sim = HibernatingSim(MemoryFiles(), state_dir="", keys_dir="")
    _, known = family(sim)
    assert sim.hibernate().errno == Errno.ENOTSUP
    assert not sim.kernel.stopped and known
    assert sim.client().ask("shutdown", 0.0).errno == 0
    sim.until(lambda: sim.kernel.stopped)


def _goes_on_after(sim: HibernatingSim, client: SimClient, known: Known) -> None:
    """A hibernation that has failed has changed nothing."""
    sim.until(lambda: not sim.system.store.busy)
    sim.settle()
    sim.check()
    assert not sim.kernel.stopped and sim.system.hibernation is None
    all_there(client, known)
    for handle, ids in known.ids.items():
        if ids:
            goes_on(client, handle, ids, 1)
    known.ids[client.context([3, 4])] = [3, 4]


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("code", ["short", 5])
def test_a_disk_that_fails_at_every_operation(forever: bool, code: int | str) -> None:
    """It does not stop, nothing is lost, and the next try, on a disk with room, succeeds."""
    at, outcomes = 1, set()
    while True:
        inner = MemoryFiles()
        sim = HibernatingSim(inner)
        client, known = family(sim)
        failing = FailingFiles(inner, at, code, forever)
        sim.change_disk(failing)
        reply = sim.hibernate()
        if not failing.hit:
            break
        outcomes.add(reply.errno)
        if reply.errno:
            assert reply.errno in (Errno.ENOSPC, Errno.EIO)
            sim.change_disk(inner)
            _goes_on_after(sim, client, known)
            assert sim.hibernate().errno == 0
        sim = HibernatingSim(inner)
        reunited(sim, known)
        sim.leave()
        at += 5
    assert Errno.ENOSPC in outcomes or Errno.EIO in outcomes


def _dies(what: Callable[[HibernatingSim], None], moment: int) -> bool:
    """Let something die at a moment of the way down; False when there is no such moment."""
    files = MemoryFiles()
    sim = HibernatingSim(files, host_blocks=32)
    client, known = family(sim)
    reply = sim.client().send("shutdown", 0.0, True)
    died = False
    for now in slowly(sim, lambda: reply.done):
        if now == moment:
            died = True
            what(sim)
    if not died:
        return False
    if reply.errno:
        _goes_on_after(sim, client, known)
        other = HibernatingSim(files.copy(), host_blocks=32)
        assert other.system.comeback.state is Restore.NONE, (
            "nothing is left of it, the record least"
        )
        assert other.saves(other.client()) == []
        assert sim.hibernate().errno == 0
    sim = HibernatingSim(files, host_blocks=32)
    reunited(sim, known)
    sim.leave()
    assert sim.saves(sim.client()) == []
    return True


@pytest.mark.parametrize("what", ["store", "driver"])
def test_a_death_at_every_moment_of_the_way_down(what: str) -> None:
    def die(sim: HibernatingSim) -> None:
        (sim.loopback if what == "store" else sim.link).die()

    moment = 0
    while _dies(die, moment):
        moment += 1
    assert moment > 14
