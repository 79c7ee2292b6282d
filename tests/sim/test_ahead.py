"""Steps ahead: two or more in flight, and nobody can tell but by the clock.

What is asked while steps are in flight takes effect on both of them; the ids are those that the ids
before them give, as with one step at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from drivers import base
from kernel import ahead
from kernel.block import NOT_RESIDENT
from kernel.chosen import Chosen
from kernel.loopback import LoopbackLink
from syscalls.abi import Flag, Sig
from syscalls.errors import Errno
from tests.helpers.granting import Pair
from tests.helpers.liar import LyingLink
from tests.helpers.oracle import VOCAB, Knobs, expected
from tests.helpers.sim import Reply, Sim, SimClient
from tests.sim import test_grammar as grammars
from tests.sim.test_liars import LIES, NUMERIC, sampled

PLAIN = Knobs()
PENALTIES = Knobs(2.0, top_k=60, seed=11, repetition=1.25, presence=0.5, bias=((4, 6.0),))
PROMPT = [3, 7, 3, 9, 200, 7]
DEPTHS = pytest.mark.parametrize("overlap", [1, 4])


def infer(
    client: SimClient,
    ids: list[int],
    count: int,
    knobs: Knobs = PLAIN,
    stop: int = -1,
) -> Reply:
    """Generate on a new context, whose prompt comes with the call."""
    stops = [] if stop < 0 else [stop]
    handle = client.new_handle()
    client.send("alloc_ctx", handle)
    return client.send(
        "infer", handle, count, knobs.temperature, knobs.top_k, knobs.top_p, knobs.min_p,
        knobs.seed, stops, False, None, knobs.repetition, knobs.presence, knobs.frequency,
        [list(pair) for pair in knobs.bias], ids=ids,
    )  # fmt: skip


def flying(sim: Sim) -> int:
    """How many steps are in flight."""
    return sim.system.device._flights.count(base.Queue.COMPUTE)


def turns(sim: Sim, *replies: Reply, pump: int = 1) -> Iterator[None]:
    """Turn until all have ended, with as little of the driver's work in each as can be."""
    for _ in range(5000):
        if all(reply.done for reply in replies):
            return
        sim.turn(pump)
        sim.check()
        yield
    raise AssertionError("not ended")


def run(sim: Sim, *replies: Reply) -> None:
    for _ in turns(sim, *replies):
        pass


def grow(sim: Sim, reply: Reply, count: int) -> None:
    """Turn until a request has so many ids, and steps in flight that it is in."""
    for _ in turns(sim, reply):
        if len(reply.tokens) >= count:
            break
    sim.turn(0)
    assert len(reply.tokens) in (count, count + 1) and flying(sim) >= 2


def totals(sim: Sim) -> Any:
    return sim.system.device.models.totals


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("overlap", [0, 1, 4])
def test_ids_are_the_same_and_none_is_computed_in_vain(overlap: int, block_size: int) -> None:
    """Of several requests in one batch, with all that an infer can ask for; to their max_tokens."""
    sim = Sim(overlap=overlap, block_size=block_size, num_blocks=1024, prefill_chunk=8)
    client = sim.client()
    asked = [(PROMPT, Knobs()), (list(range(40)), Knobs(1.5, seed=7)), (PROMPT[:1], PENALTIES)]
    replies = [infer(client, ids, 37, knobs) for ids, knobs in asked]
    deepest = 0
    for _ in turns(sim, *replies):
        deepest = max(deepest, flying(sim))
        for request in sim.system.device.requests:
            assert not request.flying or request.state.value in "PR", "it is in a step"
    sim.settle()
    assert [reply.tokens for reply in replies] == [expected(ids, 37, k) for ids, k in asked]
    assert totals(sim).wasted == 0 and totals(sim).decode_tokens == 3 * 36
    assert deepest == 1 if overlap == 0 else deepest >= 2
    sim.leave()


@DEPTHS
def test_the_next_step_is_at_the_driver_before_the_one_before_has_ended(overlap: int) -> None:
    sim = Sim(overlap=overlap)
    reply = infer(sim.client(), PROMPT, 60)
    grow(sim, reply, 4)
    assert flying(sim) == 1 + overlap
    tokens = [op.tokens for submit in sim.link.inbox for op in submit.ops
              if isinstance(op, base.Execute)]  # fmt: skip
    assert len(tokens) == 1 + overlap and set(tokens[1:]) == {base.ints([base.LAST_SAMPLE])}
    sim.leave()


