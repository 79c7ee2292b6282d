"""shutdown with save, and the next kernel: everything is back under its names, or all goes on."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from drivers.store import base
from kernel import journal
from kernel.policy import Fifo
from kernel.task import INIT
from syscalls.abi import Access, Finish, Restore, Sig
from syscalls.errors import Errno
from tests.helpers.disks import FailingFiles, MemoryFiles
from tests.helpers.hibernating import (
    HibernatingSim,
    Known,
    all_there,
    forked,
    goes_on,
    grown,
    program,
    slowly,
)
from tests.helpers.sim import Reply, SimClient


class Swapping(Fifo):
    """Takes no time to be quicker than a copy, however slow this machine is just now."""

    def swaps(self, tokens: int, copy_us: float, compute_us: float) -> bool:
        return True


def ids_of(seed: int, count: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(1, 251) for _ in range(count)]


def family(sim: HibernatingSim, name: str = "agent", seed: int = 1) -> tuple[SimClient, Known]:
    """Connect a program with a context, two forks of it and an empty one."""
    client, known = program(sim, name)
    first = grown(client, known, ids_of(seed, 70))
    second = forked(client, known, first, ids_of(seed + 1, 20))
    forked(client, known, second, [])
    known.ids[client.context([])] = []
    return client, known


def reunited(sim: HibernatingSim, known: Known) -> SimClient:
    """Attach as the program of a task, and check that all of it is there, and goes on."""
    client, reply = sim.attach(known.pid, known.token)
    assert reply.errno == 0, reply.message
    assert reply.result.pid == known.pid
    all_there(client, known)
    for handle, ids in known.ids.items():
        if ids:
            goes_on(client, handle, list(ids), 2)
            assert client.ask("trim_ctx", handle, len(ids)).errno == 0
    return client


# --- everything comes back ------------------------------------------------------------------------


@pytest.mark.parametrize("host_blocks", [0, 64])
def test_all_is_back_and_nothing_is_computed_again(host_blocks: int) -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files, host_blocks)
    _, known = family(sim)
    sim.check()
    reply = sim.hibernate()
    assert reply.errno == 0 and sim.kernel.stopped
    assert (reply.result.tasks, reply.result.contexts) == (1, 4)
    last_pid = sim.system.tasks.last_pid

    sim = HibernatingSim(files, host_blocks)
    assert sim.system.comeback.state is Restore.DONE
    assert sim.system.tasks.last_pid == last_pid > known.pid, "no pid is used again"
    sim.check()
    row = sim.client().ask("stat_task", known.pid).result
    assert (row.state, row.wait, row.contexts, row.host_pid) == ("S", "attach", 4, 0)
    client, attached = sim.attach(known.pid, known.token)
    all_there(client, known)
    for handle, ids in known.ids.items():
        if ids:
            reply = goes_on(client, handle, list(ids))
            assert reply.result.cached >= (len(ids) - 1) // 16 * 16
    assert sim.model.totals.prefill_tokens <= 3 * 16, "only what is left of a block is computed"
    assert attached.result.connection == 1
    new = 1 << 24 | 1
    assert client.ask("alloc_ctx", 9).errno == Errno.EINVAL, "a handle of the old connection"
    assert client.ask("alloc_ctx", new).errno == 0
    assert sim.saves(client) == []
    sim.leave()


def test_shared_kv_is_saved_once() -> None:
    sim = HibernatingSim(MemoryFiles())
    _, known = family(sim)
    sim.hibernate()
    blocks = sum(len(m.offsets) for m in sim.asked if isinstance(m, base.AddBlocks))
    lengths = [len(ids) // 16 for ids in known.ids.values()]
    assert blocks == max(lengths), "the forks have nothing of their own but the longest's tail"


def test_kv_of_every_tier_is_kept() -> None:
    """Some is on the device, some in the host tier, and some in the swap file only."""
    files = MemoryFiles()
    sim = HibernatingSim(files, host_blocks=32, swap_bytes=1 << 16, policy=Swapping())
    client, known = program(sim)
    handles = [grown(client, known, ids_of(n, 100), 1) for n in range(8)]
    for handle in handles[:7]:
        assert client.ask("advise_ctx", handle, "demote").errno == 0
    for _ in range(50):
        sim.turn()
    blocks = [b for ctx in sim.system.contexts() for b in ctx.blocks if len(b.ids) == 16]
    places = {(b.filled == 16, b.kept == 16, b.disk >= 0) for b in blocks}
    assert {(True, False, False), (False, True, False), (False, False, True)} <= places
    reply = sim.hibernate()
    assert (reply.errno, reply.result.kv_tokens) == (0, 16 * len(blocks))
    sim = HibernatingSim(files, num_blocks=80)
    for handle in handles:
        context = sim.system.tasks.find(known.pid).contexts[handle]
        assert context.computed >= context.length // 16 * 16
    reunited(sim, known)
    sim.leave()


def test_what_was_opened_through_a_grant_comes_back_if_it_may_be_copied() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    client, known = family(sim)
    other, other_known = program(sim, "other")
    rights = (Access.READ | Access.INFER, Access.READ | Access.COPY | Access.INFER)
    for access in rights:
        grant = client.ask("grant_ctx", 1, int(access)).result.grant
        handle = other.new_handle()
        assert other.ask("open_ctx", grant, handle).errno == 0
        other_known.ids[handle] = list(known.ids[1])
    reply = sim.hibernate()
    assert (reply.errno, reply.result.contexts, reply.result.left) == (0, 5, 1)
    sim = HibernatingSim(files)
    client, _ = sim.attach(other_known.pid, other_known.token)
    kept, lost = other.handle, other.handle - 1
    assert list(client.ask("read_ctx", kept).ids) == other_known.ids[kept]
    assert client.ask("read_ctx", lost).errno == Errno.EBADCTX
    reunited(sim, known)
    sim.leave()


def test_again_and_again() -> None:
    """Connections rise, pids stay, and nothing piles up on the disk."""
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    sizes = []
    for connection in range(1, 5):
        assert sim.hibernate().errno == 0
        sim = HibernatingSim(files)
        client = reunited(sim, known)
        row = sim.system.sessions[client.route]
        assert row.connection == connection
        if connection != 2:  # its number is not used again all the same
            client.handle = connection << 24
            known.ids[client.context([connection])] = [connection]
        sizes.append(len([name for name in files.names("/state/saves") if "catalogue" not in name]))
    assert sizes == [0] * 4
    sim.leave()


def test_a_crowd_in_an_ordinary_life(capsys: Any) -> None:
    """Many tasks, stopped ones, children and zombies among them; infers are cut at the grace."""
    files = MemoryFiles()
    sim = HibernatingSim(files, host_blocks=64, num_blocks=80)
    families = [family(sim, f"c{n}", 10 * n) for n in range(12)]
    parent, parent_known = families[0]
    stopped = families[1][1]
    assert parent.ask("kill", stopped.pid, int(Sig.STOP)).errno == 0
    spawned = parent.ask("spawn", "child").result
    child = sim.client(hello=False)
    child_hello = child.ask("hello", "child", spawned.ticket).result
    child_known = Known(spawned.pid, child_hello.token)
    grown(child, child_known, ids_of(5, 40))
    late = parent.ask("spawn", "never").result  # its ticket is out, and lost
    ended = parent.ask("spawn", "ended").result
    dead = sim.client(hello=False)
    assert dead.ask("hello", "ended", ended.ticket).errno == 0
    assert dead.ask("exit", 7).errno == 0
    running = families[2][0].send("infer", next(iter(families[2][1].ids)), 400, 0.0)
    sim.until(lambda: len(running.tokens) > 5)
    reply = sim.hibernate()
    assert reply.errno == 0
    assert running.done and running.result.finish == Finish.CANCELLED
    families[2][1].ids[1] += running.tokens
    assert running.result.length == len(families[2][1].ids[1])
    assert reply.result.tasks == 14, "the zombie too; not the operator, nor the one without program"

    sim = HibernatingSim(files, host_blocks=64, num_blocks=80)
    sim.check()
    rows = {row[0]: row for row in sim.client().ask("snapshot", "tasks").result.rows}
    assert late.pid not in rows and rows[stopped.pid][4] == "T" and rows[ended.pid][4] == "Z"
    assert rows[child_known.pid][1] == parent_known.pid
    assert rows[parent_known.pid][11:13] != [0, 0], "its counters go on"
    for _, known in families:
        if known is not stopped:
            reunited(sim, known)
    reunited(sim, child_known)
    client = sim.clients[-1 - len(families)]
    back, _ = sim.attach(stopped.pid, stopped.token)
    all_there(back, stopped)
    parent = next(c for c in sim.clients if _pid(sim, c) == parent_known.pid)
    waited = parent.ask("wait", ended.pid).result
    assert (waited.pid, waited.status, waited.reason) == (ended.pid, 7, "exit")
    assert client is not None
    sim.leave()


def _pid(sim: HibernatingSim, client: SimClient) -> int:
    session = sim.system.sessions.get(client.route)
    return session.task.pid if session is not None and session.task is not None else 0


def test_pins_and_the_like_come_back() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    client, known = program(sim)
    handles = [grown(client, known, ids_of(n, 40)) for n in range(3)]
    assert client.ask("advise_ctx", handles[0], "pin").errno == 0
    assert client.ask("advise_ctx", handles[1], "retain", 500.0).errno == 0
    assert client.ask("advise_ctx", handles[2], "demote").errno == 0
    sim.hibernate()
    sim = HibernatingSim(files)
    contexts = sim.system.tasks.find(known.pid).contexts
    pinned, retained, demoted = (contexts[handle] for handle in handles)
    assert pinned.pinned and not (retained.pinned or demoted.pinned)
    assert 400 < retained.retained_until - sim.clock.now <= 500
    assert demoted.demoted and not pinned.demoted
    assert sim.model.sched.pager.pinned == len(pinned.blocks)
    reunited(sim, known)
    sim.leave()


def test_two_users() -> None:
    """Each has the tasks and the saves of its own; nobody attaches to another's."""
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, mine = family(sim, "mine", 1)
    roots = sim.client(hello=False)
    roots.uid = 0
    reply = roots.ask("hello", "root")
    theirs = Known(reply.result.pid, reply.result.token)
    grown(roots, theirs, ids_of(1, 70))
    sim.hibernate()
    sim = HibernatingSim(files)
    stranger, reply = sim.attach(theirs.pid, theirs.token)
    assert reply.errno == Errno.ESRCH
    root = sim.client(hello=False)
    root.uid = 0
    assert root.ask("attach", mine.pid, mine.token).errno == Errno.ESRCH
    again = sim.client(hello=False)
    again.uid = 0
    assert again.ask("attach", theirs.pid, theirs.token).errno == 0
    all_there(again, theirs)
    reunited(sim, mine)
    assert stranger.ask("ps" if False else "list_models").errno == Errno.EPERM
    sim.leave()


