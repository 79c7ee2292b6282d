"""Limits: they hold over whole trees, are never exceeded for long, and nobody lifts his own."""

from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

import drivers.null
from kernel.account import Account
from kernel.block import Move
from kernel.loopback import LoopbackLink
from syscalls.abi import Advice, Event, Resource, Sig
from syscalls.errors import Errno
from tests.helpers.crowd import LEGAL, Crowd, Member
from tests.helpers.ledgers import check_leaves, watch_accounts
from tests.helpers.sim import Reply, Sim, SimClient


@pytest.fixture
def sim() -> Sim:
    return Sim()


def child(parent: SimClient, name: str = "child") -> SimClient:
    """Connect a program that a task has made."""
    reply = parent.ask("spawn", name)
    assert reply.errno == 0, reply.message
    client = parent.sim.client(hello=False)
    assert client.ask("hello", name, reply.result.ticket).errno == 0
    return client


def pid(client: SimClient) -> int:
    return next(reply.result.pid for reply in client.calls.values() if reply.name == "hello")


def limit(
    client: SimClient, resource: Resource, hard: float | None, of: int = 0, **how: Any
) -> Reply:
    soft, group, owner = how.get("soft"), how.get("group"), how.get("owner", False)
    return client.ask("set_limit", resource.value, soft, hard, of, group, owner)


def signals(client: SimClient) -> list[int]:
    return [event[2] for event in client.session_events if event[0] == Event.SIGNAL]


def used(sim: Sim, client: SimClient, resource: Resource) -> float:
    rows = client.ask("snapshot", "limits").result.rows
    return next(row[8] for row in rows if row[4] == pid(client) and row[5] == resource.value)


# --- counts -----------------------------------------------------------------------------------


def test_output_ends_at_the_limit_and_stays_in_the_context(sim: Sim) -> None:
    client = sim.client()
    assert limit(client, Resource.OUTPUT_IDS, 5).errno == 0
    handle = client.context([1, 2, 3])
    infer = client.ask("infer", handle, 20, 0.0)
    assert (infer.errno, len(infer.tokens)) == (Errno.EDQUOT, 5)
    assert "output_ids of task" in infer.message and "is 5: 5 used" in infer.message
    assert client.ask("read_ctx", handle).ids.tolist() == [1, 2, 3, *infer.tokens]
    again = client.ask("infer", handle, 1, 0.0)
    assert (again.errno, again.tokens) == (Errno.EDQUOT, [])
    sim.leave()


def test_an_infer_that_ends_at_the_limit_has_not_exceeded_it(sim: Sim) -> None:
    client = sim.client()
    assert limit(client, Resource.OUTPUT_IDS, 5).errno == 0
    assert client.ask("infer", client.context([1]), 5, 0.0).errno == 0
    sim.leave()


@pytest.mark.parametrize("forks", [2, 7])
def test_forks_share_what_is_left(sim: Sim, forks: int) -> None:
    """Each of n branches sees the whole remainder when it begins; together they get it once."""
    client = sim.client()
    assert limit(client, Resource.OUTPUT_IDS, 40).errno == 0
    handle, infers = client.context([1] * 20), []
    for _ in range(forks):
        branch = client.new_handle()
        assert client.ask("fork_ctx", handle, branch).errno == 0
        infers.append(client.send("infer", branch, 39, 1.0))
    sim.until(lambda: all(reply.done for reply in infers))
    assert sum(len(reply.tokens) for reply in infers) == 40
    assert all(reply.errno == Errno.EDQUOT for reply in infers)
    sim.leave()


def test_children_share_what_their_parent_may_use(sim: Sim) -> None:
    parent = sim.client()
    assert limit(parent, Resource.OUTPUT_IDS, 30).errno == 0
    children = [child(parent) for _ in range(3)]
    grandchild = child(children[0])
    infers = [
        c.send("infer", c.context([n + 1]), 25, 0.0) for n, c in enumerate((*children, grandchild))
    ]
    sim.until(lambda: all(reply.done for reply in infers))
    assert sum(len(reply.tokens) for reply in infers) == 30
    assert all(f"task {pid(parent)}" in reply.message for reply in infers if reply.errno)
    stranger = sim.client()
    assert stranger.ask("infer", stranger.context([9]), 25, 0.0).errno == 0
    sim.leave()


