"""Loads of what is there in parts: a block here and there is found, the others are read in runs."""

from drivers.store import base
from tests.helpers.saving import DEVICE, HOST, SavingSim, Tiers, goes_on, grown
from tests.helpers.sim import SimClient

IDS = [(7 * n + 3) % 251 for n in range(70)]


def _with_holes(tiers: Tiers) -> tuple[SavingSim, SimClient, list[int]]:
    """Return a kernel that has a save, and the KV of every second block of it."""
    sim = SavingSim(tiers=tiers, num_blocks=16, prefill_chunk=512, bulk_bytes=8 * 128)
    client = sim.client()
    handle, ids = grown(client, IDS)
    assert client.ask("save_ctx", handle, "n").errno == 0
    sim.settle()
    for block in next(iter(sim.system.contexts())).blocks[0:4:2]:
        sim.pool.evict(block)
    sim.settle()
    return sim, client, ids


def test_the_places_for_a_later_run_may_be_gone_by_then() -> None:
    sim, client, ids = _with_holes(DEVICE)
    hungry = sim.client()
    taking = hungry.context([])
    handle = client.new_handle()
    loading = client.send("load_ctx", handle, "n")
    sim.until(lambda: any(block.target for ctx in sim.system.floating for block in ctx.blocks), 50)
    infer = hungry.send("infer", taking, 1, 0.0, ids=[5] * 16 * sim.pool.num_free)
    sim.kernel_turn()
    assert sim.pool.num_free == 0 and not loading.done
    sim.until(lambda: loading.done and infer.done)
    assert "1 blocks found no free place" in loading.result.note
    goes_on(client, handle, ids)
    sim.end()


def test_a_store_that_dies_in_the_first_run_leaves_nothing_of_the_others() -> None:
    sim, client, _ = _with_holes(HOST)
    loading = client.send("load_ctx", client.new_handle(), "n")
    assert sim.store is not None
    for _ in range(50):
        sim.kernel_turn()
        if any(isinstance(message, base.ReadBlocks) for message in sim.store.inbox):
            break
        sim.store.pump(1)
    sim.store.die()
    sim.until(lambda: loading.done)
    assert "died" in loading.message
    sim.end()
