"""Scenarios: mixes of programs on a driver that takes time, drawn from seeds; after every event ps
is compared with what is true (tests/helpers/truth.py). A failure names its seed, and how to see it
again. `pytest tests/sim/test_scenarios.py --scenarios 10000` plays more of them.
"""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from kernel import ledger, limits, quota, sys_task
from kernel.account import Account, Kind
from kernel.model import Model
from kernel.places import Places
from kernel.policies.fair import Fair
from kernel.request import Request, RequestState
from kernel.sched import Scheduler
from kernel.task import Task
from tests.helpers.scenario import EVENTS, play, thousands

STATES = (
    "S program", "S client", "T signal", "P", "R", "Q step", "D blocks", "D copies", "S child",
    "S program new", "Z parent zombie",
)  # fmt: skip
"""What has to have been seen: a scenario without it compares nothing."""
ENDED = (
    "output_ids ended", "device_s ended", "device_blocks ended", "output_ids refused",
    "device_s refused", "input_ids refused", "device_blocks refused", "requests_per_min refused",
    "children refused",
)  # fmt: skip
"""Likewise, of calls by limits."""


def test_scenarios(request: pytest.FixtureRequest) -> None:
    seen: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    compared = ids = deaths = given_up = 0
    seeds = request.config.getoption("--scenarios")
    for seed in range(seeds):
        scenario = play(seed, EVENTS)
        seen.update(scenario.truth.seen)
        compared += scenario.truth.compared
        if scenario.limited is not None:
            ended.update(scenario.limited.seen)
        ids += scenario.ids.compared
        if scenario.deaths is not None:
            deaths += scenario.deaths.count
            given_up += scenario.deaths.given_up
    assert compared > seeds * EVENTS
    assert not [state for state in STATES if seen[state] < 10], seen
    assert ids > seeds * EVENTS // 2 and deaths > seeds and given_up, (ids, deaths, given_up)
    assert not [what for what in ENDED if ended[what] < 3], ended


def test_a_seed_gives_the_same_again() -> None:
    first, again = play(5, EVENTS), play(5, EVENTS)  # with limits, deaths and a team
    assert first.truth.seen == again.truth.seen
    assert first.work.now == again.work.now
    assert [s.times for s in first.world.finished] == [s.times for s in again.world.finished]


def test_ten_thousand_tasks() -> None:
    scenario = thousands(1, 10_000, Fair())
    scenario.work.run(events=350)
    assert len(scenario.world.by_pid) == 10_000
    assert scenario.batches.steps > 10
    assert len(scenario.world.streams) > 200, "so few wait that nothing is shared out"
    scenario.leave()


# --- ps that does not tell the truth ------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def blocks_of_a_plan_before(patch: pytest.MonkeyPatch) -> None:
    """Who got no blocks waits for them until it runs, whatever has become free since."""
    plan, become = Scheduler.plan, Request.become

    def planning(self: Scheduler) -> Any:
        blocked = [r for r in self.requests.values() if r.state is RequestState.BLOCKED]

        def stays(request: Request, state: RequestState) -> None:
            if not (request in blocked and state is RequestState.QUEUED):
                become(request, state)

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Request, "become", stays)
            return plan(self)

    patch.setattr(Scheduler, "plan", planning)


def waits_for_blocks_that_have_come(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Request, "shown", Request.state)


def stopped_and_shown_as_running(patch: pytest.MonkeyPatch) -> None:
    letter = Task.letter

    def still(self: Task) -> tuple[str, str]:
        shown = letter(self)
        return ("R", "") if shown[0] == "T" else shown

    patch.setattr(Task, "letter", still)


def ids_counted_late(patch: pytest.MonkeyPatch) -> None:
    row = sys_task.task_row

    def late(k: Any, task: Task) -> Any:
        found = yield from row(k, task)
        running = found.state == "R"
        return found._replace(output_tokens=found.output_tokens - running)

    patch.setattr("tests.helpers.truth.task_row", late)


def shared_blocks_counted_whole(patch: pytest.MonkeyPatch) -> None:
    row = sys_task.task_row

    def whole(k: Any, task: Task) -> Any:
        found = yield from row(k, task)
        return found._replace(blocks=float(round(found.blocks + 0.49)))

    patch.setattr("tests.helpers.truth.task_row", whole)