def test_going_back_refunds_nothing(sim: Sim) -> None:
    """trim, cancel that keeps nothing, free: ids were computed, and stay counted."""
    client = sim.client()
    assert limit(client, Resource.OUTPUT_IDS, 10).errno == 0
    assert limit(client, Resource.INPUT_IDS, 100).errno == 0
    handle, total = client.context([1] * 10), 0
    for _ in range(10):
        infer = client.send("infer", handle, 5, 0.0)
        sim.until(lambda: len(infer.tokens) >= 2 or infer.done)  # noqa: B023
        client.ask("cancel", infer.call, 0)
        total += len(infer.tokens)
        client.ask("trim_ctx", handle, 1)
    assert 10 <= total <= 11
    for _ in range(20):
        fresh = client.new_handle()
        client.ask("alloc_ctx", fresh)
        if client.ask("append", fresh, ids=[1] * 9).errno:
            break
        client.ask("free_ctx", fresh)
    assert used(sim, client, Resource.INPUT_IDS) <= 100
    sim.leave()


def test_input_is_refused_whole_and_exactly(sim: Sim) -> None:
    client = sim.client()
    assert limit(client, Resource.INPUT_IDS, 30).errno == 0
    handle = client.context([1] * 20)
    refused = client.ask("append", handle, ids=[2] * 11)
    assert refused.errno == Errno.EDQUOT and "20 used, 11 more" in refused.message
    assert client.ask("stat_ctx", handle).result.length == 20
    assert client.ask("infer", handle, 1, 0.0, ids=[2] * 11).errno == Errno.EDQUOT
    assert client.ask("score", handle, 1, 0, ids=[2] * 11).errno == Errno.EDQUOT
    assert client.ask("append", handle, ids=[2] * 10).errno == 0
    assert client.ask("append", handle, ids=[2]).errno == Errno.EDQUOT
    sim.leave()


def test_device_time_ends_what_runs_within_two_steps(sim: Sim) -> None:
    client = sim.client()
    handle = client.context([1] * 8)
    infer = client.send("infer", handle, 900, 0.0)
    sim.until(lambda: len(infer.tokens) == 3)
    k = sim.system
    (task,) = (t for t in k.tasks if t.pid == pid(client))
    steps = k.device.models.totals.steps
    assert limit(client, Resource.DEVICE_S, task.account.usage.device_us / 1e6).errno == 0
    sim.until(lambda: infer.done)
    assert infer.errno == Errno.EDQUOT and "device_s" in infer.message
    assert k.device.models.totals.steps <= steps + 2
    assert client.ask("append", handle, ids=[1]).errno == Errno.EDQUOT
    sim.leave()


def test_wall_clock_ends_what_runs_and_wakes_the_kernel_for_it(sim: Sim) -> None:
    client = sim.client()
    assert limit(client, Resource.WALL_S, 60.0, soft=30.0).errno == 0
    handle = client.context([1])
    sim.settle()
    sleeps = sim.kernel.timeout()
    assert sleeps is not None and 29.0 < sleeps <= 30.0
    sim.clock.now += sleeps
    sim.turn()
    assert signals(client) == [Sig.XCPU]
    stopped = client.send("infer", handle, 900, 0.0)
    sim.until(lambda: len(stopped.tokens) > 2)
    sim.clock.now += 40.0
    sim.until(lambda: stopped.done, turns=3)
    assert stopped.errno == Errno.EDQUOT
    assert signals(client) == [Sig.XCPU], "once"
    assert sim.kernel.timeout() is None, "nothing more is due"
    sim.leave()


def test_requests_of_a_minute(sim: Sim) -> None:
    client = sim.client()
    assert limit(client, Resource.REQUESTS_PER_MIN, 3).errno == 0
    handle = client.context([1])
    answers = [client.ask("infer", handle, 1, 0.0).errno for _ in range(5)]
    assert answers == [0, 0, 0, Errno.EDQUOT, Errno.EDQUOT], "what is refused does not count"
    assert limit(client, Resource.REQUESTS_PER_MIN, 3).errno == 0
    assert client.ask("infer", handle, 1, 0.0).errno == Errno.EDQUOT, "setting it anew is no way"
    sim.clock.now += 60.0
    assert client.ask("infer", handle, 1, 0.0).errno == 0
    sim.leave()


