"""Strict priority in scenarios: nobody waits for one who is nicer, whoever it calls; and calls
between servers that would wait for each other for ever end with EDEADLK.
"""

import pytest

from kernel.mail import Mail
from kernel.policies.fifo import Fifo
from kernel.policies.priority import Priority
from syscalls.errors import Errno
from tests.helpers.inversions import ranked

EVENTS = 400
SEEDS = 0, 1, 2, 5, 6, 10
STEPS = 6
"""That the first one may wait for blocks while worse ones run: what these leave is zeroed."""


def test_nobody_waits_for_who_is_nicer() -> None:
    compared = inherited = circles = 0
    for seed in SEEDS:
        scenario, inversions = ranked(seed)
        scenario.work.run(events=EVENTS)
        compared += inversions.compared
        inherited += inversions.inherited
        circles += scenario.world.errnos[Errno.EDEADLK]
        scenario.leave()
    assert compared > 1000 and inherited > 20 and circles > 3, (compared, inherited, circles)


def test_nor_for_the_blocks_of_who_is_nicer() -> None:
    longest = 0
    for seed in SEEDS:
        scenario, inversions = ranked(seed, num_blocks=40)
        scenario.work.run(events=EVENTS)
        longest = max(longest, inversions.longest)
    assert 0 < longest <= STEPS


def no_inheritance(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mail, "rank", property(lambda self: self.task.account))


def first_come_first_served(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Priority, "order", Fifo.order)


@pytest.mark.parametrize("plant", [no_inheritance, first_come_first_served])
def test_an_inversion_is_found(plant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)  # type: ignore[operator]
    with pytest.raises(AssertionError, match="waits for"):
        for seed in SEEDS:
            ranked(seed)[0].work.run(events=EVENTS)