def a_request_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The third of four waits for ever, and ps says that it is its turn next."""
    order = Scheduler._span

    def never(self: Scheduler, request: Request, budget: int) -> tuple[int, int]:
        return order(self, request, 0 if request.arrival % 4 == 3 else budget)

    def waits(self: Scheduler, request: Request, start: int, end: int) -> bool:
        return request.arrival % 4 == 3

    patch.setattr(Scheduler, "_span", never)
    patch.setattr(Scheduler, "_is_away", waits)
    patch.setattr(Places, "bring", lambda self, request, start: None)


def a_task_starves(patch: pytest.MonkeyPatch) -> None:
    """It is stopped behind its back, and ps is told to say what it would say anyway."""
    order = Fair.order

    def without(self: Fair, requests: Any) -> Any:
        return order(self, [r for r in requests if int(r.rank.name) % 3 != 1])

    patch.setattr(Fair, "order", without)
    patch.setattr("tests.helpers.truth.Truth.look", lambda truth: _follow(truth))


def limits_looked_at_when_calls_come_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(quota, "enforce", lambda k: k.tasks.accounts.hot.clear() or [])


def limits_looked_at_once_a_step(patch: pytest.MonkeyPatch) -> None:
    """Not after each id of it."""
    deliver = SimpleNamespace(enforce=lambda k: [], admit_request=quota.admit_request)
    patch.setattr("kernel.sys_infer.quota", deliver)


def children_are_not_charged_to_their_parents(patch: pytest.MonkeyPatch) -> None:
    def around(account: Account, counter: str, amount: int) -> None:
        ledger.charge(account, counter, amount)
        for each in account.path():
            if each.kind is Kind.TASK and each is not account:
                setattr(each.usage, counter, getattr(each.usage, counter) - amount)

    patch.setattr("kernel.sys_infer.charge", around)


def children_stand_beside_their_parents(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("kernel.birth.place", lambda k, by, now, name: k.tasks.accounts.owner(now.uid))


def groups_are_not_charged(patch: pytest.MonkeyPatch) -> None:
    """What is generated in a group is charged to its tasks and their user, as if none were
    between."""

    def around(account: Account, counter: str, amount: int) -> None:
        ledger.charge(account, counter, amount)
        for each in account.path():
            if each.kind is Kind.GROUP:
                setattr(each.usage, counter, getattr(each.usage, counter) - amount)

    patch.setattr("kernel.sys_infer.charge", around)


def others_end_for_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(quota, "_requests", lambda k, account: list(k.device.requests))


def refused_are_counted(patch: pytest.MonkeyPatch) -> None:
    """Requests of a minute are counted as they come, not as they are accepted."""
    admit = limits.admit

    def counting(account: Account, resource: limits.Resource, more: float) -> None:
        if resource is limits.Resource.REQUESTS_PER_MIN:
            limits.accepted(account)
        admit(account, resource, more)

    patch.setattr(limits, "admit", counting)


def who_was_in_flight_loses_an_id(patch: pytest.MonkeyPatch) -> None:
    """With the driver."""
    lose = Model.lose_device

    def losing(self: Model) -> list[Request]:
        hit = lose(self)
        for request in hit:
            if request.output:
                request.ctx.trim(request.ctx.length - 1)
        return hit

    patch.setattr(Model, "lose_device", losing)


def deaths_count_twice(patch: pytest.MonkeyPatch) -> None:
    """So requests are given up too early."""
    lose = Model.lose_device
    patch.setattr(Model, "lose_device", lambda self: lose(self) * 2)


def _follow(truth: Any) -> None:
    truth.world.settle()
    truth.batches.identify()


LONGER = 2 * EVENTS
"""Of a scenario with a bug in it: who starves must have the time to."""
PLANTS: list[Plant] = [
    blocks_of_a_plan_before, waits_for_blocks_that_have_come, stopped_and_shown_as_running,
    ids_counted_late, shared_blocks_counted_whole, a_request_is_forgotten, a_task_starves,
    limits_looked_at_when_calls_come_only, limits_looked_at_once_a_step, groups_are_not_charged,
    children_are_not_charged_to_their_parents, children_stand_beside_their_parents,
    others_end_for_it, refused_are_counted, who_was_in_flight_loses_an_id, deaths_count_twice,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"seed \d+, event \d+"):
        for seed in range(60):
            play(seed, LONGER)