# --- levels -----------------------------------------------------------------------------------


def test_blocks_of_the_device_are_refused_when_they_are_known_to_be_too_many(sim: Sim) -> None:
    client = sim.client()
    assert limit(client, Resource.DEVICE_BLOCKS, 4).errno == 0
    handle = client.context([1] * 40)
    refused = client.ask("infer", handle, 30, 0.0)
    assert refused.errno == Errno.EDQUOT and "device_blocks" in refused.message
    assert client.ask("infer", handle, 20, 0.0).errno == 0
    sim.leave()


def test_own_idle_contexts_give_way_first(sim: Sim) -> None:
    client, other = sim.client(), sim.client()
    others = other.context([7] * 48)
    assert other.ask("infer", others, 1, 0.0).errno == 0
    assert limit(client, Resource.DEVICE_BLOCKS, 4).errno == 0
    for n in range(5):
        handle = client.context([n + 1] * 48)
        assert client.ask("infer", handle, 4, 0.0).errno == 0
        assert used(sim, client, Resource.DEVICE_BLOCKS) <= 4
    assert other.ask("stat_ctx", others).result.blocks == 3, "nobody else gives way for it"
    sim.leave()


def test_who_exceeds_blocks_together_ends_one_by_one(sim: Sim) -> None:
    """Each infer fits alone when it is accepted; the youngest ends until the rest fits."""
    client = sim.client()
    assert limit(client, Resource.DEVICE_BLOCKS, 8).errno == 0
    infers = [client.send("infer", client.context([n + 1]), 100, 0.0) for n in range(6)]
    most = 0.0
    while not all(reply.done for reply in infers):
        sim.turn()
        (task,) = (t for t in sim.system.tasks if t.pid == pid(client))
        most = max(most, task.account.usage.blocks[1])
    assert most <= 8 + 2 * 6, "two steps of six requests"
    assert infers[0].errno == 0, "the oldest one ends as it should"
    assert any(reply.errno == Errno.EDQUOT for reply in infers)
    sim.leave()


def test_blocks_grow_by_two_steps_beyond_their_limit_however_many_wait(sim: Sim) -> None:
    """Those that wait are the youngest, and to end them alone gives nothing back."""
    client = sim.client()
    assert limit(client, Resource.DEVICE_BLOCKS, 8).errno == 0
    handles = [client.context([]) for _ in range(12)]
    infers = [
        client.send("infer", handle, 10, 0.0, ids=[n + 1] * 90) for n, handle in enumerate(handles)
    ]
    (task,) = (t for t in sim.system.tasks if t.pid == pid(client))
    most = 0
    while not all(reply.done for reply in infers):
        sim.turn()
        most = max(most, task.account.usage.blocks[1])
    assert most <= 8 + 2 * 3, "each step decodes one and prefills 32 ids"
    assert (infers[0].errno, len(infers[0].tokens)) == (0, 10)
    assert {reply.errno for reply in infers[1:]} == {Errno.EDQUOT}
    sim.leave()


def test_blocks_of_what_has_ended_leave_though_nobody_is_charged_any_more(sim: Sim) -> None:
    operator, client = sim.client(), sim.client()
    infer = client.send("infer", client.context([1] * 90), 30, 0.0)
    sim.until(lambda: len(infer.tokens) > 2)
    assert operator.ask("kill", pid(client), int(Sig.STOP)).errno == 0
    sim.until(lambda: sim.system.device.idle)
    assert limit(operator, Resource.DEVICE_BLOCKS, 3, of=pid(client)).errno == 0
    sim.until(lambda: infer.done)
    assert infer.errno == Errno.EDQUOT
    assert sim.kernel.timeout() == 0.0, "there is more to do"
    sim.turn()
    assert used(sim, client, Resource.DEVICE_BLOCKS) <= 3
    sim.leave()


