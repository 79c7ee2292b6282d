"""pmap: the picture of a context is the truth, in pages and in slices, whoever asks."""

from array import array
from collections import Counter
from typing import Any

import pytest

from kernel import blockmap, sys_inspect
from kernel.block import Block
from kernel.context import Context
from kernel.handler import Caller
from kernel.ipc import Arrival
from syscalls import abi, wire
from syscalls.abi import BlockRun, Pmap, SharerRow, Use
from syscalls.errors import Errno
from tests.helpers.crowd import Crowd
from tests.helpers.sim import Sim, SimClient, at_once

SIZE = 16


def pmap(client: SimClient, ctx: int, pid: int = 0, cursor: int = 0) -> Any:
    reply = client.ask("pmap", ctx, pid, cursor)
    assert reply.errno == 0, reply.message
    result = reply.result
    return result._replace(
        runs=[BlockRun(*run) for run in result.runs],
        sharers=[SharerRow(*row) for row in result.sharers],
    )


def drawn(runs: list[BlockRun]) -> list[tuple[str, int, int]]:
    return [(Use(run.use).name, run.blocks, run.refs) for run in runs]


# --- the picture --------------------------------------------------------------------------------


def test_a_context_before_and_after_its_kv() -> None:
    sim = Sim()
    client = sim.client()
    client.ask("alloc_ctx", 1)
    empty = pmap(client, 1)
    assert (empty.blocks, empty.runs, empty.sharers, empty.cursor) == (0, [], [], 0)
    client.ask("append", 1, ids=[1] * 40)
    sim.settle()  # a prefill leaves the last id, whose logits somebody may want
    made = pmap(client, 1)
    assert drawn(made.runs) == [("PRIVATE", 2, 1), ("FILLING", 1, 1)]
    assert (made.length, made.computed, made.blocks, made.block_size) == (40, 39, 3, SIZE)
    assert [run[4:] for run in made.runs] == [(1, 32, 32), (3, 8, 7)]
    assert (made.pid, made.ctx, made.model, made.device) == (2, 1, "null", "null0")
    sim.link.die()
    sim.turn()
    sim.settle()
    assert drawn(pmap(client, 1).runs) == [("ABSENT", 3, 0)]
    assert pmap(client, 1).runs[0] == BlockRun(0, 3, Use.ABSENT, 0, 0, 40, 0)
    sim.leave()


def test_forks_share_until_one_writes() -> None:
    sim = Sim()
    client = sim.client()
    client.context([1] * 40)
    sim.settle()
    client.ask("fork_ctx", 1, 2, "branch")
    both = pmap(client, 1)
    assert drawn(both.runs) == [("SHARED", 2, 2), ("FILLING", 1, 2)]
    assert (both.sharers, both.num_sharers) == ([SharerRow(2, 2, "branch", 3)], 1)
    client.ask("infer", 2, 30, 0.0, 0, 1.0, 0.0, None, (), True)
    sim.settle()
    child = pmap(client, 2)
    assert drawn(child.runs) == [("SHARED", 2, 2), ("PRIVATE", 2, 1), ("FILLING", 1, 1)]
    assert child.sharers == [SharerRow(2, 1, "", 2)]
    client.ask("trim_ctx", 2, 20)
    assert pmap(client, 1).sharers == [SharerRow(2, 2, "branch", 2)], "cut, and still the same"
    assert pmap(client, 2).runs[-1].ids == 20
    client.ask("append", 2, ids=[9])
    assert pmap(client, 1).sharers == [SharerRow(2, 2, "branch", 1)]
    client.ask("free_ctx", 1)
    assert pmap(client, 2).sharers == []
    sim.leave()


def test_who_shares_most_comes_first_and_all_are_counted() -> None:
    sim = Sim(num_blocks=64, max_contexts=200)
    client = sim.client()
    client.context([1] * 64)
    sim.settle()
    for handle in range(2, 102):
        client.ask("fork_ctx", 1, handle)
        client.ask("trim_ctx", handle, 16 * (1 + handle % 4))
    found = pmap(client, 1)
    assert (found.num_sharers, len(found.sharers)) == (100, sys_inspect.MAX_SHARERS)
    assert [row.blocks for row in found.sharers] == [4] * 25 + [3] * 25 + [2] * 14
    sim.leave()


