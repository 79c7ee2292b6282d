"""A seeded stream with bias and penalties is one and the same: alone, in company, whatever happens.

What the oracle says of it is computed from ids alone, so equal to it means equal to each other.
"""

from itertools import pairwise
from typing import Any

import pytest

from drivers import base, wire
from kernel.loopback import LoopbackLink
from syscalls.errors import Errno
from tests.helpers.liar import LyingLink
from tests.helpers.oracle import VOCAB, Knobs, expected, next_id
from tests.helpers.sim import Reply, Sim, SimClient

PROMPT = [3, 7, 3, 9, 200, 7]
COUNT = 40
# Strong enough that no id of the plain stream stays; every kind of adjustment is in it.
KNOBS = Knobs(
    2.0, top_k=60, top_p=0.95, min_p=0.001, seed=11, repetition=1.25, presence=0.5, frequency=0.25,
    bias=((4, 6.0), (90, 40.5), (91, -100.0), (250, 35.25)),
)  # fmt: skip
GREEDY = KNOBS._replace(temperature=0.0)


def infer(
    client: SimClient,
    handle: int,
    knobs: Knobs = KNOBS,
    count: int = COUNT,
    begin: int | None = None,
    **how: Any,
) -> Reply:
    return client.send(
        "infer", handle, count, knobs.temperature, knobs.top_k, knobs.top_p, knobs.min_p,
        knobs.seed, [], False, None, knobs.repetition, knobs.presence, knobs.frequency,
        [list(pair) for pair in knobs.bias], begin, **how,
    )  # fmt: skip


def right(knobs: Knobs = KNOBS, count: int = COUNT, prompt: list[int] = PROMPT) -> list[int]:
    return expected(prompt, count, knobs)


@pytest.fixture
def sim() -> Any:
    sim = Sim()
    yield sim
    sim.leave()


def submits(sim: Sim) -> list[base.Submit]:
    """Note every Submit from now on."""
    seen: list[base.Submit] = []
    send = sim.link.send

    def noting(message: Any) -> None:
        if isinstance(message, base.Submit):
            assert len(wire.encode(message)) <= wire.MAX_MESSAGE
            seen.append(message)
        send(message)

    sim.link.send = noting  # type: ignore[method-assign]
    return seen


def resets(seen: list[base.Submit]) -> list[base.Reset]:
    return [op for submit in seen for op in submit.ops if isinstance(op, base.Reset)]


# --- one and the same -------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [KNOBS, GREEDY], ids=["drawn", "greedy"])
def test_alone(sim: Sim, knobs: Knobs) -> None:
    client = sim.client()
    reply = infer(client, client.context(PROMPT), knobs)
    sim.until(lambda: reply.done)
    assert reply.tokens == right(knobs)
    plain = Knobs(knobs.temperature, seed=knobs.seed)
    assert not set(right(knobs)) <= set(right(plain)), "the adjustments matter"


