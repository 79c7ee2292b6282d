"""score through frames on a simulated kernel: exact numbers, in chunks, shared, cut, refused."""

from typing import Any

import pytest

from drivers import base
from drivers.null_model import ZERO
from syscalls.abi import Event, Finish, Flag
from syscalls.errors import Errno
from tests.helpers.liar import LyingLink
from tests.helpers.oracle import VOCAB, expected, logits, scores
from tests.helpers.sim import Reply, Sim, SimClient

IDS = [(7 * n + n // 9) % VOCAB for n in range(100)]


@pytest.fixture
def sim() -> Any:
    sim = Sim()
    watch_writes(sim)
    yield sim
    sim.leave()


def watch_writes(sim: Sim) -> None:
    """See that no step writes to a slot that is filled."""
    send = sim.link.send

    def looking(message: Any) -> None:
        driver: Any = sim.link._driver
        copied: set[int] = set()
        for op in message.ops if isinstance(message, base.Submit) else ():
            memory = driver.models[message.model]
            if isinstance(op, base.Copy):
                copied.update(base.read_ints(op.dst))
            for slot in base.read_ints(op.tables[0].write_slot) if hasattr(op, "tables") else ():
                content = memory.pool[slot * len(ZERO) : (slot + 1) * len(ZERO)]
                assert slot < 16 or slot // 16 in copied or content == ZERO, "written again"
        send(message)

    sim.link.send = looking  # type: ignore[method-assign]


def score(client: SimClient, handle: int, start: int, top: int = 0, **how: Any) -> Any:
    return client.ask("score", handle, start, top, **how)


def events(client: SimClient, call: int) -> list[list[Any]]:
    return [event for event in client.take() if event[0] == Event.TOKEN and event[1] == call]


def check(sim: Sim, client: SimClient, reply: Reply, ids: list[int], start: int) -> None:
    """The events of a score have all ids from `start` on, in order, with the right numbers."""
    sim.until(lambda: reply.done)
    assert reply.errno == 0, reply.message
    mine = events(client, reply.call)
    got = [logprob for event in mine for logprob in event[3]]
    assert [token for event in mine for token in event[2]] == ids[start:]
    assert got == pytest.approx(scores(ids, start), abs=1e-3)
    assert reply.result.finish == Finish.LENGTH
    assert (reply.result.length, reply.result.start) == (len(ids), start)
    assert reply.result.scored == len(ids) - start


# --- the numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1, 2, 16, 17, 33, 98, 99])
@pytest.mark.parametrize("settled", [False, True], ids=["not computed", "computed"])
def test_all_from_any_position(sim: Sim, start: int, settled: bool) -> None:
    client = sim.client()
    handle = client.context(IDS)
    if settled:
        sim.settle()
    client.take()
    check(sim, client, client.send("score", handle, start), IDS, start)
    assert list(client.ask("read_ctx", handle).ids) == IDS, "the context is as it was"
    again = client.ask("infer", handle, 5, 0.0)
    assert again.tokens == expected(IDS, 5)


def test_ids_of_frame_2_come_first(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(IDS[:40])
    client.take()
    check(sim, client, client.send("score", handle, 40, ids=IDS[40:]), IDS, 40)
    assert client.ask("stat_ctx", handle).result.length == 100


def test_the_best_of_each(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(IDS[:30])
    client.take()
    call = score(client, handle, 1, 3).call
    best = [pairs for event in events(client, call) for pairs in event[4]]
    assert len(best) == 29
    for place, pairs in enumerate(best, 1):
        row = logits(IDS[:place])
        order = sorted(range(VOCAB), key=lambda token: -row[token])[:3]
        assert [token for token, _ in pairs] == order
        assert [value for _, value in pairs] == pytest.approx([row[t] for t in order], abs=1e-3)


def test_what_is_cached_is_said(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(IDS)
    sim.settle()
    assert score(client, handle, 40).result.cached == 0, "an append computed them for this score"
    assert score(client, handle, 40).result.cached == 39
    fresh = client.context([])
    assert score(client, fresh, 3, ids=IDS[:10]).result.cached == 0


# --- beside others ----------------------------------------------------------------------------


def test_forks_scored_at_once_share_and_compute_the_prompt_once(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(IDS[:50])
    tails = [[n, *IDS[50 + n : 60], n] for n in range(8)]
    replies = []
    for tail in tails:
        child = client.new_handle()
        client.send("fork_ctx", handle, child)
        replies.append(client.send("score", child, 50, ids=tail))
    computed = sim.system.counters.turns
    sim.until(lambda: all(reply.done for reply in replies))
    assert sim.system.counters.turns - computed < 20
    every = client.take()
    for reply, tail in zip(replies, tails, strict=True):
        mine = [e for e in every if e[0] == Event.TOKEN and e[1] == reply.call]
        got = [logprob for event in mine for logprob in event[3]]
        assert got == pytest.approx(scores(IDS[:50] + tail, 50), abs=1e-3)


def test_beside_infers_in_the_same_steps(sim: Sim) -> None:
    client = sim.client()
    running = client.send("infer", client.context([5, 6]), 30, 0.0)
    handle = client.context(IDS)
    sim.until(lambda: len(running.tokens) > 2)
    client.take()
    check(sim, client, client.send("score", handle, 1), IDS, 1)
    sim.until(lambda: running.done)
    assert running.tokens == expected([5, 6], 30)


def test_rows_of_a_step_are_bounded_and_decodes_are_not_stopped() -> None:
    """4 rows: a score takes what others leave, 1 at least; each step still decodes."""
    link = LyingLink(
        base.Loaded, lambda loaded: [loaded._replace(max_seqs=4, max_logit_rows=4)], 1 << 30
    )
    sim = Sim(link=link)
    client = sim.client()
    most = 0
    send = sim.link.send

    def counting(message: Any) -> None:
        nonlocal most
        rows = 0
        for op in message.ops if isinstance(message, base.Submit) else ():
            rows += len(getattr(op, "logit_rows", b"")) // 4
            rows += len(op.rows) // 4 if isinstance(op, base.Score) else 0
        most = max(most, rows)
        send(message)

    sim.link.send = counting  # type: ignore[method-assign]
    infers = [client.send("infer", client.context([n]), 60, 0.0) for n in range(3)]
    handle = client.context(IDS)
    sim.until(lambda: all(reply.tokens for reply in infers))
    before = [len(reply.tokens) for reply in infers]
    steps = sim.model.sched.steps
    client.take()
    check(sim, client, client.send("score", handle, 60), IDS, 60)
    assert most == 4
    took = sim.model.sched.steps - steps
    assert all(len(r.tokens) - b >= took - 2 for r, b in zip(infers, before, strict=True))
    sim.until(lambda: all(reply.done for reply in infers))
    sim.leave()


def test_after_a_death_it_goes_on_where_it_was(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(IDS)
    client.take()
    reply = client.send("score", handle, 1)
    sim.until(lambda: reply.tokens)
    assert not reply.done
    sim.link.die()
    check(sim, client, reply, IDS, 1)


def test_under_eviction() -> None:
    sim = Sim(num_blocks=24)
    client = sim.client()
    handles = [client.context([n, *IDS * 2]) for n in range(4)]
    client.take()
    replies = [client.send("score", handle, 20) for handle in handles]
    sim.until(lambda: all(reply.done for reply in replies))
    assert sim.pool.evicted > 0
    every = client.take()
    for n, reply in enumerate(replies):
        mine = [e for e in every if e[0] == Event.TOKEN and e[1] == reply.call]
        got = [logprob for event in mine for logprob in event[3]]
        assert got == pytest.approx(scores([n, *IDS * 2], 20), abs=1e-3)
    sim.leave()


# --- its end ----------------------------------------------------------------------------------


def test_cancel(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(IDS)
    reply = client.send("score", handle, 1)
    sim.until(lambda: reply.tokens)
    kept = client.ask("cancel", reply.call, 3)
    assert kept.errno == Errno.EINVAL and "score" in kept.message
    assert client.ask("cancel", reply.call).result.length == 100
    assert reply.done and reply.result.finish == Finish.CANCELLED
    assert reply.result.scored == len(reply.tokens) < 99
    assert client.ask("cancel", reply.call).errno == Errno.ESRCH


def test_busy_and_queue(sim: Sim) -> None:
    """As for infer: EBUSY, or with QUEUE one after the other."""
    client = sim.client()
    handle = client.context(IDS[:20])
    infer = client.send("infer", handle, 9, 0.0)
    refused = client.ask("score", handle, 1)
    assert refused.errno == Errno.EBUSY
    waiting = client.send("score", handle, 1, flags=Flag.QUEUE)
    cancelled = client.send("score", handle, 5, flags=Flag.QUEUE)
    behind = client.send("infer", handle, 2, 0.0, flags=Flag.QUEUE)
    assert client.ask("cancel", cancelled.call).errno == 0
    sim.until(lambda: behind.done and waiting.done)
    whole = IDS[:20] + expected(IDS[:20], 11)
    assert infer.tokens + behind.tokens == whole[20:]
    assert waiting.tokens == whole[1:29] and waiting.result.scored == 28
    assert cancelled.result.finish == Finish.CANCELLED and cancelled.result.start == 5
    assert client.ask("append", handle, ids=[1]).errno == 0


def test_freeing_the_context_ends_it(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(IDS)
    reply = client.send("score", handle, 1)
    sim.until(lambda: reply.tokens)
    client.ask("free_ctx", handle)
    assert reply.done and reply.errno == Errno.ECANCELED


def test_signal_int_cancels_it(sim: Sim) -> None:
    client, other = sim.client(), sim.client()
    reply = client.send("score", client.context(IDS), 1)
    sim.until(lambda: reply.tokens)
    task = sim.system.sessions[client.route].task
    assert task is not None
    other.ask("kill", task.pid, 2)
    assert reply.done and reply.result.finish == Finish.CANCELLED


def test_refused(sim: Sim) -> None:
    client = sim.client()
    handle = client.context(IDS[:10])
    for start in (10, 11, 1 << 20):
        reply = score(client, handle, start)
        assert reply.errno == Errno.EINVAL and str(start) in reply.message
    assert score(client, handle, 0).errno == Errno.EINVAL
    assert score(client, handle, 1, 21).errno == Errno.EINVAL
    assert score(client, 999, 1).errno == Errno.EBADCTX
    assert score(client, client.context([]), 1).errno == Errno.EINVAL
    assert score(client, client.context([]), 1, ids=[4]).errno == Errno.EINVAL
    assert score(client, handle, 1, ids=[VOCAB]).errno == Errno.EINVAL
    assert score(client, handle, 1, ids=[1] * 9000).errno == Errno.E2BIG
    assert score(client, handle, 1, ids=[1] * 2000).errno == Errno.ENOMEM
    assert client.ask("stat_ctx", handle).result.length == 10, "nothing has changed"


def test_a_full_context_can_be_scored() -> None:
    sim = Sim(path=f"null:vocab={VOCAB},max_ctx=64")
    client = sim.client()
    handle = client.context(IDS[:64])
    client.take()
    check(sim, client, client.send("score", handle, 1), IDS[:64], 1)
    sim.leave()


# --- what drivers say -------------------------------------------------------------------------


def spoiled(**fields: Any) -> Any:
    def lie(complete: base.Complete) -> list[Any]:
        results = tuple(
            result._replace(**{name: make(getattr(result, name)) for name, make in fields.items()})
            if isinstance(result, base.Scored)
            else result
            for result in complete.results
        )
        return [complete._replace(results=results)]

    return lie


LIES = {
    "too few": spoiled(logprobs=lambda raw: raw[:-4], flags=lambda raw: raw),
    "no flags": spoiled(flags=lambda raw: b""),
    "strange flags": spoiled(flags=lambda raw: b"\2" * len(raw)),
    "too many best": spoiled(top_ids=lambda raw: raw + b"\0" * 4),
    "no number": spoiled(logprobs=lambda raw: base.reals([float("nan")] * (len(raw) // 4))),
    "best beyond": spoiled(top_ids=lambda raw: base.ints([VOCAB] * (len(raw) // 4))),
    "two": lambda complete: [complete._replace(results=complete.results * 2)],
    "samples": lambda complete: [
        complete._replace(results=(base.Sampled(b"", b"", b"", b"", b""),))
    ],
    "nothing": lambda complete: [complete._replace(results=())],
}


@pytest.mark.parametrize("name", LIES)
def test_a_driver_that_scores_wrongly_is_replaced(name: str) -> None:
    sim = Sim(link=LyingLink(base.Complete, LIES[name]))
    client = sim.client()
    handle = client.context(IDS[:20])
    client.take()
    check(sim, client, client.send("score", handle, 1, 2), IDS[:20], 1)
    assert sim.system.device.epoch == 2
    sim.leave()


def test_logits_that_are_no_numbers_fail_the_score_alone() -> None:
    flagged = spoiled(flags=lambda raw: bytes([base.RowFlag.NUMERIC]) * len(raw))
    sim = Sim(link=LyingLink(base.Complete, flagged))
    client = sim.client()
    reply = score(client, client.context(IDS[:20]), 1)
    assert reply.errno == Errno.EIO and "NaN" in reply.message
    assert sim.system.device.epoch == 1
    sim.leave()