def test_more_than_one_waits_only_while_nothing_else_is_to_be_done() -> None:
    sim = Sim(overlap=4, prefill_chunk=8)
    client = sim.client()
    reply = infer(client, PROMPT, 60)
    grow(sim, reply, 4)
    other = infer(client, list(range(60)), 5)
    deep = [flying(sim) for _ in turns(sim, other) if not other.tokens]
    assert deep[:8] == [5, 4, 3, 2, 2, 2, 2, 2]
    run(sim, reply)
    assert (reply.tokens, other.tokens) == (expected(PROMPT, 60), expected(list(range(60)), 5))
    sim.leave()


@DEPTHS
@pytest.mark.parametrize("at", [1, 9, 10, 11])
def test_a_stop_id_wastes_the_steps_behind_it_and_leaves_nothing(overlap: int, at: int) -> None:
    """At the end of a block of 16, and around it: an empty one was there for what came next."""
    right = expected(PROMPT, 40)
    at = next(n for n in range(at, 40) if right[n] not in right[:n])
    sim = Sim(overlap=overlap)
    client = sim.client()
    reply = infer(client, PROMPT, 40, stop=right[at])
    run(sim, reply)
    assert reply.tokens == right[:at] and reply.result.overrun == 1
    sim.settle()
    assert 1 <= totals(sim).wasted <= overlap
    (ctx,) = sim.system.contexts()
    assert len(ctx.blocks) == -(-ctx.length // 16) and sim.pool.counts.used == len(ctx.blocks)
    again = client.send("infer", ctx.handle, 5, 0.0)
    run(sim, again)
    assert again.tokens == expected(PROMPT + right[:at], 5)
    sim.leave()


def test_one_that_goes_on_at_once_writes_over_what_was_in_vain() -> None:
    """The step in vain is still on its way when the next infer's first one is submitted."""
    right = expected(PROMPT, 40)
    stop = next(token for n, token in enumerate(right) if n > 3 and token not in right[:n])
    sim = Sim(overlap=1)
    client = sim.client()
    reply = infer(client, PROMPT, 40, stop=stop)
    kept = right[: right.index(stop)]
    queued = client.send("infer", client.handle, 20, 0.0, ids=[1, 2], flags=Flag.QUEUE)
    run(sim, reply, queued)
    assert totals(sim).wasted == 1
    assert queued.tokens == expected([*PROMPT, *kept, 1, 2], 20)
    sim.leave()


def test_a_context_that_is_full_wastes_nothing() -> None:
    sim = Sim(path=f"null:vocab={VOCAB},max_ctx=40", overlap=4)
    reply = infer(sim.client(), PROMPT, 99)
    run(sim, reply)
    sim.settle()
    assert reply.tokens == expected(PROMPT, 34) and totals(sim).wasted == 0
    assert sim.system.device.epoch == 1, "no position behind the last one was asked for"
    sim.leave()


@DEPTHS
def test_what_was_computed_ahead_is_found_by_its_ids(overlap: int) -> None:
    sim = Sim(overlap=overlap)
    client = sim.client()
    reply = infer(client, PROMPT, 60)
    run(sim, reply)
    again = infer(client, [*PROMPT, *reply.tokens], 5)
    run(sim, again)
    assert again.result.cached == 64 and again.tokens == expected([*PROMPT, *reply.tokens], 5)
    sim.leave()


@pytest.mark.parametrize("overlap", [0, 1])
def test_what_an_append_has_computed_is_not_called_cached(overlap: int) -> None:
    sim = Sim(overlap=overlap, prefill_chunk=8)
    client = sim.client()
    handle = client.context(list(range(60)))
    while sim.system.device.requests:
        sim.turn(1)
    sim.settle()
    assert client.ask("infer", handle, 3, 0.0).result.cached == 0
    sim.leave()


class Turning(Chosen):
    """Another one is the first in each plan: slots go from hand to hand."""

    def __init__(self) -> None:
        super().__init__("fifo", {})
        self.turned = 0

    def order(self, requests: Iterable[Any]) -> list[Any]:
        self.turned += 1
        found = list(requests)
        at = self.turned % len(found) if found else 0
        return found[at:] + found[:at]


def test_more_requests_than_slots_that_the_driver_must_be_told_of() -> None:
    sim = Sim(overlap=1, max_seqs=2, policy=Turning())
    client = sim.client()
    asked = [([n, *PROMPT], PENALTIES if n % 2 else PLAIN) for n in range(5)]
    replies = [infer(client, ids, 20, knobs) for ids, knobs in asked]
    run(sim, *replies)
    assert [reply.tokens for reply in replies] == [expected(ids, 20, k) for ids, k in asked]
    assert sim.system.device.epoch == 1
    sim.leave()


def test_steps_that_take_long_are_not_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MAX_US", 0)
    sim = Sim(overlap=4)
    reply = infer(sim.client(), PROMPT, 30)
    deep = [flying(sim) for _ in turns(sim, reply)]
    assert max(deep) == 2 and reply.tokens == expected(PROMPT, 30)
    sim.leave()


def test_a_load_has_its_turn_between_steps() -> None:
    sim = Sim(overlap=1)
    client = sim.client()
    reply = infer(client, PROMPT, 60)
    grow(sim, reply, 4)
    load = client.send("load_model", "other", f"null:vocab={VOCAB}", None, None, 0, 64)
    run(sim, load)
    assert load.errno == 0 and not reply.done
    run(sim, reply)
    assert reply.tokens == expected(PROMPT, 60)
    sim.leave()


def test_the_step_behind_has_its_own_time() -> None:
    sim = Sim(overlap=1, step_s=10.0, hang_s=100.0)
    reply = infer(sim.client(), PROMPT, 60)
    grow(sim, reply, 4)
    sim.clock.now += 8.0
    sim.turn(1)
    sim.turn(0)  # the first has ended
    sim.clock.now += 8.0
    sim.turn(0)
    assert sim.system.device.epoch == 1, "8 s of its own"
    sim.clock.now += 8.0
    sim.turn(0)
    assert sim.system.device.epoch == 2, "16 s"
    run(sim, reply)
    assert reply.tokens == expected(PROMPT, 60)
    sim.leave()


# --- what happens while two are in flight -------------------------------------------------------


def cancel(sim: Sim, client: SimClient, call: int) -> None:
    client.send("cancel", call)


def cut(sim: Sim, client: SimClient, call: int) -> None:
    client.send("cancel", call, 2)


def free(sim: Sim, client: SimClient, call: int) -> None:
    client.send("free_ctx", 1)


def fork_and_free(sim: Sim, client: SimClient, call: int) -> None:
    client.send("fork_ctx", 1, client.new_handle())
    client.send("free_ctx", 1)
    client.send("infer", client.handle, 30, 0.0)


def stop(sim: Sim, client: SimClient, call: int) -> None:
    pid = sim.system.sessions[client.route].task.pid  # type: ignore[union-attr]
    sim.clients[0].send("kill", pid, int(Sig.STOP))


def kill(sim: Sim, client: SimClient, call: int) -> None:
    pid = sim.system.sessions[client.route].task.pid  # type: ignore[union-attr]
    sim.clients[0].send("kill", pid, int(Sig.KILL))


def leave(sim: Sim, client: SimClient, call: int) -> None:
    sim.front.dead.add(client.route)


def die(sim: Sim, client: SimClient, call: int) -> None:
    sim.link.die()


EVENTS = [cancel, cut, free, fork_and_free, stop, kill, leave, die]


@DEPTHS
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
@pytest.mark.parametrize("after", [9, 10])
def test_an_event_with_steps_in_flight(
    event: Callable[[Sim, SimClient, int], None], overlap: int, after: int
) -> None:
    """The second id is the last one of a block, when steps that write behind it are in flight."""
    sim = Sim(overlap=overlap, num_blocks=12)
    other, client = sim.client(), sim.client()
    beside = infer(other, list(range(20)), 70)
    reply = infer(client, PROMPT, 90)
    grow(sim, reply, after)
    event(sim, client, reply.call)
    run(sim, beside)
    assert beside.tokens == expected(list(range(20)), 70)
    assert reply.tokens == expected(PROMPT, len(reply.tokens))
    if event is stop:
        assert not reply.done and len(reply.tokens) <= after + 2 + overlap
        pid = sim.system.sessions[client.route].task.pid  # type: ignore[union-attr]
        other.send("kill", pid, int(Sig.CONT))
    if event in (stop, die):
        run(sim, reply)
        assert reply.tokens == expected(PROMPT, 90)
    sim.leave()


@DEPTHS
def test_a_model_that_goes_with_steps_in_flight_leaves_nothing(overlap: int) -> None:
    sim = Sim(overlap=overlap)
    client = sim.client()
    reply = infer(client, PROMPT, 60)
    grow(sim, reply, 4)
    assert flying(sim) == 1 + overlap
    client.send("unload_model", "null", True)
    sim.turn(0)
    assert reply.errno and flying(sim) == 1 + overlap, "its Submits are still to be answered"
    again = client.send("load_model", "null", f"null:vocab={VOCAB}")
    sim.until(lambda: again.done and flying(sim) == 0)
    fresh = infer(client, PROMPT, 9)
    run(sim, fresh)
    assert fresh.tokens == expected(PROMPT, 9)
    client.send("exit")
    sim.turn()
    sim.check_empty()


def test_a_grant_that_is_taken_back_with_two_in_flight() -> None:
    pair = Pair(overlap=1)
    ctx, grant = 0, pair.grant()
    ctx = pair.bob.new_handle()
    assert pair.bob.ask("open_ctx", grant, ctx).errno == 0
    call = pair.bob.send("infer", ctx, 99, 0.0, ids=[5])
    grow(pair.sim, call, 3)
    pair.alice.send("revoke", grant)
    pair.sim.turn(0)
    assert call.errno == Errno.EREVOKED
    assert not any(ctx.blocks for ctx in pair.sim.system.contexts() if ctx.grant)
    pair.sim.settle()
    assert totals(pair.sim).wasted == 2
    pair.sim.check()


class DiesOf(LoopbackLink):
    """A driver that an id kills, when the step that has it runs."""

    bad = 77

    def _handle(self, message: Any) -> None:
        ops = message.ops if isinstance(message, base.Submit) else ()
        steps = [op for op in ops if isinstance(op, base.Execute)]
        if any(self.bad in base.read_ints(op.tokens) for op in steps):
            self.die()
        else:
            super()._handle(message)


def test_only_the_step_that_the_driver_was_at_is_to_blame() -> None:
    """Steps of two models are in flight, each time that the driver dies of one of them."""
    sim = Sim(link=DiesOf("null0"), overlap=1)
    client = sim.client()
    loaded = client.ask("load_model", "other", f"null:vocab={VOCAB}", None, None, 0, 64)
    handle = client.new_handle()
    assert (loaded.errno, client.ask("alloc_ctx", handle, "other").errno) == (0, 0)
    good = infer(client, PROMPT, 60)
    grow(sim, good, 3)
    bad = client.send("infer", handle, 5, 0.0, ids=[DiesOf.bad])
    run(sim, bad, good)
    assert bad.errno == Errno.EIO and "3 times" in bad.message
    assert good.tokens == expected(PROMPT, 60) and sim.system.device.epoch == 4
    sim.leave()


def test_a_score_and_what_the_driver_must_be_told_of_have_one_step_at_a_time() -> None:
    sim = Sim(overlap=1, prefill_chunk=8)
    client = sim.client()
    steady = infer(client, PROMPT, 60)
    sim.until(lambda: len(steady.tokens) > 2)
    score = client.send("score", client.context(list(range(50))), 10)
    told = infer(client, PROMPT, 20, PENALTIES)
    for _ in turns(sim, score, told, steady):
        for step in sim.model.sched.flying:
            for entry in step.entries:
                assert not entry.scores or entry.request.flying == 1
                assert not (entry.ahead and entry.request.untold)
    assert told.tokens == expected(PROMPT, 20, PENALTIES)
    assert steady.tokens == expected(PROMPT, 60) and score.errno == 0
    sim.leave()


def test_nothing_is_given_up_for_a_step_ahead() -> None:
    """All places are in use when the next block is wanted: the step behind goes without it."""
    sim = Sim(num_blocks=3, block_size=4, overlap=1)
    client = sim.client()
    idle = client.context([9, 9, 9])
    assert client.ask("infer", idle, 1, 0.0).errno == 0
    sim.settle()
    reply = infer(client, [1], 7)
    while len(reply.tokens) < 3:
        sim.turn(1)
        (kept,) = [ctx for ctx in sim.system.contexts() if ctx.handle == idle]
        assert kept.blocks[0].id != NOT_RESIDENT, "it is not in the way of what is known"
    run(sim, reply)
    assert reply.tokens == expected([1], 7)
    sim.leave()


def test_in_a_pool_that_is_too_small_all_get_their_turn() -> None:
    sim = Sim(num_blocks=9, block_size=4, overlap=1, prefill_chunk=8)
    clients = [sim.client() for _ in range(4)]
    replies = [infer(client, [n, n + 1], 25) for n, client in enumerate(clients)]
    for _ in turns(sim, *replies):
        for request in sim.system.device.requests:
            assert not request.flying or request.state.value in "PR", "it is in a step"
    assert [r.tokens for r in replies] == [expected([n, n + 1], 25) for n in range(4)]
    assert totals(sim).evicted > 0, "they were in each other's way"
    sim.leave()


# --- drivers that lie, and those that cannot ----------------------------------------------------


def swapped(complete: base.Complete) -> list[Any]:
    """Say that the step behind has ended, and only then the one that has."""
    return [complete._replace(value=complete.value + 1), complete]


@pytest.mark.parametrize(
    "lie",
    [swapped, LIES["fence twice"], LIES["fence to come"], LIES["fault after the end"],
     LIES["negative id"], LIES["no result"]],
    ids=["swapped", "twice", "to come", "fault after", "negative", "no result"],
)  # fmt: skip
def test_a_lie_with_two_in_flight_is_not_seen_in_the_stream(lie: Any) -> None:
    link = LyingLink(base.Complete, lie, after=4)
    sim = Sim(link=link, overlap=1)
    client = sim.client()
    reply = infer(client, PROMPT, 30)
    run(sim, reply)
    assert link.times == 0 and sim.system.device.epoch == 2
    assert reply.tokens == expected(PROMPT, 30)
    sim.leave()


def test_a_row_that_is_no_number_ends_its_request_only() -> None:
    lie = sampled(flags=NUMERIC)
    sim = Sim(link=LyingLink(base.Complete, lie, after=4), overlap=1)
    client = sim.client()
    reply = infer(client, PROMPT, 30)
    run(sim, reply)
    sim.settle()
    assert reply.errno == Errno.EIO and sim.system.device.epoch == 1 and totals(sim).wasted == 1
    sim.leave()


class Full(LoopbackLink):
    """A driver that has not read what it was sent."""

    @property
    def has_room(self) -> bool:
        return False


def test_a_link_without_room_gets_one_step_at_a_time() -> None:
    sim = Sim(link=Full("null0"), overlap=1)
    reply = infer(sim.client(), PROMPT, 9)
    assert max(flying(sim) for _ in turns(sim, reply)) == 1
    assert reply.tokens == expected(PROMPT, 9)
    sim.leave()


def test_a_driver_without_the_feature_gets_one_step_at_a_time() -> None:
    def without(ready: base.Ready) -> list[Any]:
        return [ready._replace(features=tuple(f for f in ready.features if f != "steps_ahead"))]

    sim = Sim(link=LyingLink(base.Ready, without), overlap=1)
    reply = infer(sim.client(), PROMPT, 9)
    while not reply.done:
        sim.turn(0)
        assert flying(sim) <= 1
        sim.turn()
    assert reply.tokens == expected(PROMPT, 9)
    sim.leave()


@DEPTHS
def test_a_grammar_that_ends_with_an_id_ends_the_infer_with_it(overlap: int) -> None:
    """The steps behind it have no id to draw, and nobody else in them is the worse for it."""
    sim = Sim(overlap=overlap)
    client = sim.client()
    steady = infer(client, [9, *PROMPT], 60)
    reply = grammars.infer(client, client.context(grammars.PROMPT))
    run(sim, reply, steady)
    assert reply.errno == 0 and reply.tokens == grammars.expected(grammars.PROMPT)
    assert steady.tokens == expected([9, *PROMPT], 60) and sim.system.device.epoch == 1
    assert 1 <= totals(sim).wasted <= overlap
    sim.leave()