# --- the sums -----------------------------------------------------------------------------------


def whole(sim: Sim, ctx: Context) -> Any:
    """Ask for all of a context, without a turn in between."""
    session = next(s for s in sim.system.sessions.values() if s.task)
    caller = Caller(session, session.task, 1, None)  # type: ignore[arg-type]
    runs: list[BlockRun] = []
    cursor, first = 0, None
    while True:
        page = at_once(sys_inspect.sys_pmap(sim.system, caller, Pmap(ctx.handle, ctx.pid, cursor)))
        runs += page.result.runs
        first = first or page.result
        cursor = page.result.cursor
        if not cursor:
            return first._replace(runs=runs)


def check_maps(sim: Sim) -> int:
    """All maps together are what the allocator, the tables and the devices say."""
    named: Counter[int] = Counter()
    shares = 0.0
    contexts = list(sim.system.contexts())
    for ctx in contexts:
        found = whole(sim, ctx)
        assert sum(run.blocks for run in found.runs) == found.blocks == len(ctx.blocks)
        assert sum(run.ids for run in found.runs) == found.length == ctx.length
        assert found.computed <= sum(run.filled for run in found.runs) <= found.length
        position = 0
        for run in found.runs:
            assert run.start == position
            position += run.blocks * SIZE
            assert (run.use == Use.ABSENT) == (run.block == 0) == (run.refs == 0)
            assert run.use != Use.SHARED or run.refs > 1
            assert run.use != Use.PRIVATE or run.refs == 1
            if run.block:
                named.update(range(run.block, run.block + run.blocks))
                shares += run.blocks / run.refs
        check_sharers(ctx, found, contexts)
    graves = [block for ctx in sim.system.graves for block in ctx.blocks if block.id]
    named.update(block.id for block in graves)
    shares += sum(1 / block.refs for block in graves)
    assert abs(shares - sim.pool.counts.used) < 1e-6, "the pictures and the allocator agree"
    refs = {block.id: block.refs for block in sim.pool.resident() if block.refs}
    assert named == refs, "each block is in as many pictures as contexts have it"
    return len(contexts)


def check_sharers(ctx: Context, found: Any, contexts: list[Context]) -> None:
    mine = set(map(id, ctx.blocks))
    common = {
        (other.pid, other.handle): sum(id(block) in mine for block in other.blocks)
        for other in contexts
        if other is not ctx
    }
    told = {(row.pid, row.ctx): row.blocks for row in found.sharers}
    assert told == {key: count for key, count in common.items() if count}


@pytest.mark.parametrize("seed", [3, 8])
def test_all_pictures_agree_with_the_allocator_at_random_moments(seed: int) -> None:
    sim = Sim(seed, num_blocks=48)
    crowd = Crowd(sim, 12)
    seen = moments = 0
    while moments < 120:
        crowd.run(crowd.calls + 8, checks=0.0)
        if sim.system.sessions:
            seen += check_maps(sim)
            moments += 1
    assert seen > 1_000 and sim.pool.evicted
    crowd.leave()
    sim.check_empty()