# --- attaching ------------------------------------------------------------------------------------


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
    gone = sim.client(hello=False)
    gone.send("hello", "gone")
    sim.turn(pump=0)
    assert twice.errno == Errno.EBUSY and not attach.done and not hello.done
    sim.front.dead.add(gone.route)
    task = sim.system.tasks
    for _ in slowly(sim, lambda: attach.done):
        if hello.done:
            assert hello.result.pid > known.pid, "no pid is given out twice"
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


# --- what a kernel that goes down takes -----------------------------------------------------------


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
        if gone:
            del known.ids[1]
        all_there(attached, known)
        sim.leave()
        assert sim.saves(sim.client()) == []
        moment += 2


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
        before = inner.copy()
        failing = FailingFiles(inner, at, code, forever)
        sim.loopback._store._saves._files = failing  # type: ignore[union-attr]
        sim.loopback._store._saves._catalogue._files = failing  # type: ignore[union-attr]
        reply = sim.hibernate()
        if not failing.hit:
            break
        outcomes.add(reply.errno)
        if reply.errno:
            assert reply.errno in (Errno.ENOSPC, Errno.EIO)
            sim.loopback._store._saves._files = inner  # type: ignore[union-attr]
            sim.loopback._store._saves._catalogue._files = inner  # type: ignore[union-attr]
            _goes_on_after(sim, client, known)
            assert sim.hibernate().errno == 0
        assert before is not inner
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
        moment += 2
    assert moment > 14


