"""A block that is to begin as a copy, and what may happen to it or its origin before it does.

A fork that appended one id holds such a claim until its first step. Each scenario ends in an infer
whose ids only the right KV gives.
"""

import pytest

from kernel.pool import BlockPool
from tests.helpers.oracle import expected
from tests.helpers.saving import HOST, SavingSim
from tests.helpers.sim import Sim, SimClient

PARENT, CHILD = 1, 2
PROMPT = [1, 2, 3, 4, 5, 6]


def claim(client: SimClient) -> None:
    """Compute a parent, and leave a child of it with one more id that no step has seen."""
    client.ask("alloc_ctx", PARENT)
    client.ask("append", PARENT, ids=PROMPT)
    client.ask("infer", PARENT, 1, 0.0)
    client.sim.settle()
    client.ask("trim_ctx", PARENT, len(PROMPT))
    client.ask("fork_ctx", PARENT, CHILD)
    client.ask("append", CHILD, ids=[9])


def rewrite_parent(client: SimClient) -> None:
    client.ask("trim_ctx", PARENT, 2)
    client.ask("append", PARENT, ids=[50, 51, 52, 53, 54])
    client.ask("infer", PARENT, 1, 0.0)


def lose_by_eviction(sim: Sim) -> None:
    """Somebody needs every block of the pool for a moment."""
    other = sim.client()
    other.ask("alloc_ctx", 1)
    other.ask("append", 1, ids=[3] * 140)
    assert other.ask("infer", 1, 1, 0.0).errno == 0
    other.ask("free_ctx", 1)
    sim.settle()
    assert sim.pool.evicted


def lose_by_death(sim: Sim) -> None:
    sim.link.die()
    sim.settle()


def test_a_claim_shrinks_with_the_trim_of_its_block() -> None:
    sim = Sim()
    client = sim.client()
    claim(client)
    client.ask("trim_ctx", CHILD, 2)
    client.ask("append", CHILD, ids=[7, 8, 9, 10, 11])
    assert client.ask("infer", CHILD, 4, 0.0).tokens == expected([1, 2, 7, 8, 9, 10, 11], 4)


@pytest.mark.parametrize("lose", [lose_by_eviction, lose_by_death])
@pytest.mark.parametrize("rewritten", [True, False])
def test_a_claim_does_not_outlive_its_origins_kv(lose: object, rewritten: bool) -> None:
    sim = Sim(num_blocks=10)
    client = sim.client()
    claim(client)
    assert callable(lose)
    lose(sim)
    if rewritten:
        rewrite_parent(client)
    reply = client.ask("infer", CHILD, 3, 0.0)
    assert reply.tokens == expected([*PROMPT, 9], 3)


def test_a_claim_shrinks_with_what_its_origin_has_lost() -> None:
    """The host tier has the first positions of a block only, and the device dies."""
    sim = SavingSim(tiers=HOST)
    client = sim.client()
    client.ask("alloc_ctx", PARENT)
    client.ask("infer", PARENT, 1, 0.0, ids=PROMPT)
    block = next(iter(sim.system.contexts())).blocks[0]
    assert sim.model.swap.out(block)
    sim.until(lambda: not sim.model.swap.busy)
    assert client.ask("infer", PARENT, 3, 0.0).errno == 0
    assert (block.kept, block.filled) == (6, 9)
    client.ask("fork_ctx", PARENT, CHILD)
    client.ask("trim_ctx", CHILD, 9)
    client.ask("append", CHILD, ids=[9])
    sim.link.die()
    client.ask("trim_ctx", PARENT, 6)
    assert client.ask("infer", PARENT, 1, 0.0).errno == 0
    ids = client.ask("read_ctx", CHILD).ids
    assert client.ask("infer", CHILD, 4, 0.0).tokens == expected(list(ids), 4)
    assert sim.system.device.epoch == 2, "no step has read what is not there"
    sim.end()


def test_parent_and_child_are_computed_again_in_one_step() -> None:
    sim = Sim()
    client = sim.client()
    claim(client)
    lose_by_death(sim)
    parent, child = client.send("infer", PARENT, 3, 0.0), client.send("infer", CHILD, 3, 0.0)
    sim.until(lambda: parent.done and child.done)
    assert parent.tokens == expected(PROMPT, 3)
    assert child.tokens == expected([*PROMPT, 9], 3)
    assert sim.system.device.epoch == 2, "the driver had nothing to object to"


@pytest.mark.parametrize("lose", [lose_by_eviction, lose_by_death])
def test_a_claim_that_does_outlive_it_is_found(
    lose: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockPool, "_orphan", lambda self, block: None)
    with pytest.raises(AssertionError):
        test_a_claim_does_not_outlive_its_origins_kv(lose, True)
