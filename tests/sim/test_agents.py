"""Agents with tools on a pool for a quarter of them (bench/agents.py): all of them finish, and the
kernel never turns without an end while copies between the tiers are on their way.
"""

import pytest

from bench.agents import need, simulate, uses
from kernel.policies.fair import Fair
from tests.helpers import clockwork

AGENTS = 8
POOL = 84
"""Blocks: for the prompt that all share, and one agent."""


@pytest.mark.parametrize("tier", ["none", "host"])
def test_all_agents_finish(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clockwork, "MOST_TURNS", 100)
    host_blocks = need(AGENTS) if tier == "host" else 0
    outcome = simulate(True, Fair(), host_blocks, AGENTS, POOL)
    longest = max(sum(use.seconds for use in uses(agent)) for agent in range(AGENTS))
    assert outcome.finished_s > longest
    assert (outcome.recomputed == 0) == (tier == "host")
