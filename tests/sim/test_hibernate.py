"""shutdown with save, and the next kernel: everything is back under its names, or all goes on."""

from random import Random

from syscalls.abi import Restore
from tests.helpers.disks import MemoryFiles
from tests.helpers.hibernating import (
    HibernatingSim,
    all_there,
    forked,
    goes_on,
    grown,
    program,
)


def ids_of(seed: int, count: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(1, 251) for _ in range(count)]


def test_all_is_back_and_nothing_is_computed_again() -> None:
    files = MemoryFiles()
    sim = HibernatingSim(files)
    client, known = program(sim)
    first = grown(client, known, ids_of(1, 70))
    forked(client, known, first, ids_of(2, 20))
    empty = client.new_handle()
    assert client.ask("alloc_ctx", empty).errno == 0
    known.ids[empty] = []
    reply = sim.hibernate()
    assert reply.errno == 0 and sim.kernel.stopped
    assert reply.result.contexts == 3 and reply.result.tasks == 1

    sim = HibernatingSim(files)
    assert sim.system.comeback.state is Restore.DONE
    row = sim.client().ask("stat_task", known.pid).result
    assert (row.state, row.wait, row.contexts, row.host_pid) == ("S", "attach", 3, 0)
    client, attached = sim.attach(known.pid, known.token)
    assert attached.errno == 0 and attached.result.pid == known.pid
    all_there(client, known)
    for handle in (first, first + 1):
        ids = known.ids[handle]
        full = len(ids) // 16 * 16
        reply = goes_on(client, handle, ids)
        assert reply.result.cached >= full
    new = attached.result.connection << 24 | 1
    assert attached.result.connection == 1
    assert client.ask("alloc_ctx", new).errno == 0
    assert client.ask("free_ctx", new).errno == 0
    assert sim.saves(client) == []
    sim.leave()
