"""Who gets room, and when: moments in which all places are taken, each of them found by a walk.

A request that could go on must be let to in the very turn that gives it room, or something must be
on its way that wakes the kernel: `Sim.kernel_turn` sees to that.
"""

from typing import Any

import pytest

from kernel.context import Context
from kernel.loopback import LoopbackLink
from kernel.pager import Pager
from syscalls.abi import Sig
from syscalls.errors import Errno
from tests.helpers.oracle import expected
from tests.helpers.saving import SavingSim, grown
from tests.helpers.sim import Sim


def test_a_request_that_fails_for_want_of_room_lets_the_next_one_run_at_once() -> None:
    """It fails in the middle of a turn, and nothing else would wake the kernel."""
    sim = Sim(num_blocks=6, block_size=4)
    client = sim.client()
    pinned = client.context(list(range(8)))
    first = client.send("infer", client.context([50, 51, 52, 53, 54]), 10, 0.0)
    sim.until(lambda: len(first.tokens) == 5)
    client.send("advise_ctx", pinned, "pin")
    second = client.send("infer", client.context([60, 61, 62]), 2, 0.0)
    sim.until(lambda: first.done and second.done)
    assert first.errno == Errno.ENOMEM and "pinned" in first.message
    assert second.tokens == expected([60, 61, 62], 2)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_block_that_is_given_up_as_an_origin_is_room_at_once(pinned: bool) -> None:
    """It becomes a cached one, which is nobody's: the request that waits takes its place."""
    sim = Sim(num_blocks=4, block_size=4)
    client = sim.client()
    other = client.context([9, 9, 9])
    assert client.ask("infer", other, 1, 0.0).errno == 0
    parent, child = client.context(list(range(8))), client.new_handle()
    assert client.ask("infer", parent, 1, 0.0).errno == 0
    sim.settle()
    if pinned:
        client.ask("advise_ctx", other, "pin")
    client.send("fork_ctx", parent, child)
    client.send("free_ctx", parent)
    client.send("trim_ctx", child, 6)
    infer = client.send("infer", child, 1, 0.0, ids=[50])
    sim.until(lambda: infer.done, turns=100)
    assert infer.tokens == expected([*range(6), 50], 1)


@pytest.mark.parametrize("host", [0, 1])
def test_the_oldest_goes_on_though_a_younger_one_decodes(host: int) -> None:
    """It has lost its KV while it was stopped; the younger one is the first to want a place."""
    sim = Sim(num_blocks=6, block_size=4, host_bytes=4096 * host,
              link=LoopbackLink("null0", host_bytes=4096 * host))  # fmt: skip
    other, client = sim.client(), sim.client()
    pid = other.ask("stat_task").result.pid
    oldest = other.send("infer", other.context(list(range(10))), 9, 0.0)
    sim.until(lambda: len(oldest.tokens) == 3)
    client.ask("kill", pid, int(Sig.STOP))
    younger = client.send("infer", client.context([50]), 18, 0.0)
    sim.until(lambda: len(younger.tokens) == 15)
    client.ask("kill", pid, int(Sig.CONT))
    sim.until(lambda: oldest.done and younger.done, turns=200)
    assert oldest.tokens == expected(list(range(10)), 9)
    assert younger.tokens == expected([50], 18)
    sim.leave()


def test_a_thousand_forks_of_what_is_in_use_are_looked_at_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    choose = Pager._choose

    def counted(self: Pager, victim: Context, *rest: Any) -> Any:
        looks.append(len(victim.blocks))
        return choose(self, victim, *rest)

    monkeypatch.setattr(Pager, "_choose", counted)
    sim = Sim(num_blocks=40, block_size=4, overcommit=1000.0)
    client = sim.client()
    parent = client.context([5] * 80)
    assert client.ask("infer", parent, 1, 0.0).errno == 0
    for _ in range(1000):
        client.send("fork_ctx", parent, client.new_handle())
        sim.turn()
    sim.settle()
    used = client.send("infer", parent, 40, 0.0)
    other = client.send("infer", client.context([]), 4, 0.0, ids=[7] * 72)
    sim.until(lambda: used.done and other.done)
    assert (used.errno, other.errno) == (0, 0)
    assert 0 < len(looks) < 200
    sim.leave()


def test_a_pinned_context_does_not_grow_beyond_half_of_the_pool() -> None:
    sim = Sim(num_blocks=21, block_size=4)
    client = sim.client()
    pinned = client.context([1, 2, 3])
    assert client.ask("advise_ctx", pinned, "pin").errno == 0
    assert client.ask("append", pinned, ids=[5] * 20).errno == 0
    for refused in (
        client.ask("append", pinned, ids=[5] * 18),
        client.ask("infer", pinned, 18, 0.0),
    ):
        assert refused.errno == Errno.ENOMEM
        assert "to 11; the limit is 10" in refused.message
    assert client.ask("infer", pinned, 17, 0.0).errno == 0
    assert client.ask("advise_ctx", pinned, "unpin").errno == 0
    assert client.ask("append", pinned, ids=[5] * 18).errno == 0
    sim.leave()


@pytest.mark.parametrize("what", ["save_ctx", "load_ctx"])
def test_what_an_errand_holds_for_a_while_is_waited_for(what: str) -> None:
    """The store takes its time, or is started anew: that is no reason to fail for want of room."""
    sim = SavingSim(num_blocks=9)
    client, other = sim.client(), sim.client()
    handle, _ = grown(client, list(range(70)))
    assert client.ask("save_ctx", handle, "n").errno == 0
    if what == "load_ctx":
        client.ask("free_ctx", handle)
        sim.drop_cache()
        handle = client.new_handle()
    errand = client.send(what, handle, "n")
    assert sim.store is not None

    def held() -> bool:
        tables = [block for ctx in sim.system.floating for block in ctx.blocks]
        return any(block.readers or block.target for block in tables)

    for _ in range(20):
        sim.kernel_turn()
        if held():
            break
        sim.store.pump(1)
        sim.link.pump()
    assert held()
    ids = [9] * 90
    infer = other.send("infer", other.context([]), 2, 0.0, ids=ids)
    for _ in range(20):
        sim.kernel_turn()
        sim.link.pump()
        other.read()
    assert not errand.done and not infer.done
    sim.until(lambda: errand.done and infer.done)
    assert (errand.errno, infer.errno) == (0, 0), infer.message
    sim.end()


def test_what_is_on_its_way_to_the_device_is_not_forgotten() -> None:
    """A context that is looked at while its KV is being fetched can still give it up later."""
    sim = Sim(num_blocks=12, host_bytes=1 << 14, link=LoopbackLink("null0", host_bytes=1 << 16))
    client = sim.client()
    handle = client.context([n % 251 for n in range(96)])
    assert client.ask("infer", handle, 1, 0.0).errno == 0
    assert client.ask("advise_ctx", handle, "demote").result.blocks
    sim.settle()
    client.send("advise_ctx", handle, "prefetch")
    sim.turn(pump=0)
    (ctx,), idle = sim.system.contexts(), sim.model.sched.pager.idle
    assert any(block.moving for block in ctx.blocks)
    idle.looked_at(ctx)
    assert ctx in idle.sharing
    sim.settle()
    assert any(block.id for block in ctx.blocks) and ctx in idle.sharing
    idle.forget(ctx)
    sim.leave()
