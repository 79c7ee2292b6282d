"""A device in trouble: steps that never end, hosts that cannot start, pools given back whole."""

from typing import Any

import pytest

from drivers import base, wire
from kernel.device import DeviceState
from kernel.link import LinkDown
from kernel.loopback import LoopbackLink
from kernel.pool import MAX_SCRUBS
from syscalls.errors import Errno
from tests.helpers.liar import LyingLink
from tests.helpers.oracle import VOCAB, expected
from tests.helpers.sim import UID, Sim, SimClient, at_once


def begin(client: SimClient, ids: list[int]) -> int:
    handle = client.new_handle()
    client.send("alloc_ctx", handle)
    assert client.ask("append", handle, ids=ids).errno == 0
    return handle


def beat(sim: Sim, seconds: float) -> None:
    """Let time pass in which the driver says that it lives, and does nothing."""
    for _ in range(int(seconds)):
        sim.link._emit(base.Heartbeat(sim.system.device.epoch, 0))
        sim.clock.now += 1.0
        sim.turn(pump=0)


def test_who_lacks_blocks_waits_for_the_driver_once_there_is_none() -> None:
    """What it lacked is free then, and no copy is on its way."""
    sim = Sim(num_blocks=7)
    holds, lacks = sim.client(), sim.client()
    infers = [
        client.send("infer", begin(client, [n + 1] * 60), 20, 0.0)
        for n, client in enumerate((holds, lacks))
    ]
    task = next(t for t in sim.system.tasks if t.session and t.session.route == lacks.route)
    sim.until(lambda: task.letter()[0] == "D")
    sim.link.die()
    sim.turn(pump=0)
    assert sim.system.device.state is DeviceState.STARTING
    assert task.letter() == ("Q", "step")
    sim.until(lambda: all(infer.done for infer in infers))
    assert [list(infer.tokens) for infer in infers] == [expected([n + 1] * 60, 20) for n in (0, 1)]
    sim.leave()


def test_a_step_that_never_ends_is_given_up_in_spite_of_heartbeats() -> None:
    sim = Sim(hang_s=10.0, step_s=50.0)
    client = sim.client()
    infer = client.send("infer", begin(client, [1, 2, 3]), 10, 0.0)
    sim.turn(pump=0)
    assert sim.system.device._flights
    assert sim.kernel.timeout() == pytest.approx(10.0, abs=0.1), "silence comes first"
    beat(sim, 45)
    assert sim.system.device.epoch == 1, "heartbeats are signs of life, and the step has time"
    assert sim.kernel.timeout() == pytest.approx(5.0, abs=0.2)
    beat(sim, 6)
    device = sim.system.device
    assert device.epoch == 2 and "a step took 50 s" in device.note
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([1, 2, 3], 10)


def test_slow_steps_are_no_fault() -> None:
    """The deadline is of each step, not of the request."""
    sim = Sim(hang_s=10.0, step_s=50.0)
    client = sim.client()
    infer = client.send("infer", begin(client, [1]), 5, 0.0)
    while not infer.done:
        beat(sim, 40)
        sim.turn()
    assert sim.system.device.epoch == 1 and infer.tokens == expected([1], 5)


def test_a_request_whose_steps_never_end_fails() -> None:
    sim = Sim(step_s=50.0)
    client = sim.client()
    infer = client.send("infer", begin(client, [1]), 5, 0.0)
    while not infer.done:
        sim.turn(pump=0 if sim.system.device.state is DeviceState.UP else 9)
        sim.link._emit(base.Heartbeat(0, 0))
        sim.clock.now += 1.0
    assert infer.errno == Errno.EIO and "50 s" in infer.message
    assert sim.system.device.epoch == 4


def test_a_load_has_its_own_longer_deadline() -> None:
    link = LyingLink(base.Loaded, lambda loaded: [], after=1)  # the second load gives no answer
    sim = Sim(link=link, hang_s=10.0, step_s=20.0, load_s=300.0)
    client = sim.client()
    handle = begin(client, [7])
    sim.link.die()
    sim.turn()
    sim.turn()
    device = sim.system.device
    assert device.state is DeviceState.LOADING and device.epoch == 2
    beat(sim, 290)
    assert device.epoch == 2
    beat(sim, 15)
    assert device.epoch == 3 and "loading took 300 s" in device.note
    assert client.ask("infer", handle, 5, 0.0).tokens == expected([7], 5)


