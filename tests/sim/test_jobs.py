"""What is much work is done in slices: others are served in between, and the sums are right."""

from collections.abc import Callable

from kernel.job import SLICE
from kernel.loopback import LoopbackLink
from kernel.sys_memory import MOVES
from kernel.sys_task import task_row
from syscalls.errors import Errno
from tests.helpers.sim import Reply, Sim, SimClient, at_once

LENGTH = 8000
FORKS = 100
BLOCKS = LENGTH // 16


def forked(sim: Sim) -> SimClient:
    """A task with so many tables that one turn does not look at all of them."""
    client = sim.client()
    client.ask("alloc_ctx", 1)
    client.ask("append", 1, ids=[1] * LENGTH)
    sim.settle()
    for handle in range(2, FORKS + 1):
        client.send("fork_ctx", 1, handle)
    sim.settle()
    assert FORKS * BLOCKS > 4 * SLICE
    return client


def turns(sim: Sim, condition: Callable[[], bool]) -> int:
    """Turn until it holds; return how often that took."""
    count = 0
    while not condition():
        sim.turn()
        count += 1
        assert count < 100
    return count


def roomy() -> Sim:
    return Sim(num_blocks=600, prefill_chunk=2048)


def test_a_large_row_takes_several_turns_and_others_do_not_wait() -> None:
    sim = roomy()
    client, other = forked(sim), sim.client()
    pid = client.ask("stat_task").result.pid
    row = other.send("stat_task", pid)
    sim.turn()
    assert not row.done
    assert client.ask("stat_ctx", 1).result.length == LENGTH, "answered in between"
    assert turns(sim, lambda: row.done) >= 2
    assert abs(row.result.blocks - BLOCKS) < 1e-6
    assert row.result.shared == FORKS * BLOCKS


def test_rows_of_a_page_share_the_slices() -> None:
    sim = roomy()
    forked(sim)
    other = sim.client()
    page = other.send("snapshot", "contexts")
    assert turns(sim, lambda: page.done) >= 4
    assert len(page.result.rows) == FORKS
    assert other.ask("snapshot", "pools").result.rows[0][11] == BLOCKS


def test_who_asked_and_left_gets_nothing_and_holds_nothing() -> None:
    sim = roomy()
    client, other = forked(sim), sim.client()
    pid = client.ask("stat_task").result.pid
    row = other.send("stat_task", pid)
    sim.turn()
    sim.front.dead.add(other.route)
    sim.settle()
    assert not row.done and not sim.system.jobs


def test_a_task_ends_at_once_and_its_blocks_follow() -> None:
    sim = roomy()
    client, other = forked(sim), sim.client()
    leaving: Reply = client.send("exit")
    sim.turn()
    assert leaving.done
    assert [row[3] for row in other.ask("snapshot", "tasks").result.rows] == ["init", "c2"]
    assert sim.system.num_contexts == 0
    assert sim.pool.counts.used == BLOCKS, "named by the tables that are not given back yet"
    sim.check()
    init = at_once(task_row(sim.system, sim.system.tasks.find(1)))
    assert init.blocks > 0, "they are init's"
    assert turns(sim, lambda: not sim.system.graves) >= 1
    sim.front.dead.add(other.route)
    sim.check_empty()


def test_a_second_task_that_ends_meanwhile_is_not_forgotten() -> None:
    sim = roomy()
    first, second = forked(sim), sim.client()
    second.ask("alloc_ctx", 1)
    second.ask("append", 1, ids=[5] * 40)
    sim.settle()
    first.send("exit")
    sim.turn()
    assert second.ask("exit").errno == 0
    late = sim.client()
    assert late.ask("stat_ctx", 1).errno == Errno.EBADCTX
    sim.front.dead.add(late.route)
    sim.check_empty()


def test_the_end_of_a_task_does_not_wait_behind_the_calls_of_others() -> None:
    sim = roomy()
    leaving, other = forked(sim), sim.client()
    pid = leaving.ask("stat_task").result.pid
    rows = [other.send("stat_task", pid) for _ in range(40)]
    leaving.send("exit")
    sim.turn()
    assert sim.system.graves and not rows[-1].done
    assert turns(sim, lambda: not sim.system.graves) <= 10
    assert not rows[-1].done


