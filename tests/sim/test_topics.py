"""Topics: publish and subscribe."""

from collections.abc import Iterator

import pytest

from syscalls.abi import MAX_BODY, PortRow, Sig
from syscalls.errors import Errno
from tests.helpers.mailing import check_mail, feed, letter, publish, subscriber
from tests.helpers.sim import Sim, SimClient


@pytest.fixture
def sim() -> Iterator[Sim]:
    sim = Sim()
    yield sim
    check_mail(sim)
    sim.leave()


def take(client: SimClient) -> tuple[bytes, list[int], int]:
    reply = client.ask("recv", None, "news", 0.0)
    assert reply.errno == 0, reply.message
    return reply.result.body, list(reply.ids), reply.result.missing


def test_all_subscribers_get_a_message_in_order(sim: Sim) -> None:
    news = sim.client()
    assert publish(news, b"nobody hears") == 0
    readers = [subscriber(sim) for _ in range(3)]
    waiting = readers[0].send("recv", None, "news")
    sim.turn()
    for n in range(3):
        assert publish(news, b"%d" % n, [n, n + 1]) == 3
    assert waiting.result.body == b"0" and list(waiting.ids) == [0, 1]
    assert take(readers[0]) == (b"1", [1, 2], 0)
    for reader in readers[1:]:
        assert [take(reader) for _ in range(3)] == [(b"%d" % n, [n, n + 1], 0) for n in range(3)]
    assert readers[1].ask("recv", None, "news", 0.0).errno == Errno.ETIMEDOUT
    assert readers[1].ask("reply", 0, b"").errno == Errno.ESRCH


def test_a_topic_is_of_one_user(sim: Sim) -> None:
    reader, root = subscriber(sim), sim.client(uid=0)
    assert publish(root, b"x") == 0
    assert root.ask("recv", None, "news").errno == Errno.ENOENT
    assert reader.ask("recv", None, "news", 0.0).errno == Errno.ETIMEDOUT


def test_a_full_subscription_holds_the_publisher_back(sim: Sim) -> None:
    """Nobody gets what one of them cannot take."""
    news, slow, other = sim.client(), subscriber(sim, 2), subscriber(sim, 9)
    assert publish(news, b"0") == publish(news, b"1") == 2
    full = news.ask("publish", "news", b"2")
    assert full.errno == Errno.EAGAIN
    assert "2 messages" in full.message and "limit of its subscription is 2" in full.message
    assert take(slow)[0] == b"0"
    assert publish(news, b"2") == 2
    assert [take(other)[0] for _ in range(3)] == [b"0", b"1", b"2"]
    assert other.ask("recv", None, "news", 0.0).errno == Errno.ETIMEDOUT


def test_one_that_drops_says_how_many_are_missing(sim: Sim) -> None:
    news, slow = sim.client(), subscriber(sim, 2, "drop")
    for n in range(7):
        publish(news, b"%d" % n)
    assert take(slow) == (b"5", [], 5)
    publish(news, b"7")
    assert [take(slow) for _ in range(2)] == [(b"6", [], 0), (b"7", [], 0)]
    for n in range(3):
        publish(news, b"%d" % n)
    waiting = slow.send("recv", None, "news")
    sim.turn()
    assert waiting.result.missing == 1 and waiting.result.body == b"1"


def test_what_subscribe_and_publish_refuse(sim: Sim) -> None:
    news, reader = sim.client(), subscriber(sim)
    assert reader.ask("subscribe", "news").errno == Errno.EEXIST
    assert reader.ask("subscribe", "other", 0).errno == Errno.ENOENT
    assert reader.ask("subscribe", "other", 4, "forget").errno == Errno.EINVAL
    assert reader.ask("subscribe", "other", 1025).errno == Errno.EINVAL, "a feed may, in ids"
    tall = news.ask("publish", "news", b"x" * (MAX_BODY + 1))
    assert tall.errno == Errno.E2BIG and str(MAX_BODY) in tall.message
    assert reader.ask("subscribe", "news", 0).errno == 0
    assert reader.ask("recv", None, "news").errno == Errno.ENOENT
    assert publish(news) == 0


def test_a_subscription_that_ends_ends_the_recv(sim: Sim) -> None:
    reader = subscriber(sim)
    waiting = reader.send("recv", None, "news")
    sim.turn()
    assert reader.ask("subscribe", "news", 0).errno == 0
    assert waiting.errno == Errno.EPIPE


def test_ps_says_what_a_subscriber_waits_for(sim: Sim) -> None:
    reader, watcher = subscriber(sim), sim.client()
    reader.send("recv", None, "news")
    sim.turn()
    pid = reader.ask("stat_task").result.pid
    row = watcher.ask("stat_task", pid).result
    assert (row.state, row.wait) == ("S", "topic:news")
    publish(watcher, b"x")
    assert letter(sim, reader) == ("S", "program")


def test_a_stopped_subscriber_takes_nothing_until_it_goes_on(sim: Sim) -> None:
    news, reader = sim.client(), subscriber(sim)
    waiting = reader.send("recv", None, "news")
    sim.turn()
    pid = reader.ask("stat_task").result.pid
    news.ask("kill", pid, int(Sig.STOP))
    publish(news, b"x")
    assert not waiting.done
    news.ask("kill", pid, int(Sig.CONT))
    assert waiting.result.body == b"x"


def test_the_snapshot_shows_ports_topics_and_feeds(sim: Sim) -> None:
    news, reader = sim.client(), subscriber(sim, 2, "drop")
    reader.ask("bind", "tools", 7)
    for _ in range(2):
        news.send("call", "tools", b"")
    reader.ask("recv", "tools")
    handle = feed(reader, [1], 100)
    for _ in range(3):
        publish(news, b"", [5])
    sim.settle()
    rows = [PortRow(*row) for row in news.ask("snapshot", "ports").result.rows]
    by_kind = {row.kind: row for row in rows}
    pid = reader.ask("stat_task").result.pid
    assert {row.pid for row in rows} == {pid} and len(rows) == 3
    port, topic, fed = (by_kind[kind] for kind in ("port", "topic", "feed"))
    assert (port.name, port.waiting, port.serving, port.limit, port.done) == ("tools", 1, 1, 7, 0)
    assert (topic.name, topic.waiting, topic.limit, topic.missing) == ("news", 2, 2, 1)
    assert (fed.name, fed.ctx, fed.waiting, fed.limit, fed.done) == ("news", handle, 0, 100, 3)