def test_blocks_of_a_lower_tier_are_dropped_where_they_may_not_be() -> None:
    sim = Sim(host_bytes=1 << 14, link=LoopbackLink("null0", host_bytes=1 << 14))
    client = sim.client()
    first, second = client.context([1] * 64), client.context([2] * 64)
    for handle in (first, second):
        assert client.ask("infer", handle, 1, 0.0).errno == 0
    assert client.ask("advise_ctx", first, Advice.DEMOTE.value).errno == 0
    sim.settle()
    assert limit(client, Resource.HOST_BLOCKS, 6).errno == 0
    assert (used(sim, client, Resource.HOST_BLOCKS), sim.model.swap.moved[Move.OUT]) == (4, 4)
    assert client.ask("advise_ctx", second, Advice.DEMOTE.value).errno == 0
    sim.settle()
    assert used(sim, client, Resource.HOST_BLOCKS) == 6
    assert sim.model.swap.moved[Move.OUT] == 6, "no copy is made that may not stay"
    assert limit(client, Resource.HOST_BLOCKS, 1).errno == 0
    assert used(sim, client, Resource.HOST_BLOCKS) == 1, "what is too much goes now"
    for handle, ids in ((first, [1] * 64), (second, [2] * 64)):
        tokens = client.ask("infer", handle, 3, 0.0).tokens
        assert len(tokens) == 3 and client.ask("read_ctx", handle).ids[:64].tolist() == ids
    sim.leave()


def test_pins(sim: Sim) -> None:
    client = sim.client()
    assert limit(client, Resource.PINNED_BLOCKS, 3).errno == 0
    small, large = client.context([1] * 40), client.context([2] * 16)
    assert client.ask("advise_ctx", small, Advice.PIN.value).errno == 0
    refused = client.ask("advise_ctx", large, Advice.PIN.value)
    assert refused.errno == Errno.EDQUOT and "3 used, 1 more" in refused.message
    assert client.ask("append", small, ids=[1] * 20).errno == Errno.EDQUOT, "nor does it grow"
    sim.leave()


def test_contexts(sim: Sim) -> None:
    parent = sim.client()
    assert limit(parent, Resource.CONTEXTS, 3).errno == 0
    one = child(parent)
    first = parent.context([1])
    one.context([1]), one.context([1])
    for client, call in ((one, "alloc_ctx"), (parent, "alloc_ctx")):
        assert client.ask(call, client.new_handle()).errno == Errno.EDQUOT
    assert parent.ask("fork_ctx", first, parent.new_handle()).errno == Errno.EDQUOT
    assert parent.ask("free_ctx", first).errno == 0
    assert one.ask("alloc_ctx", one.new_handle()).errno == 0
    sim.leave()


# --- trees ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_fork_bomb_stays_within_its_limit(sim: Sim, seed: int) -> None:
    """Whoever there is makes children, and they do; some end, and are orphans' parents."""
    random, root = Random(seed), sim.client()
    assert limit(root, Resource.CHILDREN, 12).errno == 0
    bomb, most, refused = [root], 0, 0
    account = next(t for t in sim.system.tasks if t.pid == pid(root)).account
    for _ in range(150):
        parent = random.choice(bomb)
        reply = parent.ask("spawn", "bomb")
        if reply.errno:
            assert reply.errno == Errno.EDQUOT and "children" in reply.message
            refused += 1
            if len(bomb) > 1:
                gone = bomb.pop(random.randrange(1, len(bomb)))
                gone.ask("exit")
        else:
            client = sim.client(hello=False)
            assert client.ask("hello", "bomb", reply.result.ticket).errno == 0
            bomb.append(client)
        below = [t for t in sim.system.tasks if t.account.is_below(account) and not t.ended_already]
        most = max(most, len(below) - 1)
    assert most == 12 and refused > 5
    stranger = sim.client()
    assert stranger.ask("spawn", "free").errno == 0
    sim.leave()


@pytest.mark.parametrize("hard", [0, 1, 3, 20])
def test_depth(sim: Sim, hard: int) -> None:
    root = parent = sim.client()
    assert limit(root, Resource.DEPTH, hard).errno == 0
    for _ in range(hard):
        parent = child(parent)
    refused = parent.ask("spawn", "deeper")
    assert refused.errno == Errno.EDQUOT and "depth" in refused.message
    assert hard == 0 or root.ask("spawn", "beside").errno == 0
    sim.leave()


