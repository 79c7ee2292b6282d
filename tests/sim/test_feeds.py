"""Feeds: contexts that take the ids of a topic."""

from collections.abc import Iterator

import pytest

from syscalls.abi import Finish, Flag, Sig
from syscalls.errors import Errno
from tests.helpers.disks import MemoryFiles
from tests.helpers.hibernating import HibernatingSim, program
from tests.helpers.mailing import check_mail, feed, publish, subscriber
from tests.helpers.oracle import expected
from tests.helpers.sim import Sim, SimClient


@pytest.fixture
def sim() -> Iterator[Sim]:
    sim = Sim()
    yield sim
    check_mail(sim)
    sim.leave()


def ids_of(client: SimClient, handle: int) -> list[int]:
    return list(client.ask("read_ctx", handle).ids)


def steps(sim: Sim) -> int:
    return int(sim.model.sched.steps)


def test_ids_become_part_of_the_context_and_are_computed(sim: Sim) -> None:
    news, reader = sim.client(), sim.client()
    handle, first = feed(reader, [1, 2]), list(range(100, 150))
    assert publish(news, b"", first) == 1
    assert publish(news, b"a body is for who receives") == 0
    sim.settle()
    assert ids_of(reader, handle) == [1, 2, *first]
    assert reader.ask("stat_ctx", handle).result.computed == 51, "all but the last one"
    infer = reader.ask("infer", handle, 5, 0.0)
    assert infer.tokens == expected([1, 2, *first], 5)


def first_id_after(sim: Sim, size: int) -> int:
    """Feed `size` ids, then ask: return the steps from the question to its first id."""
    news, reader = sim.client(), sim.client()
    handle, ids = feed(reader, [1]), [n % 251 for n in range(size)]
    for start in range(0, size, 50):
        publish(news, b"", ids[start : start + 50])
        sim.settle()
    before, question = steps(sim), [7, 8, 9]
    infer = reader.send("infer", handle, 1, 0.0, ids=question)
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([1, *ids, *question], 1)
    taken = steps(sim) - before
    assert reader.ask("free_ctx", handle).errno == 0
    return taken


def test_a_question_takes_as_many_steps_whatever_the_size_of_the_feed() -> None:
    sim = Sim(num_blocks=256, prefill_chunk=32)
    assert [first_id_after(sim, size) for size in (0, 50, 700, 1000)] == [1] * 4
    sim.leave()


def test_during_an_infer_ids_wait_in_order(sim: Sim) -> None:
    news, reader = sim.client(), sim.client()
    handle = feed(reader, [1, 2, 3])
    infer = reader.send("infer", handle, 20, 0.0)
    sim.turn()
    for n in (50, 60, 70):
        publish(news, b"", [n, n + 1])
    (waiting,) = sim.system.topics
    assert not infer.done and waiting.num_waiting == 6
    sim.until(lambda: infer.done)
    sim.settle()
    answer = expected([1, 2, 3], 20)
    assert infer.tokens == answer
    assert ids_of(reader, handle) == [1, 2, 3, *answer, 50, 51, 60, 61, 70, 71]


def test_news_comes_before_a_question_that_is_queued(sim: Sim) -> None:
    news, reader = sim.client(), sim.client()
    handle = feed(reader, [1, 2, 3])
    first = reader.send("infer", handle, 10, 0.0)
    second = reader.send("infer", handle, 4, 0.0, ids=[9], flags=Flag.QUEUE)
    sim.turn()
    publish(news, b"", [50, 51])
    sim.until(lambda: second.done)
    text = [1, 2, 3, *first.tokens, 50, 51, 9]
    assert second.tokens == expected(text, 4)


def test_a_window_holds_the_publisher_back(sim: Sim) -> None:
    """Until the ids are computed; a message that is larger than the window is never taken."""
    news, reader = sim.client(), sim.client()
    handle = feed(reader, [1], 64)
    tall = news.ask("publish", "news", b"", ids=[5] * 65)
    assert tall.errno == Errno.E2BIG and "64" in tall.message
    replies = [news.send("publish", "news", b"", ids=[n] * 30) for n in range(4)]
    sim.kernel_turn()
    for client in sim.clients:
        client.read()
    assert [reply.errno for reply in replies] == [0, 0, Errno.EAGAIN, Errno.EAGAIN]
    assert "its window of 64" in replies[2].message
    sim.settle()
    assert publish(news, b"", [7] * 60) == 1
    sim.settle()
    assert ids_of(reader, handle) == [1, *[0] * 30, *[1] * 30, *[7] * 60]