EACH: dict[str, dict[str, Any]] = {
    "repetition": {"repetition": 1.5}, "presence": {"presence": 2.0},
    "frequency": {"frequency": 1.25}, "bias": {"bias": ((9, 90.0), (30, 80.5))},
    "negative": {"presence": -2.0}, "below one": {"repetition": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("name", EACH)
def test_each_alone(sim: Sim, name: str, temperature: float) -> None:
    client, knobs = sim.client(), Knobs(temperature, seed=5)._replace(**EACH[name])
    reply = infer(client, client.context(PROMPT), knobs)
    sim.until(lambda: reply.done)
    assert reply.tokens == right(knobs)


def test_in_a_batch_of_eight(sim: Sim) -> None:
    """The others have other adjustments, or none, and other prompts."""
    client = sim.client()
    knobs = [KNOBS._replace(seed=n, presence=n / 4, bias=()) for n in range(3)]
    knobs += [KNOBS, Knobs(), Knobs(1.0, seed=3), GREEDY, Knobs(bias=((8, 90.0),))]
    prompts = [[n, *PROMPT, n] for n in range(3)] + [PROMPT] * 5
    replies = [
        infer(client, client.context(prompt), how)
        for prompt, how in zip(prompts, knobs, strict=True)
    ]
    sim.until(lambda: all(reply.done for reply in replies))
    for reply, prompt, how in zip(replies, prompts, knobs, strict=True):
        assert reply.tokens == right(how, prompt=prompt)


@pytest.mark.parametrize("keep", [None, 9, 0])
def test_after_cancel_and_resume(sim: Sim, keep: int | None) -> None:
    """Counting goes on from where the output has begun, not from where it was taken up."""
    client, knobs = sim.client(), KNOBS._replace(presence=2.0, frequency=1.75)
    handle = client.context(PROMPT)
    first = infer(client, handle, knobs)
    sim.until(lambda: len(first.tokens) >= 14)
    client.ask("cancel", first.call, keep)
    kept = first.tokens if keep is None else first.tokens[:keep]
    rest = infer(client, handle, knobs, COUNT - len(kept), begin=len(PROMPT))
    sim.until(lambda: rest.done)
    assert kept + rest.tokens == right(knobs)
    if kept:
        client.ask("trim_ctx", handle, len(PROMPT) + len(kept))
        other = infer(client, handle, knobs, COUNT - len(kept))
        sim.until(lambda: other.done)
        assert kept + other.tokens != right(knobs), "it would not without penalize_from"


@pytest.mark.parametrize("after", [1, 6, 20])
def test_after_the_driver_died_in_the_middle(sim: Sim, after: int) -> None:
    client = sim.client()
    reply = infer(client, client.context(PROMPT))
    other = infer(client, client.context(PROMPT), GREEDY)
    sim.until(lambda: len(reply.tokens) >= after)
    sim.link.die()
    sim.until(lambda: reply.done and other.done)
    assert sim.system.device.epoch == 2
    assert (reply.tokens, other.tokens) == (right(), right(GREEDY))


def test_after_the_driver_died_between_the_counts_and_the_step(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(PROMPT)
    sim.settle()
    seen = submits(sim)
    reply = infer(client, handle)
    while not resets(seen):
        sim.turn()
    sim.link.die()
    sim.until(lambda: reply.done)
    assert reply.tokens == right()


class DiesOfResets(LoopbackLink):
    """A driver that a presence penalty kills before any step has it."""

    def _handle(self, message: Any) -> None:
        ops = message.ops if isinstance(message, base.Submit) else ()
        if any(isinstance(op, base.Reset) and op.presence == 0.75 for op in ops):
            self.die()
        else:
            super()._handle(message)


def test_a_request_whose_reset_ends_the_driver_fails_alone() -> None:
    sim = Sim(link=DiesOfResets("null0"), max_restarts=5)
    client = sim.client()
    others = [infer(client, client.context(PROMPT), knobs) for knobs in (KNOBS, Knobs())]
    bad = infer(client, client.context(PROMPT), KNOBS._replace(presence=0.75))
    sim.until(lambda: bad.done and all(other.done for other in others))
    assert bad.errno == Errno.EIO and "3 times" in bad.message
    assert [other.tokens for other in others] == [right(), right(Knobs())]
    assert sim.system.device.epoch == 4
    sim.leave()


def test_after_a_fork_in_the_middle(sim: Sim) -> None:
    """The fork has no request; one that takes the stream up counts from the same place."""
    client = sim.client()
    handle, child = client.context(PROMPT), client.new_handle()
    parent = infer(client, handle)
    sim.until(lambda: len(parent.tokens) >= 10)
    length = client.ask("fork_ctx", handle, child).result.length
    went = length - len(PROMPT)
    forked = infer(client, child, count=COUNT - went, begin=len(PROMPT))
    sim.until(lambda: parent.done and forked.done)
    assert parent.tokens == right()
    assert forked.tokens == right()[went:]


def test_after_preemption() -> None:
    """Three that fit the pool one at a time: their KV goes and comes again."""
    sim = Sim(num_blocks=24, prefill_chunk=64)
    client = sim.client()
    prompts = [[n, *PROMPT] * 24 for n in range(3)]
    replies = [infer(client, client.context(prompt), count=60) for prompt in prompts]
    sim.until(lambda: all(reply.done for reply in replies))
    assert sim.pool.evicted > 0
    for reply, prompt in zip(replies, prompts, strict=True):
        assert reply.tokens == right(count=60, prompt=prompt)
    sim.leave()


def test_after_its_slot_was_taken() -> None:
    """Fewer slots than requests: each that comes back is told anew."""
    link = LyingLink(base.Loaded, lambda loaded: [loaded._replace(max_seqs=2)], times=1 << 30)
    sim = Sim(link=link)
    client = sim.client()
    replies = [
        infer(client, client.context([n, *PROMPT]), KNOBS._replace(seed=n), 12) for n in range(5)
    ]
    task = sim.system.sessions[client.route].task
    assert task is not None
    other = sim.client()
    for _ in range(6):
        sim.turn()
    other.ask("kill", task.pid, 19)
    elsewhere = [infer(other, other.context([n, 5]), KNOBS._replace(seed=n), 9) for n in range(3)]
    sim.until(lambda: all(reply.done for reply in elsewhere))
    other.ask("kill", task.pid, 18)
    sim.until(lambda: all(reply.done for reply in replies))
    for n, reply in enumerate(replies):
        assert reply.tokens == right(KNOBS._replace(seed=n), 12, [n, *PROMPT])
    for n, reply in enumerate(elsewhere):
        assert reply.tokens == right(KNOBS._replace(seed=n), 9, [n, 5])
    sim.leave()


# --- what it costs ----------------------------------------------------------------------------


def test_a_request_is_told_once(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(PROMPT)
    sim.settle()
    seen = submits(sim)
    reply = infer(client, handle)
    sim.until(lambda: reply.done)
    assert len(resets(seen)) == 1 and len(seen) <= COUNT + 2
    (told,) = resets(seen)
    assert list(base.read_ints(told.ids)) == PROMPT and told.num_prompt == len(PROMPT)


def test_who_uses_none_of_it_sends_what_was_always_sent(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(PROMPT)
    sim.settle()
    seen = submits(sim)
    reply = infer(client, handle, Knobs(1.0, top_k=5, seed=4))
    sim.until(lambda: reply.done)
    assert not resets(seen)
    samples = [op for submit in seen for op in submit.ops if isinstance(op, base.Sample)]
    assert len(samples) == COUNT and all(op.adjust == b"" for op in samples)


def test_a_bias_alone_needs_no_ids(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(PROMPT * 100)
    sim.settle()
    seen = submits(sim)
    reply = infer(client, handle, Knobs(bias=((5, 90.0),)), 3)
    sim.until(lambda: reply.done)
    assert [len(op.ids) for op in resets(seen)] == [4]


def test_long_contexts_are_told_in_parts_and_others_go_on_meanwhile() -> None:
    """60,000 ids: several messages, each within its limit, a step of the other between them."""
    sim = Sim(path="null:vocab=251,max_ctx=70000", num_blocks=1000, block_size=256,
              prefill_chunk=2048)  # fmt: skip
    client = sim.client()
    long = [n % 200 for n in range(60_000)]
    handle, small = client.context(long), client.context(PROMPT)
    sim.settle()
    seen = submits(sim)
    other = infer(client, small, Knobs(), 20)
    sim.until(lambda: len(other.tokens) == 2)
    reply = client.send("infer", handle, 1, 0.0, 0, 1.0, 0.0, 1, [], False, None, 1.0, 0.0, 0.0,
                        [[7, 1.0]], None)  # fmt: skip
    sim.until(lambda: reply.done)
    penalised = client.send(
        "infer", handle, 2, 0.0, 0, 1.0, 0.0, 1, [], False, None, 1.0, 2.0, 0.0, [], 10_000
    )
    parts = len(resets(seen))
    sim.until(lambda: penalised.done)
    told = resets(seen)[parts:]
    assert len(told) > 2 and sum(len(op.ids) // 4 for op in told) == 60_001
    assert [op.start for op in told] == [sum(len(o.ids) // 4 for o in told[:n])
                                         for n in range(len(told))]  # fmt: skip
    ids, knobs = [*long, *reply.tokens], Knobs(presence=2.0, output_from=10_000)
    for _ in range(2):
        ids.append(next_id(ids, knobs))
    assert penalised.tokens == ids[-2:]
    sim.until(lambda: other.done)
    assert other.tokens == expected(PROMPT, 20)
    sim.leave()


def test_steps_and_resets_take_turns(sim: Sim) -> None:
    """New adjusted requests come all the time; the one that decodes has every other Submit."""
    client = sim.client()
    steady = infer(client, client.context([1, 2]), Knobs(), 30)
    sim.until(lambda: len(steady.tokens) == 1)
    seen = submits(sim)
    while not steady.done:
        client.send("alloc_ctx", client.new_handle())
        infer(client, client.handle, KNOBS, 1, ids=PROMPT)
        sim.turn()
    kinds = [any(isinstance(op, base.Reset) for op in submit.ops) for submit in seen]
    assert sum(kinds) > 5
    assert not any(a and b for a, b in pairwise(kinds))


# --- refusals ---------------------------------------------------------------------------------


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "twice": ({"bias": ((5, 1.0), (5, 2.0))}, "twice"),
    "beyond the vocabulary": ({"bias": ((VOCAB, 1.0),)}, str(VOCAB)),
    "later than the context": ({"begin": 7}, "penalize_from 7"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(sim: Sim, name: str) -> None:
    client, (how, says) = sim.client(), REFUSED[name]
    handle = client.context(PROMPT)
    begin = how.get("begin")
    knobs = Knobs(bias=how.get("bias", ()))
    reply = infer(client, handle, knobs, begin=begin)
    sim.until(lambda: reply.done)
    assert reply.errno == Errno.EINVAL and says in reply.message
    assert client.ask("stat_ctx", handle).result.length == len(PROMPT)


@pytest.mark.parametrize(
    ("feature", "knobs"),
    [("penalties", Knobs(presence=1.0)), ("penalties", Knobs(repetition=2.0)),
     ("penalties", Knobs(frequency=-1.0)), ("bias", Knobs(bias=((1, 1.0),))), ("score", None)],
)  # fmt: skip
def test_a_device_that_lacks_it(feature: str, knobs: Knobs | None) -> None:
    """A driver of 1.0 is asked for nothing that it does not know."""

    def without(ready: base.Ready) -> list[Any]:
        return [ready._replace(features=tuple(f for f in ready.features if f != feature))]

    link: LoopbackLink = LyingLink(base.Ready, without, times=1 << 30)
    sim = Sim(link=link)
    client = sim.client()
    handle = client.context(PROMPT)
    reply = client.send("score", handle, 1) if knobs is None else infer(client, handle, knobs)
    sim.until(lambda: reply.done)
    assert reply.errno == Errno.ENOTSUP and feature in reply.message
    plain = infer(client, handle, Knobs(1.0, seed=3))
    sim.until(lambda: plain.done)
    assert plain.tokens == right(Knobs(1.0, seed=3))
    sim.leave()