def test_a_child_does_not_lift_what_is_above_it(sim: Sim) -> None:
    parent = sim.client()
    assert limit(parent, Resource.OUTPUT_IDS, 10).errno == 0
    one = child(parent)
    for hard in (20, 5, None):
        assert limit(one, Resource.OUTPUT_IDS, hard, of=pid(parent)).errno == Errno.EPERM
    assert limit(one, Resource.OUTPUT_IDS, 1_000).errno == 0, "its own, which does not help"
    infer = one.ask("infer", one.context([1]), 50, 0.0)
    assert (infer.errno, len(infer.tokens)) == (Errno.EDQUOT, 10)
    assert limit(one, Resource.OUTPUT_IDS, 5, owner=True).errno == Errno.EPERM
    sim.leave()


def test_a_task_lowers_its_own_and_does_not_raise_it(sim: Sim) -> None:
    parent = sim.client()
    one = child(parent)
    assert limit(one, Resource.OUTPUT_IDS, 10).errno == 0
    assert limit(one, Resource.OUTPUT_IDS, 8).errno == 0
    for hard in (9, None):
        refused = limit(one, Resource.OUTPUT_IDS, hard)
        assert refused.errno == Errno.EPERM and "may lower it" in refused.message
    assert limit(parent, Resource.OUTPUT_IDS, 50, of=pid(one)).errno == 0, "who is above may"
    stranger = sim.client()
    assert limit(stranger, Resource.OUTPUT_IDS, None, of=pid(one)).errno == 0, "so may the user"
    sim.leave()


def test_limits_of_a_user_and_of_a_group(sim: Sim) -> None:
    operator, agent = sim.client(), sim.client()
    assert operator.ask("group", pid(agent), "lab").errno == 0
    assert limit(operator, Resource.OUTPUT_IDS, 4, group="lab").errno == 0
    assert limit(agent, Resource.OUTPUT_IDS, 9, group="lab").errno == Errno.EPERM
    assert limit(agent, Resource.OUTPUT_IDS, 9, owner=True).errno == Errno.EPERM
    infer = agent.ask("infer", agent.context([1]), 9, 0.0)
    assert infer.errno == Errno.EDQUOT and "group lab" in infer.message and len(infer.tokens) == 4
    assert limit(operator, Resource.OUTPUT_IDS, 6, owner=True).errno == 0
    assert limit(operator, Resource.OUTPUT_IDS, None, group="lab").errno == 0
    infer = agent.ask("infer", agent.context([1]), 9, 0.0)
    assert infer.errno == Errno.EDQUOT and "user 1000" in infer.message and len(infer.tokens) == 2
    assert limit(operator, Resource.OUTPUT_IDS, 6, group="none").errno == Errno.ESRCH
    assert agent.ask("group", 0, None).errno == Errno.EPERM, "nor does it leave the group"
    sim.leave()


def test_what_cannot_be_a_limit(sim: Sim) -> None:
    client = sim.client()
    for args in (
        ("cookies", None, 1.0), ("output_ids", 5.0, 4.0), ("requests_per_min", None, 1e9),
        ("depth", 1.0, None), ("output_ids", None, 1.0, pid(client), None, True),
        ("output_ids", None, 1.0, 0, "x", True),
    ):  # fmt: skip
        assert client.ask("set_limit", *args).errno == Errno.EINVAL, args
    assert client.ask("set_limit", "output_ids", None, -1.0).errno == Errno.EINVAL
    assert client.ask("set_limit", "output_ids", None, float("inf")).errno == Errno.EINVAL
    for missing in (1, 999):
        assert limit(client, Resource.OUTPUT_IDS, 1, of=missing).errno in (Errno.ESRCH, 0)
    sim.leave()


def test_a_server_spends_what_its_caller_may(sim: Sim) -> None:
    """Neither is a call a way around a limit, nor does a caller use up its server's."""
    server, caller = sim.client(), sim.client()
    assert server.ask("bind", "tools").errno == 0
    assert limit(caller, Resource.OUTPUT_IDS, 5).errno == 0
    assert limit(server, Resource.OUTPUT_IDS, 3).errno == 0
    handle = server.context([1])
    call = caller.send("call", "tools", b"think")
    message = server.ask("recv", "tools").result.message
    infer = server.ask("infer", handle, 20, 0.0)
    assert (infer.errno, len(infer.tokens)) == (Errno.EDQUOT, 5)
    assert f"task {pid(caller)}" in infer.message, "whose limit it is"
    assert server.ask("infer", handle, 1, 0.0).errno == Errno.EDQUOT
    assert server.ask("reply", message, b"no more").errno == 0
    sim.until(lambda: call.done)
    own = server.ask("infer", handle, 20, 0.0)
    assert (own.errno, len(own.tokens)) == (Errno.EDQUOT, 3), "its own is all there"
    assert f"task {pid(server)}" in own.message
    sim.leave()


