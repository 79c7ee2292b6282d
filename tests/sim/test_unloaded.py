"""A model is unloaded with force while its KV is being read, written or copied: nobody else's is
mixed up with it, no save holds what it had given up, and nothing of it stays in memory."""

import os

import pytest

from drivers import base
from kernel.loopback import LoopbackLink
from tests.helpers.saving import DEVICE, DISK, HOST, SavingSim, Tiers, goes_on, grown, load

IDS = [(7 * n + 3) % 251 for n in range(70)]
OTHERS = [(11 * n + 5) % 251 for n in range(40)]


def _kernel_only(sim: SavingSim, store: bool = False) -> None:
    """One turn of the kernel in which the driver does nothing, and the store only if told so."""
    sim.clock.now += 0.001
    sim.kernel_turn()
    if store and sim.store is not None:
        sim.store.pump()
    for client in sim.clients:
        client.read()


def _ops(sim: SavingSim) -> list[type]:
    submits = [m for m in sim.link.inbox if isinstance(m, base.Submit)]
    return [type(op) for submit in submits for op in submit.ops]


def test_a_save_says_what_it_has_of_a_model_that_goes_meanwhile() -> None:
    """The host places that the store is about to read are zeroed under it: that is no KV."""
    told = set()
    for at in range(40):
        sim = SavingSim(tiers=HOST)
        client = sim.client()
        handle, ids = grown(client, IDS)
        assert client.ask("advise_ctx", handle, "demote").errno == 0
        sim.settle()
        saving, unloading = client.send("save_ctx", handle, "n"), None
        for moment in range(at + 1):
            _kernel_only(sim, store=moment < at)
        if not saving.done:
            unloading = client.send("unload_model", "null", True)
            _kernel_only(sim)
        sim.until(lambda: saving.done)  # noqa: B023
        assert saving.errno == 0, saving.message
        told.add(saving.result.kv_tokens)
        sim.drop_cache()
        sim.end()
        again = SavingSim(sim.files, HOST)
        client = again.client()
        handle, reply = load(client, "n")
        assert reply.result.kv_tokens == saving.result.kv_tokens
        goes_on(client, handle, ids)
        again.end()
        if unloading is None:
            break
    assert told == {0, 64}, "some went before, some after"


@pytest.mark.parametrize("tiers", [DEVICE, HOST], ids=["device", "host"])
def test_the_window_is_not_used_again_while_a_model_that_has_gone_is_exported(tiers: Tiers) -> None:
    sim = SavingSim(tiers=tiers)
    client = sim.client()
    first, others = grown(client, OTHERS)
    assert client.ask("save_ctx", first, "other").errno == 0
    client.ask("free_ctx", first)
    sim.drop_cache()
    helper = sim.client()
    assert helper.ask("load_model", "second", "null:vocab=251").errno == 0
    handle, _ = grown(client, IDS)
    saving = client.send("save_ctx", handle, "n")
    for _ in range(9):
        _kernel_only(sim, store=True)
    assert base.Export in _ops(sim)
    loaded = client.new_handle()
    loading = client.send("load_ctx", loaded, "other", "second")
    helper.send("unload_model", "null", True)
    for _ in range(20):
        _kernel_only(sim, store=True)
    sim.until(lambda: saving.done and loading.done)
    assert loading.errno == 0, loading.message
    goes_on(client, loaded, others)
    sim.end()


@pytest.mark.parametrize("dies", [False, True], ids=["lives", "dies"])
def test_host_memory_of_a_model_that_has_gone_is_zero_whatever_its_driver_does(dies: bool) -> None:
    sim = SavingSim(tiers=HOST)
    client = sim.client()
    handle, _ = grown(client, IDS)
    client.send("advise_ctx", handle, "demote")
    _kernel_only(sim)
    assert base.Copy in _ops(sim)
    client.send("unload_model", "null", True)
    _kernel_only(sim)
    sim.link.pump()  # the copy lands after the books were closed
    assert any(_host(sim.link))
    if dies:
        sim.link.die()
    for _ in range(10):
        sim.turn()
    assert not any(_host(sim.link))


def _host(link: LoopbackLink) -> bytes:
    return os.pread(link.host_fd, os.fstat(link.host_fd).st_size, 0)


@pytest.mark.parametrize("dies", [False, True], ids=["lives", "dies"])
def test_a_model_that_has_gone_leaves_nothing_in_the_swap_file(dies: bool) -> None:
    """Models come and go, the store dies in between: what they had claimed is there for others."""
    sim = SavingSim(tiers=DISK)
    file = sim.system.swap_file
    for _ in range(40):
        client = sim.client()
        handle, _ = grown(client, IDS)
        assert client.ask("advise_ctx", handle, "demote").errno == 0
        sim.until(lambda: not sim.model.disk_swap.busy)
        assert client.ask("stat_ctx", handle).result.disk_blocks > 0
        client.send("unload_model", "null", True)
        client.ask("exit")
        if dies and sim.store is not None:
            sim.store.die()
        sim.until(lambda: not sim.system.store.busy and not file.lane.busy)
        assert sim.client().ask("load_model", "null", "null:vocab=251").errno == 0
        sim.until(lambda: not sim.system.store.busy and not file.lane.busy)
    assert len(file.swaps) <= 2
    sim.end()