# --- crashes --------------------------------------------------------------------------------------


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
        moment += 2


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
        moment += 2


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
        moment += 2
    assert moment > 20


# --- what cannot come back ------------------------------------------------------------------------


def test_fresh_leaves_it_and_says_how_to_get_it() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    sim.hibernate()
    sim = HibernatingSim(files, fresh=True)
    client, other = program(sim)
    assert other.pid > known.pid, "its pids are not given out"
    kernel = client.ask("snapshot", "kernel").result.rows[0]
    assert kernel[-3:] == ["waiting", 0, 4]
    assert sim.attach(known.pid, known.token)[1].errno == Errno.ESRCH
    names = sim.saves(client)
    assert len(names) == 3 and all(name.startswith("hibernated/") for name in names)
    assert client.ask("load_ctx", client.new_handle(), names[0]).errno == 0
    assert client.ask("save_ctx", client.handle, "hibernated/x").errno == Errno.EINVAL
    assert client.ask("load_ctx", client.new_handle(), "hibernated/record").errno == Errno.ENOENT
    reply = sim.hibernate()
    assert reply.errno == Errno.EBUSY and "4 contexts" in reply.message
    sim.crash()

    sim = HibernatingSim(files)  # it was left as it is
    reunited(sim, known)
    sim.hibernate()
    sim = HibernatingSim(files, fresh=True)
    client, other = program(sim)
    grown(client, other, ids_of(9, 20))
    assert sim.hibernate(replace=True).errno == 0
    sim = HibernatingSim(files)
    client = reunited(sim, other)
    assert sim.attach(known.pid, known.token)[1].errno == Errno.ESRCH
    assert len(sim.saves(client)) == 3, "contexts without a place are still saves"
    sim.leave()


