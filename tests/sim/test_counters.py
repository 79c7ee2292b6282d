"""Counters of the kernel: they rise only, and add up to what clients have seen."""

from typing import Any

import pytest

from kernel.sys_inspect import sys_snapshot
from syscalls.abi import KernelRow, PoolRow, Sig, Snapshot
from tests.helpers.crowd import Crowd
from tests.helpers.saving import DISK, SavingSim
from tests.helpers.sim import Sim, at_once

GAUGES = {"pid", "version", "running", "waiting", "oldest_wait_s", "sessions"}
RISING = [name for name in KernelRow._fields if name not in GAUGES]


def row(sim: Sim) -> KernelRow:
    """Read them without a turn in between."""
    caller: Any = None
    found = at_once(sys_snapshot(sim.system, caller, Snapshot("kernel"))).result
    return KernelRow(*found.rows[0])


def test_counters_never_fall_whatever_happens() -> None:
    """Deaths of the driver, of programs, and a model that goes."""
    sim = Sim(4, num_blocks=30)
    sim.client()
    crowd = Crowd(sim, 10)
    before = row(sim)
    for _ in range(60):
        crowd.run(crowd.calls + 10)
        now = row(sim)
        for name in RISING:
            assert getattr(now, name) >= getattr(before, name), name
        before = now
    assert sim.clients[0].ask("unload_model", "null", True).errno == 0
    now = row(sim)
    for name in RISING:
        assert getattr(now, name) >= getattr(before, name), name
    assert now.prefill_tokens and now.decode_tokens and now.step_seqs


def test_they_say_what_was_done() -> None:
    sim = Sim()
    client = sim.client()
    context = client.context([1] * 100)
    sim.settle()
    first = row(sim)
    assert (first.prefill_tokens, first.decode_tokens, first.prompt_tokens) == (99, 0, 0)
    assert len(client.ask("infer", context, 10, 0.0).tokens) == 10
    second = row(sim)
    assert (second.prefill_tokens, second.decode_tokens) == (100, 9)
    assert (second.prompt_tokens, second.cached_tokens) == (100, 0), "computed for this infer"
    assert (second.output_tokens, second.first_tokens) == (10, 1)
    assert second.first_token_s > 0
    assert (second.running, second.waiting, second.oldest_wait_s) == (0, 0, 0.0)
    assert second.step_seqs == second.steps == 4 + 10
    sim.leave()


def test_the_oldest_wait_is_of_an_infer_that_has_not_begun() -> None:
    sim = Sim(num_blocks=200)
    sim.client()
    client = sim.client()
    sim.link.die()
    sim.kernel_turn()
    sim.kernel_turn()  # the driver is told nothing: it is being loaded
    handle = client.new_handle()
    client.send("alloc_ctx", handle)
    infer = client.send("infer", handle, 5, 0.0, ids=[1, 2, 3])
    sim.kernel_turn()
    sim.clock.now += 4.0
    reply = sim.clients[0].send("snapshot", "kernel")
    sim.kernel_turn()
    sim.clients[0].read()
    now = KernelRow(*reply.result.rows[0])
    assert (now.waiting, now.running) == (1, 0)
    assert now.oldest_wait_s == pytest.approx(4.0, abs=0.1)
    sim.clients[0].send("kill", 3, int(Sig.STOP))
    sim.kernel_turn()
    assert (row(sim).waiting, row(sim).oldest_wait_s) == (1, 0.0), "stopped, it waits for nobody"
    sim.clients[0].send("kill", 3, int(Sig.CONT))
    sim.until(lambda: infer.done)
    assert row(sim).oldest_wait_s == 0.0
    sim.leave()


def test_kv_of_tasks_and_contexts_is_what_their_pools_hold() -> None:
    sim = Sim()
    client = sim.client()
    context = client.context([1] * 40)
    sim.settle()
    client.ask("fork_ctx", context, 2, "branch")
    pool = client.ask("snapshot", "pools").result.rows[0]
    tasks = client.ask("snapshot", "tasks").result.rows
    contexts = client.ask("snapshot", "contexts").result.rows
    block_bytes = pool[4]
    assert sum(task[15] for task in tasks) == pytest.approx(3 * block_bytes)
    assert [row[13] for row in contexts] == pytest.approx([1.5 * block_bytes] * 2)
    assert {row[11] for row in contexts} == {"null0"}
    assert [task[16] for task in tasks] == ["", "null"]
    sim.leave()


def test_each_tier_has_its_row_and_they_add_up() -> None:
    """What was demoted is counted where it lies, in pools, tasks and contexts alike."""
    sim = SavingSim(tiers=DISK)
    client = sim.client()
    handle = client.context([n % 251 for n in range(100)])
    assert client.ask("infer", handle, 1, 0.0).errno == 0
    assert client.ask("advise_ctx", handle, "demote").result.blocks == 7
    sim.until(lambda: not sim.model.disk_swap.busy)
    rows = {row[2]: PoolRow(*row) for row in client.ask("snapshot", "pools").result.rows}
    assert list(rows) == ["device", "disk"] and rows["disk"].used == 6, "the full ones"
    assert rows["disk"].free + rows["disk"].used + rows["disk"].limbo == rows["disk"].total
    ctx = client.ask("stat_ctx", handle).result
    assert (ctx.blocks, ctx.host_blocks, ctx.disk_blocks) == (0, 0, 6)
    assert client.ask("stat_task").result.swapped == 6
    explained = client.ask("explain", handle).result
    assert (explained.on_device, explained.on_host, explained.on_disk) == (0, 0, 96)
    assert [loss[1] for loss in explained.losses] == ["dropped", "swapped"], "the last block had 4"
    sim.leave()


def test_a_death_is_explained() -> None:
    sim = Sim()
    client = sim.client()
    handle = client.context([n % 251 for n in range(100)])
    assert client.ask("infer", handle, 1, 0.0).errno == 0
    sim.link.die()
    sim.turn()
    sim.settle()
    (loss,) = client.ask("explain", handle).result.losses
    assert loss[1:6] == ["died", "its device's driver ended", 0, 100, 0]
    sim.leave()


def test_what_a_task_in_a_call_waits_for_is_explained() -> None:
    sim = Sim()
    server, client = sim.client(), sim.client()
    assert server.ask("bind", "tools").errno == 0
    handle = client.context([1, 2, 3])
    sim.settle()
    assert client.ask("explain", handle).result.waits_for == "nothing runs on it"
    client.send("call", "tools", b"")
    sim.turn()
    story = client.ask("explain", handle).result.waits_for
    assert story == "nothing runs on it: its task waits for port:tools"
    sim.leave()