def test_a_server_whose_caller_does_not_wait_any_longer_pays_no_more_than_it_may(sim: Sim) -> None:
    server, caller = sim.client(), sim.client()
    assert server.ask("bind", "tools").errno == 0
    assert limit(server, Resource.OUTPUT_IDS, 0).errno == 0
    handle, call = server.context([]), caller.send("call", "tools", b"think", 1.0)
    assert server.ask("recv", "tools").errno == 0
    infer = server.send("infer", handle, 900, 0.0, ids=[1])
    sim.until(lambda: len(infer.tokens) > 2)
    sim.clock.now += 2.0
    sim.until(lambda: infer.done)
    assert (call.errno, infer.errno) == (Errno.ETIMEDOUT, Errno.EDQUOT)
    assert used(sim, server, Resource.OUTPUT_IDS) == 0
    sim.leave()


def test_a_forked_task_is_below_its_parents_limits(sim: Sim) -> None:
    parent = sim.client()
    for resource, hard in (
        (Resource.OUTPUT_IDS, 6),
        (Resource.CONTEXTS, 5),
        (Resource.CHILDREN, 1),
    ):
        assert limit(parent, resource, hard).errno == 0
    handles = [parent.context([n + 1]) for n in range(3)]
    refused = parent.ask("fork_task", "copy")
    assert refused.errno == Errno.EDQUOT and "contexts" in refused.message
    assert len(list(sim.system.tasks)) == 2, "nothing of it is there"
    forked = parent.ask("fork_task", "copy", handles[:2])
    assert forked.errno == 0
    assert parent.ask("fork_task", "copy", []).errno == Errno.EDQUOT
    one = sim.client(hello=False)
    assert one.ask("hello", "copy", forked.result.ticket).errno == 0
    infer = one.ask("infer", handles[0], 50, 0.0)
    assert (infer.errno, len(infer.tokens)) == (Errno.EDQUOT, 6)
    assert parent.ask("infer", handles[0], 1, 0.0).errno == Errno.EDQUOT
    sim.leave()


# --- soft -------------------------------------------------------------------------------------


def test_a_soft_limit_signals_once_to_all_below(sim: Sim) -> None:
    parent, stranger = sim.client(), sim.client()
    one = child(parent)
    assert limit(parent, Resource.OUTPUT_IDS, 10, soft=4).errno == 0
    infer = one.ask("infer", one.context([1]), 50, 0.0)
    assert (infer.errno, len(infer.tokens)) == (Errno.EDQUOT, 10)
    assert signals(parent) == signals(one) == [Sig.XCPU]
    assert signals(stranger) == []
    assert stranger.ask("kill", pid(one), int(Sig.XCPU)).errno == Errno.EINVAL, "the kernel's only"
    sim.leave()


def test_a_level_that_falls_and_rises_is_signalled_again(sim: Sim) -> None:
    client = sim.client()
    assert limit(client, Resource.CONTEXTS, None, soft=2).errno == 0
    for _ in range(3):
        handles = [client.context([1]) for _ in range(2)]
        for handle in handles:
            client.ask("free_ctx", handle)
    assert signals(client) == [Sig.XCPU] * 3
    sim.leave()


# --- crowds -----------------------------------------------------------------------------------


STOPPING = (Resource.OUTPUT_IDS, Resource.DEVICE_S, Resource.WALL_S)
MOST_OF_TWO_STEPS = 12
"""Blocks: ten members decode, or some of them prefill 32 ids in a step."""
LEVELS = {Resource.DEVICE_BLOCKS: 1, Resource.HOST_BLOCKS: 2}


