"""fork_task: a child with forks of contexts, whole or not at all, and nothing left of it."""

from collections.abc import Iterator

import pytest

from syscalls.abi import MAX_HANDLES, Access, Sig
from syscalls.errors import Errno
from tests.helpers.oracle import expected
from tests.helpers.sim import Sim, SimClient
from tests.helpers.trees import begin, pid_of, rows, task_of


@pytest.fixture
def sim() -> Iterator[Sim]:
    sim = Sim()
    yield sim
    sim.leave()


def read(client: SimClient, handle: int) -> list[int]:
    return list(client.ask("read_ctx", handle).ids)


def test_a_child_has_its_contexts_under_the_handles_of_its_parent(sim: Sim) -> None:
    parent = sim.client()
    one, two = parent.context([1, 2, 3]), parent.context(list(range(40)))
    parent.ask("renice", 0, 5)
    made = parent.ask("fork_task", "twin", (), b"a note").result
    assert made.contexts == [one, two]
    child = sim.client(hello=False)
    hello = child.ask("hello", "twin", made.ticket).result
    assert (hello.pid, list(hello.contexts), hello.note) == (made.pid, [one, two], b"a note")
    assert read(child, one) == [1, 2, 3] and read(child, two) == list(range(40))
    row = rows(parent)[made.pid]
    assert (row.nice, row.parent, row.contexts, row.tokens) == (5, pid_of(parent), 2, 43)
    child.handle = hello.connection << 24
    assert hello.connection and child.ask("alloc_ctx", child.new_handle()).errno == 0
    answers = [client.ask("infer", one, 9, 0.0) for client in (parent, child)]
    assert [answer.tokens for answer in answers] == [expected([1, 2, 3], 9)] * 2
    assert child.ask("append", two, ids=[7]).errno == 0
    assert read(parent, two) == list(range(40)), "each has its own from here on"


def test_forks_of_forks_have_handles_of_all_their_ancestors(sim: Sim) -> None:
    client = sim.client()
    for depth in range(6):
        handle = client.new_handle()
        assert client.ask("alloc_ctx", handle).errno == 0
        assert client.ask("append", handle, ids=[depth]).errno == 0
        client = begin(sim, client.ask("fork_task", "x").result.ticket)
    handles = list(task_of(client).contexts)
    assert [handle >> 24 for handle in handles] == list(range(6))
    assert [read(client, handle) for handle in handles] == [[depth] for depth in range(6)]


def test_a_fork_of_32k_ids_copies_no_block() -> None:
    sim = Sim(num_blocks=2100, path="null:vocab=251,max_ctx=40000")
    parent = sim.client()
    handle = parent.context([n % 251 for n in range(32_760)])
    sim.settle()
    counts, copied = sim.pool.counts, sim.pool.copied
    made = [parent.ask("fork_task", "x").result for _ in range(10)]
    assert (sim.pool.counts, sim.pool.copied) == (counts, copied)
    forks = [sim.system.tasks.find(row.pid).contexts[handle] for row in made]
    assert len({block for fork in forks for block in fork.blocks}) == 2048
    child = begin(sim, made[0].ticket)
    infer = child.ask("infer", handle, 3, 0.0)
    assert infer.result.cached == 32_759 and sim.pool.copied == copied + 1, "its open block"
    sim.leave()


