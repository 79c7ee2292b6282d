"""The seeded simulator: 64 clients that fork, cancel, trim, die and are killed at random.

Afterwards nothing is left: no block in use or in limbo, free blocks are zero, no task, and every
call ended once. Every sampled id was compared with what the ids alone say (tests/helpers/crowd).
"""

import pytest

from tests.helpers.crowd import Crowd
from tests.helpers.sim import Sim


def live(seed: int, calls: int, members: int = 64, **config: int) -> Sim:
    sim = Sim(seed, **config)
    crowd = Crowd(sim, members)
    crowd.run(calls)
    crowd.leave()
    crowd.check_ended()
    sim.check_empty()
    assert sum(member.checked for member in crowd.members) > calls // 20
    return sim


@pytest.mark.parametrize("seed", range(3))
def test_crowd(seed: int) -> None:
    live(seed, 3_000)


def test_ps_and_the_allocator_agree_at_a_thousand_moments() -> None:
    sim = Sim(21)
    crowd = Crowd(sim, 16)
    moments = 0
    while moments < 1_000:
        crowd.run(crowd.calls + 1, checks=1.0)  # the check is made after every turn
        moments += 1
    crowd.leave()
    sim.check_empty()


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_crowd_of_10_000_calls(seed: int) -> None:
    live(seed, 10_000)


@pytest.mark.parametrize("num_blocks", [10, 13, 33])
def test_small_pools_end_too(num_blocks: int) -> None:
    sim = live(num_blocks, 1_500, members=12, num_blocks=num_blocks)
    assert sim.pool.evicted > 0, "the pool was too small to hold everything"


def test_prefill_in_sevens_and_small_blocks() -> None:
    live(5, 2_000, members=24, prefill_chunk=7)


def test_same_seed_same_life() -> None:
    first, second = live(11, 800, members=16), live(11, 800, members=16)
    assert first.system.counters == second.system.counters