def test_what_waits_for_an_infer_is_in_the_window(sim: Sim) -> None:
    news, reader = sim.client(), sim.client()
    handle = feed(reader, [1, 2, 3], 64)
    infer = reader.send("infer", handle, 30, 0.0)
    sim.turn()
    publish(news, b"", [5] * 60)
    assert news.ask("publish", "news", b"", ids=[6] * 10).errno == Errno.EAGAIN
    assert not infer.done
    sim.until(lambda: infer.done)
    sim.settle()
    assert publish(news, b"", [6] * 10) == 1


def test_a_stopped_reader_holds_the_publisher_back_and_goes_on(sim: Sim) -> None:
    news, reader = sim.client(), sim.client()
    handle = feed(reader, [1], 64)
    pid = reader.ask("stat_task").result.pid
    news.ask("kill", pid, int(Sig.STOP))
    publish(news, b"", [5] * 60)
    for _ in range(50):
        sim.turn()
        assert news.ask("publish", "news", b"", ids=[6] * 10).errno == Errno.EAGAIN
    news.ask("kill", pid, int(Sig.CONT))
    sim.settle()
    assert publish(news, b"", [6] * 10) == 1
    sim.settle()
    assert ids_of(reader, handle) == [1, *[5] * 60, *[6] * 10]


def test_a_feed_that_found_no_room_goes_on_when_there_is_some() -> None:
    """Its background prefill has ended for want of blocks: who publishes again wakes it."""
    sim = Sim(num_blocks=17)
    news, reader, hog = sim.client(), sim.client(), sim.client()
    handle = feed(reader, [1], 64)
    full = hog.context([3] * 200)
    infer = hog.send("infer", full, 55, 0.0)
    sim.turn()
    publish(news, b"", [5] * 60)
    for _ in range(20):
        sim.turn()
    hog.ask("free_ctx", full)
    assert infer.errno == Errno.ECANCELED
    sim.until(lambda: news.ask("publish", "news", b"", ids=[6] * 60).errno == 0, 200)
    sim.settle()
    assert ids_of(reader, handle) == [1, *[5] * 60, *[6] * 60]
    check_mail(sim)
    sim.leave()


def test_what_a_feed_refuses(sim: Sim) -> None:
    news, reader = sim.client(), sim.client()
    handle = feed(reader, [1])
    for args, errno in {
        ("news", 9, "refuse", handle): Errno.EEXIST,
        ("other", 9, "refuse", handle): Errno.EEXIST,
        ("news", 9, "drop", reader.context([1])): Errno.EINVAL,
        ("news", 9, "refuse", 77): Errno.EBADCTX,
        ("other", 0, "refuse", handle): Errno.ENOENT,
    }.items():
        assert reader.ask("subscribe", *args).errno == errno, args
    wrong = news.ask("publish", "news", b"", ids=[250, 251])
    assert wrong.errno == Errno.EINVAL and "251" in wrong.message
    assert ids_of(reader, handle) == [1]
    assert reader.ask("subscribe", "news", 0, "refuse", handle).errno == 0
    assert publish(news, b"", [5]) == 0


def test_a_full_context_refuses_the_publisher() -> None:
    sim = Sim(max_ctx=64)
    news, reader, other = sim.client(), sim.client(), subscriber(sim)
    handle = feed(reader, [1] * 60)
    full = news.ask("publish", "news", b"", ids=[5] * 5)
    assert full.errno == Errno.E2BIG and "64" in full.message
    assert other.ask("recv", None, "news", 0.0).errno == Errno.ETIMEDOUT, "all or none"
    assert publish(news, b"", [5] * 4) == 2
    infer = reader.send("infer", handle, 5, 0.0)
    sim.until(lambda: infer.done)
    reader.ask("trim_ctx", handle, 10)
    assert publish(news, b"", [6]) == 2
    sim.leave()