def test_named_contexts_only_and_none_but_those_that_may(sim: Sim) -> None:
    parent, other = sim.client(), sim.client()
    mine, hers = parent.context([1, 2]), parent.new_handle()
    grants = {}
    for access in (Access.READ | Access.FORK, Access.READ):
        made = other.ask("grant_ctx", other.context([5, 6, 7]), int(access))
        parent.ask("open_ctx", made.result.grant, hers := parent.new_handle())
        grants[access] = made.result.grant, hers
    (allowed, forkable), (_, closed) = grants.values()
    tasks = len(sim.system.tasks)
    for names, errno in (
        ((mine, closed), Errno.EPERM), ((), Errno.EPERM), ((mine, 999), Errno.EBADCTX),
        ((mine, mine), Errno.EINVAL), ((mine, forkable, closed), Errno.EPERM),
    ):  # fmt: skip
        assert parent.ask("fork_task", "x", names).errno == errno
        assert len(sim.system.tasks) == tasks and sim.system.num_contexts == 5
    made = parent.ask("fork_task", "x", (forkable, mine)).result
    assert made.contexts == [forkable, mine]
    child = begin(sim, made.ticket)
    assert read(child, forkable) == [5, 6, 7]
    assert child.ask("append", forkable, ids=[1]).errno == Errno.EPERM, "the rights go along"
    assert child.ask("stat_ctx", forkable).result.access == Access.READ | Access.FORK
    assert other.ask("revoke", allowed).errno == 0
    assert child.ask("read_ctx", forkable).errno == Errno.EREVOKED
    assert read(child, mine) == [1, 2]
    assert parent.ask("fork_task", "x", (forkable,)).errno == Errno.EREVOKED


def test_limits_refuse_all_of_it(sim: Sim) -> None:
    sim = Sim(max_contexts=7, max_tasks=4)
    parent = sim.client()
    for number in range(3):
        parent.context([number])
    assert parent.ask("fork_task", "x").errno == 0
    refused = parent.ask("fork_task", "x")
    assert refused.errno == Errno.EAGAIN and "the limit is 7" in refused.message
    assert (sim.system.num_contexts, len(sim.system.tasks)) == (6, 3)
    assert parent.ask("fork_task", "x", (1,)).errno == 0
    refused = parent.ask("fork_task", "x", (1,))
    assert refused.errno == Errno.EAGAIN and (sim.system.num_contexts == 7)
    sim.leave()
    sim = Sim(max_contexts=2 * MAX_HANDLES)
    parent = sim.client()
    for _ in range(MAX_HANDLES + 1):
        parent.send("alloc_ctx", parent.new_handle())
        if len(sim.front.arrivals) == 500:
            sim.turn()
    refused = parent.ask("fork_task", "x")
    assert refused.errno == Errno.E2BIG and "4097" in refused.message
    sim.leave()


@pytest.mark.parametrize("how", ["expires", "killed", "parent dies", "discarded"])
def test_a_child_that_never_starts_gives_all_back(sim: Sim, how: str) -> None:
    parent, other = sim.client(), sim.client()
    handle = parent.context(list(range(100)))
    sim.settle()
    before = sim.pool.counts
    made = parent.ask("fork_task", "x").result
    parent.ask("free_ctx", handle)
    assert sim.pool.counts.used == before.used, "the child has them"
    if how == "expires":
        sim.clock.now += 61.0
        sim.turn()
    elif how == "killed":
        other.ask("kill", made.pid, int(Sig.KILL))
    elif how == "discarded":
        parent.ask("kill", made.pid, int(Sig.KILL))
        assert parent.ask("wait").result.pid == made.pid
    else:
        sim.front.dead.add(parent.route)
        sim.turn()
    sim.settle()
    assert sim.pool.counts.used == 0 and sim.system.num_contexts == 0
    assert sim.client(hello=False).ask("hello", "x", made.ticket).errno == Errno.ESTALE


def test_a_fork_of_a_running_context_has_what_was_there(sim: Sim) -> None:
    parent = sim.client()
    infer = parent.send("infer", parent.context([3]), 60, 0.0)
    sim.until(lambda: len(infer.tokens) > 9)
    child = begin(sim, parent.ask("fork_task", "x").result.ticket)
    ids = read(child, 1)
    assert ids == [3, *expected([3], 60)][: len(ids)] and 9 < len(ids) < 61
    mine = child.ask("infer", 1, 5, 0.0)
    assert mine.tokens == expected(ids, 5)
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([3], 60), "and the parent's goes on"


def test_a_child_of_a_stopped_parent_is_not_stopped(sim: Sim) -> None:
    parent, other = sim.client(), sim.client()
    parent.context([1])
    other.ask("kill", pid_of(parent), int(Sig.STOP))
    child = begin(sim, parent.ask("fork_task", "x").result.ticket)
    assert child.ask("infer", 1, 4, 0.0).tokens == expected([1], 4)