def test_pages_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that lie scattered on the device: each is a run of its own."""
    monkeypatch.setattr(sys_inspect, "RUNS", 7)
    monkeypatch.setattr(sys_inspect, "MAX_TABLE", 11)
    sim = Sim(num_blocks=200)
    client = sim.client()
    client.context([1]), client.context([2])
    for _ in range(40):
        for handle in (1, 2):
            client.ask("append", handle, ids=[handle] * SIZE)
            sim.settle()
    pages, cursor = [], 0
    while True:
        page = pmap(client, 1, 0, cursor)
        pages.append(page)
        assert len(page.runs) <= 7 and sum(run.blocks for run in page.runs) <= 11
        if not page.cursor:
            break
        assert page.cursor > cursor
        cursor = page.cursor
    runs = [run for page in pages for run in page.runs]
    assert len(pages) >= 6 and len(runs) > 35
    assert [run.start for run in runs] == [
        SIZE * sum(before.blocks for before in runs[:at]) for at in range(len(runs))
    ]
    assert sum(run.ids for run in runs) == pages[0].length == 1 + 40 * SIZE
    placed = [run.block + at for run in runs for at in range(run.blocks)]
    assert placed == [block.id for block in next(sim.system.contexts()).blocks]
    sim.leave()


# --- slices -------------------------------------------------------------------------------------


def test_a_large_map_is_made_in_slices() -> None:
    """Ten thousand blocks: others are served in between, and a slice looks at about a thousand."""
    blocks = 10_000
    sim = Sim(path="null:vocab=251,max_ctx=200000", num_blocks=blocks + 10, prefill_chunk=8192)
    client, other = sim.client(), sim.client()
    client.send("alloc_ctx", 1)
    for _ in range(2):
        client.send("append", 1, ids=[1] * (blocks // 2 * SIZE))
    sim.settle()
    reply = other.send("pmap", 1, 2)
    turns = 0
    while not reply.done:
        sim.turn()
        turns += 1
    assert turns >= 4
    assert reply.result.blocks == blocks and len(reply.result.runs) <= 3
    ctx = next(sim.system.contexts())
    costs = []
    work = blockmap.runs(ctx.blocks, 0, ctx.length, SIZE, 512)
    with pytest.raises(StopIteration):
        while True:
            costs.append(next(work))
    assert max(costs) <= blockmap.CHUNK * blockmap.COST
    assert sum(costs) >= blocks * blockmap.COST
    sim.leave()


def test_what_goes_away_between_two_slices_is_absent() -> None:
    sim = Sim(path="null:vocab=251,max_ctx=200000", num_blocks=9000, prefill_chunk=8192)
    client, other = sim.client(), sim.client()
    client.send("alloc_ctx", 1)
    client.send("append", 1, ids=[1] * (8000 * SIZE))
    sim.settle()
    reply = other.send("pmap", 1, 2)
    sim.turn()
    assert not reply.done
    client.send("free_ctx", 1)
    sim.until(lambda: reply.done)
    assert reply.errno == 0 and reply.result.blocks == 8000
    assert BlockRun(*reply.result.runs[-1]).use == Use.ABSENT
    sim.leave()


def test_a_block_that_was_given_back_since_is_absent() -> None:
    """It may still be on the device, as what another one begins as a copy of."""
    block = Block(array("i", [1] * SIZE), writer=None)
    block.id, block.filled = 5, SIZE
    assert blockmap.use_of(block, SIZE) is Use.PRIVATE
    block.refs = 0
    assert blockmap.use_of(block, SIZE) is Use.ABSENT


# --- who may ask --------------------------------------------------------------------------------


def test_wrong_questions_are_answered_with_an_errno() -> None:
    sim = Sim()
    client, other = sim.client(), sim.client()
    client.context([1] * 20)
    wrong = {
        (9, 0, 0): Errno.EBADCTX, (1, 3, 0): Errno.EBADCTX, (1, 99, 0): Errno.ESRCH,
        (1, 2**53, 0): Errno.ESRCH, (1, 1, 0): Errno.EBADCTX, (1, 0, 3): Errno.EINVAL,
        (1, 0, 2**64 - 1): Errno.EINVAL, (2**32 - 1, 0, 0): Errno.EBADCTX,
    }  # fmt: skip
    for args, errno in wrong.items():
        assert client.ask("pmap", *args).errno == errno, args
    assert pmap(client, 1, 0, 2).runs == [], "the end is a place, too"
    assert pmap(other, 1, 2).length == 20, "same uid, same trust"
    with_zombie = client.ask("spawn", "child").result.pid
    other.ask("kill", with_zombie, 9)
    assert other.ask("pmap", 1, with_zombie).errno == Errno.EBADCTX
    sim.leave()


def test_another_uid_sees_neither_map_nor_log() -> None:
    sim = Sim()
    client = sim.client()
    client.context([1] * 20)
    calls = [("hello", ("root",)), ("pmap", (1, 2)), ("log", ()), ("pmap", (1,))]
    for number, (name, args) in enumerate(calls, 1):
        frames = [wire.pack_request(abi.BY_NAME[name].number, number, 0, args)]
        sim.front.arrivals.append(Arrival(b"\0root", 0, 1, frames))
        sim.turn()
    told = [
        event for frames in sim.front.sent[b"\0root"] for event in wire.unpack_events(frames[0])
    ]
    errnos = [event[2] for event in told if event[0] == abi.Event.ERR]
    assert errnos == [Errno.ESRCH, Errno.EPERM, Errno.EBADCTX]
    sim.front.dead.add(b"\0root")
    sim.leave()