def test_ids_that_wait_and_find_no_room_wait_on() -> None:
    """The infer has taken the room that they were accepted for; a trim gives it back."""
    sim = Sim(max_ctx=64)
    news, reader = sim.client(), sim.client()
    handle = feed(reader, [1] * 20)
    infer = reader.send("infer", handle, 40, 0.0)
    sim.turn()
    publish(news, b"", [5] * 20)
    sim.until(lambda: infer.done)
    assert infer.result.finish == Finish.LENGTH and len(ids_of(reader, handle)) == 60
    check_mail(sim)
    assert news.ask("publish", "news", b"", ids=[6]).errno == Errno.E2BIG
    assert reader.ask("trim_ctx", handle, 20).errno == 0
    assert publish(news, b"", [6]) == 1
    assert ids_of(reader, handle) == [1] * 20 + [5] * 20 + [6]
    sim.leave()


def test_a_feed_is_within_the_limits_of_its_task(sim: Sim) -> None:
    """Who publishes learns whose limit it is; nothing is added beyond it, also after an infer."""
    news, reader = sim.client(), sim.client()
    handle = feed(reader, [1, 2])
    pid = reader.ask("stat_task").result.pid
    account = sim.system.tasks.find(pid).account
    assert publish(news, b"", [5] * 10) == 1
    assert account.usage.input_ids == 12, "a feed is charged like an append"
    assert reader.ask("set_limit", "input_ids", None, 30, pid).errno == 0
    assert publish(news, b"", [6] * 10) == 1
    over = news.ask("publish", "news", b"", ids=[7] * 10)
    assert over.errno == Errno.EDQUOT and f"task {pid}" in over.message
    infer = reader.send("infer", handle, 100, 0.0)
    sim.turn()
    assert publish(news, b"", [7] * 8) == 1
    other = reader.context([])
    assert not infer.done and reader.ask("append", other, ids=[9] * 5).errno == 0
    sim.until(lambda: infer.done)
    sim.settle()
    assert account.usage.input_ids == 27
    assert ids_of(reader, handle)[22:] == infer.tokens, "what waits is over the limit now"


def test_what_waits_for_an_infer_is_saved_with_the_context() -> None:
    """A stop with everything saved ends the infer, and what was accepted is not lost."""
    files = MemoryFiles()
    sim = HibernatingSim(files)
    (reader, known), news = program(sim), sim.client()
    handle = feed(reader, [1, 2, 3])
    infer = reader.send("infer", handle, 500, 0.0)
    sim.until(lambda: len(infer.tokens) > 3)
    publish(news, b"", [50, 51])
    assert sim.hibernate().errno == 0
    sim = HibernatingSim(files)
    reader, _ = sim.attach(known.pid, known.token)
    assert ids_of(reader, handle) == [1, 2, 3, *infer.tokens, 50, 51]
    assert publish(sim.client(), b"", [5]) == 0, "the feed has ended with its kernel"
    sim.leave()


@pytest.mark.parametrize("how", ["free", "exit", "dies"])
@pytest.mark.parametrize("busy", [False, True])
def test_a_context_that_goes_takes_its_feed_with_it(sim: Sim, how: str, busy: bool) -> None:
    news, reader = sim.client(), sim.client()
    handle = feed(reader, [1, 2])
    if busy:
        reader.send("infer", handle, 500, 0.0)
        sim.turn()
        publish(news, b"", [5, 6])
    if how == "free":
        reader.ask("free_ctx", handle)
    elif how == "exit":
        reader.send("exit", 0)
    else:
        sim.front.dead.add(reader.route)
    sim.turn()
    assert publish(news, b"", [5]) == 0
    assert not len(sim.system.topics) and not sim.system.ports.bytes


def test_a_feed_ends_with_its_grant(sim: Sim) -> None:
    news, owner, reader = sim.client(), sim.client(), sim.client()
    ctx = owner.context([1, 2, 3])
    weak = owner.ask("grant_ctx", ctx, 1).result.grant
    grant = owner.ask("grant_ctx", ctx, 3).result.grant
    handle, other = reader.new_handle(), reader.new_handle()
    assert reader.ask("open_ctx", grant, handle).errno == 0
    assert reader.ask("open_ctx", weak, other).errno == 0
    assert reader.ask("subscribe", "news", 9, "refuse", other).errno == Errno.EPERM
    assert reader.ask("subscribe", "news", 9, "refuse", handle).errno == 0
    assert publish(news, b"", [4]) == 1
    owner.ask("revoke", grant)
    assert publish(news, b"", [5]) == 0
    assert reader.ask("subscribe", "news", 0, "refuse", handle).errno == Errno.EREVOKED
