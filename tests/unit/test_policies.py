"""Policies: who is next, who gives way, and what the kernel does about one that is wrong."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from kernel.account import WEIGHTS, Account, AccountTable
from kernel.chosen import BUILT_IN, Chosen, Unknown
from kernel.policies.fair import QUANTUM, Fair
from kernel.policies.fifo import Fifo
from kernel.policies.priority import Priority
from kernel.policy import Policy, Runnable

SLOTS, COST = 8, 3
"""Requests of a step, and what a decode is charged."""


@dataclass(eq=False)
class Asker:
    """A request that never ends."""

    arrival: int
    rank: Account
    decoding: bool = True
    background: bool = False
    remaining: int = 1
    got: int = field(default=0)


def crowd(table: AccountTable, sizes: dict[Account, int]) -> list[Asker]:
    asked: list[Asker] = []
    for account, count in sizes.items():
        asked += [Asker(len(asked) + n, account) for n in range(count)]
    return asked


def serve(policy: Policy, askers: Sequence[Asker], steps: int, slots: int = SLOTS) -> None:
    """Run steps in which as many as there are slots get one id each."""
    for _ in range(steps):
        for asker, _ in zip(policy.order(askers), range(slots), strict=False):
            assert isinstance(asker, Asker)
            asker.got += COST
            policy.charge(asker.rank, COST)


def service(askers: Iterable[Asker]) -> "Counter[Account]":
    got: Counter[Account] = Counter()
    for asker in askers:
        got[asker.rank] += asker.got
    return got


@pytest.mark.parametrize("sizes", [(8, 80), (80, 8), (1000, 9)])
def test_two_that_never_lack_requests_are_served_alike(sizes: tuple[int, int]) -> None:
    table = AccountTable()
    a, b = (table.task(pid, table.owner(pid)) for pid in (2, 3))
    askers, fair = crowd(table, {a: sizes[0], b: sizes[1]}), Fair()
    for _ in range(300):
        serve(fair, askers, 1)
        got = service(askers)
        assert abs(got[a] - got[b]) <= 2 * SLOTS * COST
    fifo = crowd(table, {a: sizes[0], b: sizes[1]})
    serve(Fifo(), fifo, 300)
    assert service(fifo)[b] == 0, "the same load under fifo starves one"


@pytest.mark.parametrize("nice", [-5, 3, 10])
def test_weights_are_shares(nice: int) -> None:
    table = AccountTable()
    a, b = table.task(2, table.owner(7), nice), table.task(3, table.owner(7))
    askers = crowd(table, {a: 40, b: 40})
    serve(Fair(), askers, 3000)
    got = service(askers)
    assert got[a] / got[b] == pytest.approx(WEIGHTS[nice + 20] / 1024, rel=0.02)


def test_shares_go_down_the_tree() -> None:
    """Two users have half each, however many tasks they have; a task competes with its children."""
    table = AccountTable()
    one = table.task(2, table.owner(1))
    agent = table.task(3, table.owner(2))
    children = [table.task(pid, agent) for pid in range(4, 7)]
    askers = crowd(table, dict.fromkeys([one, agent, *children], 20))
    serve(Fair(), askers, 2000)
    got = service(askers)
    total = sum(got.values())
    assert got[one] / total == pytest.approx(1 / 2, abs=0.01)
    for account in (agent, *children):
        assert got[account] / total == pytest.approx(1 / 8, abs=0.01)


def test_idle_time_is_not_saved_up() -> None:
    table, fair = AccountTable(), Fair()
    a, b = (table.task(pid, table.owner(1)) for pid in (2, 3))
    askers = crowd(table, {a: 20, b: 20})
    serve(fair, [asker for asker in askers if asker.rank is a], 1000)
    before = service(askers)
    serve(fair, askers, 100)
    got = service(askers)
    assert abs((got[a] - before[a]) - got[b]) <= 2 * SLOTS * COST


def test_whoever_comes_and_goes_is_not_starved_by_those_who_stay() -> None:
    table, fair, random = AccountTable(), Fair(), Random(1)
    stays, comes = (table.task(pid, table.owner(1)) for pid in (2, 3))
    flood = crowd(table, {stays: 100})
    waits = []
    for _ in range(200):
        serve(fair, flood, random.randint(1, 20))
        guest = Asker(10_000, comes)
        waited = 0
        while not guest.got:
            serve(fair, [*flood, guest], 1)
            waited += 1
        waits.append(waited)
    assert max(waits) == 1


def test_priority_is_strict() -> None:
    table = AccountTable()
    low, high = table.task(2, table.owner(1), 5), table.task(3, table.owner(1), -5)
    askers = crowd(table, {low: 20, high: SLOTS})
    serve(Priority(), askers, 10)
    assert service(askers)[low] == 0
    ranks = [request.rank for request in Priority().claims(askers)]
    assert ranks == [high] * SLOTS + [low] * 20


@pytest.mark.parametrize("make", BUILT_IN.values(), ids=BUILT_IN)
def test_who_has_places_is_a_total_order(make: Callable[[], Policy]) -> None:
    """Else two could take each other's places for ever."""
    random = Random(3)
    for _ in range(50):
        table, policy = AccountTable(), make()
        accounts = [table.task(2, table.owner(1))]
        for pid in range(3, 12):
            above = random.choice([*accounts, table.owner(random.randrange(3))])
            accounts.append(table.task(pid, above, random.randint(-3, 3)))
        for account in accounts:
            policy.charge(account, random.randrange(4 * QUANTUM))
        askers = [Asker(n, random.choice(accounts)) for n in range(20)]
        claims = policy.claims(askers)
        assert Counter(claims) == Counter(askers)
        for _ in range(5):
            some = random.sample(askers, 7)
            assert policy.claims(some) == [asker for asker in claims if asker in some]


