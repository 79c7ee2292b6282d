"""shutdown with save, and the next kernel: all is back under its names, or said to be not."""

import pytest

from drivers.store import base
from syscalls.abi import Access, Finish, Restore, Sig
from syscalls.errors import Errno
from tests.helpers.disks import MemoryFiles
from tests.helpers.hibernating import (
    HibernatingSim,
    Known,
    Swapping,
    all_there,
    family,
    goes_on,
    grown,
    ids_of,
    program,
    reunited,
)
from tests.helpers.sim import SimClient


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
    sim = HibernatingSim(files, host_blocks=32, swap_bytes=1 << 16, policy=Swapping("fair", {}))
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
    assert sizes == [1] * 4, "what users have used"
    sim.leave()


def test_many_tasks_in_an_ordinary_life() -> None:
    """Stopped ones, children and zombies are among them; infers are cut at the grace."""
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
    back, _ = sim.attach(stopped.pid, stopped.token)
    all_there(back, stopped)
    parent = next(c for c in sim.clients if _pid(sim, c) == parent_known.pid)
    waited = parent.ask("wait", ended.pid).result
    assert (waited.pid, waited.status, waited.reason) == (ended.pid, 7, "exit")
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
    assert stranger.ask("list_models").errno == Errno.EPERM, "it has no task"
    sim.leave()


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