def test_contexts_count_until_their_blocks_are_given_back() -> None:
    sim = Sim(num_blocks=600, prefill_chunk=2048, max_contexts=FORKS + 1)
    client, other = forked(sim), sim.client()
    client.send("exit")
    sim.turn()
    assert len(sim.system.graves) > 1
    handle = other.new_handle()
    assert other.ask("alloc_ctx", handle).errno == 0
    sim.turn()
    refused = [other.send("fork_ctx", handle, other.new_handle()) for _ in range(FORKS)]
    sim.until(lambda: all(reply.done for reply in refused))
    assert Errno.EAGAIN in {reply.errno for reply in refused}
    sim.until(lambda: not sim.system.graves)
    assert other.ask("fork_ctx", handle, other.new_handle()).errno in (0, Errno.EAGAIN)


def test_a_row_is_of_the_moment_of_its_call() -> None:
    """A table that one slice does not reach the end of, and a free behind the question."""
    blocks = SLICE + 800
    path = f"null:vocab=251,max_ctx={4 * blocks}"
    sim = Sim(path=path, num_blocks=blocks + 10, block_size=4)
    client = sim.client()
    client.send("alloc_ctx", 1)
    client.send("append", 1, ids=[1] * (4 * blocks))
    row, freed = client.send("stat_ctx", 1), client.send("free_ctx", 1)
    sim.until(lambda: row.done and freed.done)
    assert (row.result.length, row.result.computed) == (4 * blocks, 0)


def test_what_is_cached_is_dropped_in_slices() -> None:
    """Others are served in between; what a context names again meanwhile stays."""
    sim = Sim(num_blocks=8 * BLOCKS, prefill_chunk=2048)
    client, other = sim.client(), sim.client()
    for first in range(7):
        ids = [first, *(n % 251 for n in range(1, LENGTH))]
        assert client.ask("infer", client.context(ids), 1, 0.0).errno == 0
    assert client.ask("exit").errno == 0
    sim.settle()
    cached = sim.pool.counts.cached
    assert cached == 7 * BLOCKS
    client = sim.client()
    dropping, stat = client.send("drop_cache"), other.send("stat_task")
    sim.turn()
    assert stat.done and not dropping.done
    other.send("alloc_ctx", 1)
    again = other.send("infer", 1, 1, 0.0, ids=ids[:64])
    sim.until(lambda: dropping.done and again.done)
    assert again.result.cached > 0
    assert cached - 4 <= dropping.result.blocks < cached
    sim.leave()


def test_a_long_context_is_given_back_in_slices_and_its_cache_dropped_all_the_same() -> None:
    blocks = 2000
    path = f"null:vocab=251,max_ctx={16 * blocks}"
    sim = Sim(path=path, num_blocks=blocks + 10, prefill_chunk=16 * blocks)
    client, other = sim.client(), sim.client()
    ids = [n % 251 for n in range(16 * blocks - 1)]
    assert client.ask("infer", client.context(ids), 1, 0.0).errno == 0
    sim.settle()
    freed, dropping = client.send("free_ctx", 1), client.send("drop_cache")
    stat = other.send("stat_task")
    sim.turn()
    assert freed.done and stat.done and sim.system.graves and not dropping.done
    assert client.ask("stat_ctx", 1).errno == Errno.EBADCTX
    sim.until(lambda: dropping.done)
    assert dropping.result.blocks > blocks - 2
    assert sim.pool.counts.cached == 0
    sim.leave()


def test_a_long_context_is_demoted_and_brought_back_in_slices() -> None:
    """No turn moves more than some hundred blocks; freed in the middle, nothing is left."""
    link = LoopbackLink("null0", host_bytes=1 << 20)
    sim = Sim(num_blocks=3000, prefill_chunk=2048, host_bytes=1 << 14, block_size=1, link=link)
    client = sim.client()
    handle = client.context([n % 251 for n in range(1500)])
    assert client.ask("infer", handle, 1, 0.0).errno == 0
    reply, turns = client.send("advise_ctx", handle, "demote"), 0
    while not reply.done:
        sim.turn()
        turns += 1
    assert reply.result.blocks == 1500 and turns >= 1500 // MOVES
    sim.settle()
    reply = client.send("advise_ctx", handle, "prefetch")
    client.send("free_ctx", handle)
    sim.until(lambda: reply.done)
    sim.leave()