class Inspector:
    """Looks at the limits of a crowd after every turn, from outside."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.over: dict[Any, tuple[int, int]] = {}  # since which step, with what time
        self.ends = 0

    def look(self, accounts: list[Account]) -> None:
        steps = self.sim.system.device.models.totals.steps
        for account in accounts:
            for resource, limit in (account.limits or {}).items():
                key, value = (account, resource), self._used(account, resource)
                if resource in STOPPING and value >= limit.hard:
                    at, us = self.over.setdefault(key, (steps, account.usage.device_us))
                    if steps > at + 2:
                        assert account.usage.device_us == us, f"{key} goes on for {steps - at}"
                    else:
                        self.over[key] = at, account.usage.device_us
                        self.ends += 1
                if resource in (Resource.OUTPUT_IDS, Resource.INPUT_IDS, Resource.CONTEXTS):
                    assert value <= limit.hard, f"{key} has {value} of {limit.hard}"
                if resource in LEVELS:
                    assert value <= limit.hard + MOST_OF_TWO_STEPS, f"{key} has {value}"

    def look_at_rest(self, accounts: list[Account]) -> None:
        """Nothing runs and nothing is on its way: no level is above its limit."""
        for account in accounts:
            for resource, limit in (account.limits or {}).items():
                if resource in LEVELS:
                    value = self._used(account, resource)
                    assert value <= limit.hard, f"{resource} of {account}: {value}"

    def _used(self, account: Account, resource: Resource) -> float:
        """Count by hand what can be."""
        if resource is Resource.CONTEXTS:
            tasks = [t for t in self.sim.system.tasks if t.account.is_below(account)]
            return sum(len(task.contexts) for task in tasks)
        if resource is Resource.OUTPUT_IDS:
            return account.usage.output_ids
        if resource is Resource.INPUT_IDS:
            return account.usage.input_ids
        if resource in LEVELS:
            return account.usage.blocks[LEVELS[resource]]
        if resource is Resource.WALL_S:
            return self.sim.clock.now - account.begun
        return account.usage.device_us / 1e6


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_crowd_under_limits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random limits on random accounts while all live: none is exceeded, and no id is wrong."""
    monkeypatch.setattr(Member, "legal", LEGAL | {Errno.EDQUOT})
    ticks = count(0, 100_000)
    monkeypatch.setattr(drivers.null, "time", SimpleNamespace(monotonic_ns=lambda: next(ticks)))
    host = 1 << 16 if seed % 2 else 0
    link = LoopbackLink("null0", host_bytes=host, beside=Random(seed))
    sim = Sim(seed, num_blocks=40, host_bytes=host, overcommit=100.0, link=link)
    accounts, random, operator = watch_accounts(sim), Random(seed), sim.client()
    crowd, inspector, tries = Crowd(sim, 10), Inspector(sim), 0
    for calls in range(1, 1_000):
        crowd.run(calls, deaths=0.003)
        inspector.look(accounts)
        if random.random() < 0.01:
            sim.front.blocked.clear()
            sim.until(lambda: sim.system.device.idle and not sim.model.swap.busy)
            sim.turn()
            inspector.look_at_rest(accounts)
        if random.random() < 0.05:
            tries += _change(sim, operator, random, inspector)
    check_leaves(accounts, sim.system.tasks.accounts.now_us)
    crowd.leave()
    crowd.check_ended()
    sim.leave()
    assert tries > 20 and inspector.ends > 0, "limits were set, and reached"


def _change(sim: Sim, operator: SimClient, random: Random, inspector: Inspector) -> int:
    tasks = [t for t in sim.system.tasks if t.session is not None and t.pid != pid(operator)]
    task, resource = random.choice(tasks), random.choice([*STOPPING, *LEVELS, *MORE])
    of = 0 if random.random() < 0.1 else task.pid
    account = sim.system.tasks.accounts.owner(1000) if of == 0 else task.account
    now = inspector._used(account, resource)
    room = {Resource.OUTPUT_IDS: 50, Resource.INPUT_IDS: 300, Resource.DEVICE_S: 0.01}
    hard = None if random.random() < 0.4 else now + random.random() * room.get(resource, 8)
    whole = hard if hard is None or resource in STOPPING[1:] else float(round(hard))
    assert limit(operator, resource, whole, of=of, owner=of == 0).errno == 0
    inspector.over.clear()
    return 1


MORE = (Resource.INPUT_IDS, Resource.CONTEXTS)
