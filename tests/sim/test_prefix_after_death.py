"""A prefix of which a driver's death took the beginning is found again once it is computed."""

from tests.helpers.saving import HOST, SavingSim, grown

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