def test_an_idle_driver_may_be_silent_for_ever() -> None:
    sim = Sim()
    client = sim.client()
    begin(client, [7])
    sim.settle()
    sim.clock.now += 1e6
    sim.turn()
    assert sim.system.device.epoch == 1 and sim.kernel.timeout() is None


class Stillborn(LoopbackLink):
    """Cannot be started again for a while."""

    fails = 0

    def start(self) -> None:
        if self.fails:
            self.fails -= 1
            raise LinkDown("cannot start a driver host: Cannot allocate memory")
        super().start()


def test_a_host_that_cannot_be_started_is_tried_again_then_given_up() -> None:
    link = Stillborn("null0")
    sim = Sim(link=link, max_restarts=5)
    client = sim.client()
    handle = begin(client, [7])
    link.fails = 3
    link.die()
    infer = client.ask("infer", handle, 5, 0.0)
    assert infer.tokens == expected([7], 5) and sim.system.device.epoch == 5
    link.fails = 9
    link.die()
    assert client.ask("infer", handle, 5, 0.0).errno == Errno.ENODEV
    assert "Cannot allocate memory" in sim.system.device.note


def record(sim: Sim) -> list[base.Submit]:
    """Note every Submit, and see that each fits into a message."""
    submits: list[base.Submit] = []
    send = sim.link.send

    def sending(message: Any) -> None:
        assert len(wire.encode(message)) <= wire.MAX_MESSAGE
        if isinstance(message, base.Submit):
            submits.append(message)
        send(message)

    sim.link.send = sending  # type: ignore[method-assign]
    return submits


def scrubs(submit: base.Submit) -> int:
    return sum(len(op.blocks) // 4 for op in submit.ops if type(op) is base.Scrub)


def test_sixty_thousand_blocks_given_back_at_once() -> None:
    """A scrub of them all would not fit into a message: they go a few thousand at a time."""
    sim = Sim(num_blocks=65_000, block_size=1, prefill_chunk=2048)
    client = sim.client()
    handles = [begin(client, [i % VOCAB for i in range(n, n + 7_500)]) for n in range(8)]
    sim.settle()
    assert sim.pool.counts.used >= 8 * 7_499
    submits = record(sim)
    replies = [client.send("free_ctx", handle) for handle in handles]
    sim.turn()
    assert all(reply.done and reply.errno == 0 for reply in replies)
    sim.until(lambda: not sim.system.graves)
    assert sim.pool.counts.cached > 50_000, "free for the client in a few turns"
    at_once(sim.pool.drop_cached(UID))
    assert sim.pool.counts.cached == 0, "for others when it is zero"
    sim.settle()
    assert sum(map(scrubs, submits)) >= 8 * 7_499
    assert max(map(scrubs, submits)) == MAX_SCRUBS
    assert client.ask("exit").errno == 0
    sim.turn()
    sim.check_empty()


def test_a_big_batch_of_long_contexts_beside_a_big_scrub() -> None:
    """Block tables of 8k contexts in blocks of one, decoding together while others are freed."""
    sim = Sim(num_blocks=65_000, block_size=1, prefill_chunk=2048)
    client = sim.client()
    ids = [i % VOCAB for i in range(8_000)]
    root = begin(client, ids)
    other = begin(client, ids[:7_000])
    sim.settle()
    submits = record(sim)
    infers = []
    for _ in range(12):
        child = client.new_handle()
        client.send("fork_ctx", root, child)
        infers.append(client.send("infer", child, 4, 0.0))
    client.send("free_ctx", other)
    sim.until(lambda: all(infer.done for infer in infers))
    want = infers[0].tokens
    assert [infer.tokens for infer in infers] == [want] * 12 and len(want) == 4
    assert max(len(wire.encode(submit)) for submit in submits) > 100_000
    client.ask("exit")
    sim.turn()
    sim.check_empty()
