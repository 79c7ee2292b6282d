"""A crowd that saves and loads, while drivers, stores and programs die."""

from random import Random

import pytest

from syscalls.errors import Errno
from tests.helpers.crowd import LEGAL, Crowd, Member, Mirror
from tests.helpers.saving import ALL, DEVICE, DISK, HOST, SavingSim, Tiers
from tests.helpers.sim import SimClient

NAMES = ("one", "two", "three")
Kept = dict[str, list[list[int]]]


class Saver(Member):
    """A member that also saves, loads and drops; `kept` is what each name may hold."""

    legal = LEGAL | {Errno.ENOENT, Errno.ENODEV, Errno.EPERM}
    kept: Kept
    loads = 0

    def act(self) -> int:
        before = self.client._last
        idle = [m for m in self.contexts.values() if m.infer is None and m.ids]
        name, draw = self.random.choice(NAMES), self.random.random()
        if idle and not self.then and draw < 0.7:  # it is known what the kernel will save
            self._save(self.random.choice(idle), name)
        elif draw > 0.25:
            super().act()
        elif draw < 0.23:
            self._load(name)
        elif draw < 0.24:
            self.client.send("list_saves")
        else:
            self.client.send("drop_save", name)
        return self.client._last - before

    def _save(self, mirror: Mirror, name: str) -> None:
        # From now on it may be there: also if its caller never hears of it.
        self.kept[name].append(list(mirror.ids))
        self.client.send("save_ctx", mirror.handle, name)

    def _load(self, name: str) -> None:
        handle = self.client.new_handle()
        reply = self.client.send("load_ctx", handle, name)

        def loaded() -> None:
            read = self.client.send("read_ctx", handle)
            self.then[read.call] = lambda: came(list(read.ids))

        def came(ids: list[int]) -> None:
            assert ids in self.kept[name], "a save is one that was made, whole"
            assert len(ids) == reply.result.length
            self.contexts[handle] = Mirror(handle, ids)
            self.loads += 1

        self.then[reply.call] = loaded


class SavingCrowd(Crowd):
    """Savers, and a store that dies."""

    def __init__(self, sim: SavingSim, members: int, deaths: float) -> None:
        super().__init__(sim, 0)
        self.kept: Kept = {name: [] for name in NAMES}
        self.deaths = deaths
        self.members = [self._member(sim.client()) for _ in range(members)]

    def _member(self, client: SimClient) -> Saver:
        member = Saver(client, Random(self.random.random()))
        member.kept = self.kept
        return member

    def _replace(self, index: int) -> None:
        super()._replace(index)
        self.members[index] = self._member(self.members[index].client)

    def turn(self) -> None:
        super().turn()
        store = self.sim.store
        assert store is not None
        if self.random.random() < self.deaths:
            store.die()
        elif self.random.random() < 0.8:
            store.pump(1)


@pytest.mark.parametrize("tiers", [DEVICE, HOST, DISK, ALL])
def test_a_crowd_that_saves(tiers: Tiers) -> None:
    crowds = [_crowd(tiers, seed) for seed in range(2)]
    assert sum(len(made) for crowd in crowds for made in crowd.kept.values()) > 20
    assert sum(member.loads for crowd in crowds for member in crowd.members) > 0


def _crowd(tiers: Tiers, seed: int) -> SavingCrowd:
    sim = SavingSim(tiers=tiers, seed=seed, num_blocks=40)
    crowd = SavingCrowd(sim, 4, deaths=0.003)
    crowd.run(1200)
    crowd.leave()
    sim.until(lambda: not sim.system.errands.busy)
    sim.settle()
    sim.turn()
    crowd.check_ended()
    sim.check_empty()
    assert sim.store is not None
    sim.store.kill()
    return crowd