def test_limits_that_are_lower_now_leave_it() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    _, other = family(sim, "other", 30)
    sim.hibernate()
    for limit in ({"max_contexts": 7}, {"max_tasks": 2}):
        sim = HibernatingSim(files, **limit)
        assert sim.system.comeback.state is Restore.WAITING
        assert (sim.system.num_contexts, len(sim.system.tasks)) == (0, 1)
        assert sim.system.comeback.unrestored == 8
        sim.crash()
    sim = HibernatingSim(files, max_contexts=8, max_tasks=5)
    reunited(sim, known)
    reunited(sim, other)
    sim.leave()


def test_a_smaller_pool_computes_what_it_has_no_room_for() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    client, known = program(sim)
    for n in range(6):
        grown(client, known, ids_of(n, 60))
    sim.hibernate()
    sim = HibernatingSim(files, num_blocks=12)
    sim.check()
    reunited(sim, known)
    sim.leave()


def test_a_context_that_can_never_run_again_stays_a_save() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    client, known = program(sim)
    grown(client, known, ids_of(1, 150))
    small = grown(client, known, ids_of(2, 20))
    sim.hibernate()
    sim = HibernatingSim(files, num_blocks=8)
    comeback = sim.system.comeback
    assert (comeback.state, comeback.num_back, comeback.left) == (Restore.DONE, 1, 1)
    client, _ = sim.attach(known.pid, known.token)
    assert client.ask("read_ctx", 1).errno == Errno.EBADCTX
    assert list(client.ask("read_ctx", small).ids) == known.ids[small]
    (name,) = sim.saves(client)
    sim.crash()
    sim = HibernatingSim(files)
    client, _ = program(sim)
    handle = client.new_handle()
    assert client.ask("load_ctx", handle, name).errno == 0
    goes_on(client, handle, list(known.ids[1]))
    sim.leave()


def test_models_that_contexts_need_are_loaded() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    operator = sim.client()
    assert operator.ask("load_model", "other", "null:vocab=251").errno == 0
    client, known = program(sim)
    handle = client.new_handle()
    assert client.ask("alloc_ctx", handle, "other").errno == 0
    assert client.ask("append", handle, ids=ids_of(1, 40)).errno == 0
    known.ids[handle] = ids_of(1, 40)
    sim.hibernate()
    sim = HibernatingSim(files)
    assert [model.name for model in sim.system.device.models] == ["null", "other"]
    client = reunited(sim, known)
    assert client.ask("stat_ctx", handle).result.model == "other"
    sim.leave()