def test_the_older_of_two_tasks_has_places_until_it_is_a_quantum_ahead() -> None:
    """However often it has asked anew: who has begun ends, and leaves room."""
    table, fair = AccountTable(), Fair()
    old, young = (table.task(pid, table.owner(1)) for pid in (2, 3))
    young_asks, old_asks = Asker(1, young), Asker(2, old)
    for _ in range(QUANTUM - 1):
        assert fair.claims([young_asks, old_asks]) == [old_asks, young_asks]
        fair.charge(old, 1)
    fair.charge(old, 1)
    assert fair.claims([young_asks, old_asks]) == [young_asks, old_asks]
    fair.charge(young, QUANTUM)
    assert fair.claims([young_asks, old_asks]) == [old_asks, young_asks]


class Wrong(Fifo):
    """Decides what it likes."""

    def order(self, requests: Sequence[Runnable]) -> list[Runnable]:
        return [*requests, *requests]

    def claims(self, requests: Iterable[Runnable]) -> list[Runnable]:
        raise ZeroDivisionError


def test_a_policy_that_is_wrong_is_told_of_and_not_followed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = AccountTable()
    askers = crowd(table, {table.task(2, table.owner(1)): 4})
    with caplog.at_level(logging.ERROR):
        chosen = Chosen("wrong", {"wrong": Wrong()})
        for _ in range(3):
            assert list(chosen.order(askers)) == askers
            assert chosen.claims(askers) == askers
    assert len(caplog.records) == 2 and "fair decides" in caplog.text


INSTALLED = """
from kernel.policies.fifo import Fifo

class Lifo(Fifo):
    def order(self, requests):
        return list(reversed(super().order(requests)))
"""


def test_a_package_beside_the_kernel_brings_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that cannot be loaded, or has the name of the kernel's own, is left out and told."""
    (tmp_path / "lifo_policy.py").write_text(INSTALLED)
    info = tmp_path / "lifo_policy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lifo-policy\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[llmos.policies]\nlifo = lifo_policy:Lifo\nfair = lifo_policy:Lifo\nno = nowhere:X\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    chosen = Chosen("lifo")
    assert chosen.names == ["fair", "fifo", "priority", "lifo"]
    table = AccountTable()
    askers = crowd(table, {table.task(2, table.owner(1)): 3})
    assert list(chosen.order(askers)) == askers[::-1]
    assert "policy no cannot be loaded" in caplog.text and "policy fair of lifo" in caplog.text


def test_what_is_not_there_cannot_be_chosen() -> None:
    chosen = Chosen("fifo", {})
    with pytest.raises(Unknown, match="there are fair, fifo, priority"):
        chosen.choose("lottery")
    assert chosen.name == "fifo"
