"""What a death of the driver or of the store takes from the prefix index, and what not."""

from kernel.block import NO_PLACE
from syscalls.abi import Sig
from tests.helpers.saving import DISK, HOST, SavingSim, grown

IDS = [(7 * n + 3) % 251 for n in range(64)]


def test_what_comes_after_a_lost_block_is_cached_again() -> None:
    sim = SavingSim(tiers=HOST)
    client = sim.client()
    handle, _ = grown(client, IDS, 1)
    blocks = list(next(iter(sim.system.contexts())).blocks)
    for block in blocks[2:4]:
        assert sim.model.swap.out(block)
    sim.until(lambda: not sim.model.swap.busy)
    assert client.ask("infer", handle, 1, 0.0).errno == 0
    client.ask("free_ctx", handle)
    sim.settle()
    sim.link.die()
    sim.settle()
    hits = []
    for _ in range(3):
        handle = client.context([])
        infer = client.ask("infer", handle, 1, 0.0, ids=IDS)
        hits.append(infer.result.cached)
        client.ask("free_ctx", handle)
    assert hits == [0, 63, 63]
    sim.end()


def test_what_the_store_took_with_it_is_not_kept_for_copies_to_come() -> None:
    sim = SavingSim(tiers=DISK)
    client = sim.client()
    handle = client.context(IDS[:16])
    assert client.ask("infer", handle, 1, 0.0).errno == 0
    fork = handle + 1
    client.ask("fork_ctx", handle, fork)
    client.ask("trim_ctx", fork, 10)
    client.send("kill", client.ask("stat_task").result.pid, int(Sig.STOP))
    client.send("append", fork, ids=[9])  # begins as a copy of 10 positions, and does not run
    sim.turn()
    origin = next(iter(sim.system.contexts())).blocks[0]
    assert origin.heirs and sim.model.disk_swap.out(origin)
    sim.until(lambda: not sim.model.disk_swap.busy)
    client.ask("free_ctx", handle)
    assert origin.refs == 0 and origin.disk != NO_PLACE
    sim.store.die()
    sim.turn()
    sim.settle()
    assert origin not in sim.model.pool.index and not origin.heirs
    sim.end()
