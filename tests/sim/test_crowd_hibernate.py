"""A random crowd (tests/helpers/crowd.py) whose kernel saves everything and is started again."""

from random import Random
from typing import Any

import pytest

from syscalls.errors import Errno
from tests.helpers.crowd import LEGAL, Crowd
from tests.helpers.disks import MemoryFiles
from tests.helpers.hibernating import HibernatingSim


class Moving(Crowd):
    """A crowd that can go on with the next kernel."""

    def hibernate(self) -> Any:
        """Have everything saved; each member sees how its calls end."""
        sim: Any = self.sim
        sim.front.blocked.clear()
        sim.turn()
        reply = sim.hibernate(grace_s=0.01 * self.random.randrange(3))
        for member in self.members:
            member.see(member.client.take())
            assert all(mirror.infer is None for mirror in member.contexts.values())
        return reply

    def move(self, sim: HibernatingSim) -> int:
        """Attach to the next kernel; return how many contexts are there, compared id by id."""
        compared = 0
        self.sim, self.random = sim, Random(self.calls)
        for member in self.members:
            hello = member.client.calls[1].result
            client, reply = sim.attach(hello.pid, hello.token)
            assert reply.errno == 0, reply.message
            client.calls[1].result = reply.result  # it has the token, too
            client.handle = reply.result.connection << 24
            for handle, mirror in member.contexts.items():
                assert list(client.ask("read_ctx", handle).ids) == mirror.ids
                compared += 1
            client.take()
            member.client = client
        assert compared == sim.system.num_contexts
        return compared


@pytest.mark.parametrize("seed", range(4))
def test_a_crowd_moves_from_kernel_to_kernel(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.helpers.crowd.LEGAL", LEGAL | {Errno.ECONNRESET})
    files, tiers = MemoryFiles(), {"host_blocks": 32 * (seed % 2), "num_blocks": 48 + 16 * seed}
    sim = HibernatingSim(files, seed=seed, **tiers)
    crowd, moved = Moving(sim, 12), 0
    for life in range(3):
        crowd.run(400 * (life + 1))
        sim.check()
        reply = crowd.hibernate()
        assert reply.errno == 0, reply.message
        sim = HibernatingSim(files, seed=seed + life, **tiers)
        sim.check()
        moved += crowd.move(sim)
    crowd.run(1600)
    assert moved > 30 and sum(member.checked for member in crowd.members) > 100
    assert sim.saves(sim.client()) == []
    sim.leave()
