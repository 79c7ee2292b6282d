"""The ledger: what is charged to the leaves of the tree is what the kernel has done, always."""

from random import Random

import pytest

from kernel.loopback import LoopbackLink
from kernel.usage import Counters
from tests.helpers.crowd import Crowd
from tests.helpers.ledgers import check_leaves, held, watch_accounts
from tests.helpers.sim import Sim, SimClient

HOST = 1 << 16


@pytest.fixture
def sim() -> Sim:
    return Sim()


def now(sim: Sim) -> int:
    return int(sim.system.tasks.accounts.now_us)


def usage_of(sim: Sim, client: SimClient) -> Counters:
    (task,) = (t for t in sim.system.tasks if t.session and t.session.host_pid == client.pid)
    counters: Counters = task.account.usage.counters(now(sim))
    return counters


def system(sim: Sim) -> Counters:
    counters: Counters = sim.system.tasks.accounts.system.usage.counters(now(sim))
    return counters


def infer(client: SimClient, handle: int, count: int = 1) -> None:
    assert client.ask("infer", handle, count, 0.0, ids=None).errno == 0


@pytest.mark.parametrize("num_blocks", [64, 13, 24])
def test_leaves_are_the_root_and_the_root_is_what_was_done(num_blocks: int) -> None:
    host = HOST if num_blocks == 24 else 0
    link = LoopbackLink("null0", host_bytes=host, beside=Random(num_blocks))
    sim = Sim(num_blocks, num_blocks=num_blocks, host_bytes=host, overcommit=100.0, link=link)
    accounts = watch_accounts(sim)
    crowd = Crowd(sim, 8)
    for calls in range(0, 1_000, 20):
        crowd.run(calls, deaths=0.01, checks=0.3)  # the root is part of Sim.check
        check_leaves(accounts, now(sim))
    crowd.leave()
    sim.check_empty()
    check_leaves(accounts, now(sim))
    root = accounts[0].usage
    assert root.recomputed_ids > 0 and root.decode_ids > 0
    assert num_blocks != 24 or root.out_blocks > 0


def test_block_time_is_the_blocks_that_there_were(sim: Sim) -> None:
    """Turn by turn, against tables that are counted by hand."""
    accounts = watch_accounts(sim)
    crowd, expected = Crowd(sim, 6), 0
    for calls in range(1, 300, 3):
        crowd.run(calls, deaths=0.0)
        before, at = held(sim.tables())[0], now(sim)
        sim.clock.now += 1.0
        expected += before * (now(sim) - at)
    least = accounts[0].usage.counters(now(sim)).device_block_us
    assert expected <= least <= expected + now(sim) * 63, "blocks also lie there between"
    assert least < expected * 1.05, "of 1 s in which nothing was done, a turn is 1 ms"


def test_a_fork_is_charged_once_and_to_who_made_it(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1] * 64)
    infer(client, handle)
    for _ in range(9):
        child = client.new_handle()
        assert client.ask("fork_ctx", handle, child).errno == 0
    assert sim.system.tasks.accounts.owner(1000).usage.blocks[1] == 4
    sim.clock.now += 10.0
    assert usage_of(sim, client).device_block_us >= 40_000_000
    sim.leave()


def test_a_cached_block_is_charged_to_who_finds_it(sim: Sim) -> None:
    first, second = sim.client(), sim.client()
    handle = first.context([1] * 64)
    infer(first, handle)
    assert first.ask("free_ctx", handle).errno == 0
    owner = sim.system.tasks.accounts.owner(1000).usage
    assert owner.blocks[1] == 0, "nobody names it"
    infer(second, second.context([1] * 64))
    mine = next(t for t in sim.system.tasks if t.session and t.session.host_pid == second.pid)
    assert mine.account.usage.blocks[1] == owner.blocks[1] == 4
    sim.leave()


def test_what_the_kernel_took_is_computed_again_for_the_system(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1] * 64)
    infer(client, handle)
    before, none = usage_of(sim, client), system(sim)
    assert (before.prefill_ids, none.recomputed_ids) == (64, 0)
    sim.link.die()
    sim.until(lambda: sim.system.device.epoch == 2)
    infer(client, handle)
    after, forced = usage_of(sim, client), system(sim)
    assert forced.recomputed_ids == 64, "all that was there has died"
    assert after.prefill_ids + after.decode_ids == 64 + 1, "its own is the id after them"
    assert forced.device_us + after.device_us == sim.system.device.models.totals.step_us
    sim.leave()


def test_a_trim_refunds_nothing_and_ids_anew_are_its_own(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1] * 64)
    infer(client, handle)
    for _ in range(3):
        before = usage_of(sim, client)
        assert client.ask("trim_ctx", handle, 8).errno == 0
        assert usage_of(sim, client)[:9] == before[:9]
        infer_ids = [before.prefill_ids % 200 + 2] * 40
        assert client.ask("append", handle, ids=infer_ids).errno == 0
        infer(client, handle)
        after = usage_of(sim, client)
        assert after.input_ids == before.input_ids + 40
        assert after.prefill_ids >= before.prefill_ids + 40
    assert system(sim).recomputed_ids == 0
    sim.leave()


def test_fin_says_the_time_and_the_task_has_the_sum(sim: Sim) -> None:
    client = sim.client()
    handle, spent = client.context([1] * 20), 0
    for _ in range(3):
        spent += client.ask("infer", handle, 4, 0.0).result.device_us
    assert 0 < spent <= usage_of(sim, client).device_us
    row = client.ask("stat_task", 0).result
    assert row.device_us == usage_of(sim, client).device_us
    sim.leave()