def test_damaged_saves_cost_themselves_only() -> None:
    """Each file of a save is flipped in turn, the record's among them."""
    files = MemoryFiles()
    sim = HibernatingSim(files)
    _, known = family(sim)
    sim.hibernate()
    paths = [path for path in files.names_of if path.startswith("/state/saves/")]
    states = []
    for path in paths:
        if path.endswith("catalogue"):
            continue
        broken = files.copy()
        data = broken.inodes[broken.names_of[path]]
        data[len(data) // 2] ^= 1
        sim = HibernatingSim(broken)
        comeback = sim.system.comeback
        states.append((comeback.state, comeback.left))
        client, reply = sim.attach(known.pid, known.token)
        if comeback.state is Restore.DONE:
            assert reply.errno == 0
            there = [h for h in known.ids if client.ask("read_ctx", h).errno == 0]
            assert len(there) == len(known.ids) - comeback.left
            for handle in there:
                assert list(client.ask("read_ctx", handle).ids) == known.ids[handle]
                if known.ids[handle]:
                    goes_on(client, handle, list(known.ids[handle]), 1)
        else:
            assert reply.errno == Errno.ESRCH
            assert len(sim.saves(sim.client())) == 3, "they can be loaded by hand"
        sim.leave()
    assert (Restore.FAILED, 3) in states
    assert any(state is Restore.DONE for state, _ in states)


# --- the record -----------------------------------------------------------------------------------


def record() -> list[bytes]:
    """Return the rows of a record that is right."""
    head = journal.Head(1, "0123456789abcdef", 9, False, 1, 2, 2)
    rows: list[Any] = [
        head,
        journal.ModelEntry("m", "/m", "f", 16, 8, 0, 0, False, 0, "", 16.0),
        journal.TaskEntry(4, 1, 1000, "a", False, False, bytes(32), 0, 1, 2, 3, 4.0, 0, ""),
        journal.TaskEntry(5, 4, 0, "b", True, False, bytes(32), 7, 1, 2, 3, 4.0, 0, ""),
        journal.CtxEntry(4, 1, 1000, "notes", "m", 70, False, False, 0.0),
        journal.CtxEntry(5, 1, 0, "", "m", 0, True, False, 5.0),
    ]
    return [journal.pack(row) for row in rows]


def _head(num_tasks: int, num_contexts: int) -> bytes:
    return journal.pack(journal.Head(1, "0" * 16, 9, False, 0, num_tasks, num_contexts))


def read(raw: bytes, part: int = 7) -> list[Any]:
    reader = journal.Reader(len(raw), (1000, 0))
    rows: list[Any] = []
    for start in range(0, len(raw), part):
        rows += reader.feed(raw[start : start + part])
    reader.end()
    return rows


def test_a_record_is_read_in_whatever_parts() -> None:
    raw = journal.padded(bytearray(b"".join(record())))
    assert len(raw) % 4 == 0
    for part in (1, 3, 64, len(raw)):
        rows = read(raw, part)
        assert [type(row).__name__ for row in rows] == [
            "ModelEntry", "TaskEntry", "TaskEntry", "CtxEntry", "CtxEntry"
        ]  # fmt: skip


def test_every_damaged_record_is_refused() -> None:
    """Cut, flipped and shuffled: Damaged, or rows that are right in themselves; nothing else."""
    raw = journal.padded(bytearray(b"".join(record())))
    refused = 0
    for at in range(len(raw)):
        for flip in (1, 0x80, 0xFF):
            bad = bytearray(raw)
            bad[at] ^= flip
            try:
                read(bytes(bad))
            except journal.Damaged:
                refused += 1
        if at < len(b"".join(record())):
            with pytest.raises(journal.Damaged):
                read(raw[:at])
    assert refused > len(raw)
    rows = record()
    twice = [*rows[:3], rows[2], *rows[4:]]
    orphan = [
        *rows[:4],
        rows[4],
        journal.pack(journal.CtxEntry(8, 1, 0, "", "m", 0, True, False, 0)),
    ]
    stranger = [
        *rows[:4],
        rows[4],
        journal.pack(journal.CtxEntry(5, 1, 1000, "", "m", 0, True, False, 0)),
    ]
    early = [rows[0], rows[1], rows[3], rows[2], *rows[4:]]
    task, context = rows[2], rows[4]
    tasks_twice = [_head(2, 0), task, task]
    contexts_twice = [_head(1, 2), task, context, context]
    for good in ([_head(1, 0), task], [_head(1, 1), task, context]):
        assert len(read(b"".join(good))) == len(good) - 1
    for wrong in (
        tasks_twice,
        contexts_twice,
        twice,
        orphan,
        stranger,
        early,
        rows[1:],
        [b"\xc1"],
        [rows[0], b"\x90" * 50],
    ):
        with pytest.raises(journal.Damaged):
            read(b"".join(wrong))
    with pytest.raises(journal.Damaged, match="form 2"):
        read(journal.pack(journal.Head(2, "0123456789abcdef", 9, False, 0, 0, 0)))
    with pytest.raises(journal.Damaged, match="limit"):
        journal.Reader(journal.MAX_BYTES + 1, (0,))


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
