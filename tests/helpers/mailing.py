"""Messages, looked at from outside of the calls that move them: what must hold at any moment."""

from collections import Counter
from typing import Any

from kernel.mail import MAX_LEVEL, Mail
from kernel.port import OVERHEAD
from kernel.task import Task, TaskState
from kernel.topic import ids_size, size_of
from tests.helpers.sim import Sim, SimClient


def check_mail(sim: Sim) -> None:
    """Ports, tasks and sessions agree on who waits for whom; payers and ranks are as documented."""
    k = sim.system
    held: Counter[int] = Counter()
    names: Counter[int] = Counter()
    for port in k.ports:
        assert k.tasks.has(port.server) and not port.server.ended_already
        assert port.server.mail.ports[port.name] is port
        names[port.server.uid] += 1
        assert not set(port.waiting) & set(port.taken)
        assert len(port.waiting) + len(port.taken) <= port.depth
        for number, message in [*port.waiting.items(), *port.taken.items()]:
            assert message.number == number and not message.over
            assert message.task.mail.calls[message.call] is message
            assert message.call in message.task.session.open, "an open call"
            held[message.task.uid] += message.size
            waits = number in port.waiting
            assert message.size == (len(message.body) + OVERHEAD) * waits
        assert not (port.waiting and port.receivers) or port.server.state is TaskState.STOPPED
    for one in k.topics:
        names[one.task.uid] += 1
        if hasattr(one, "items"):
            assert len(one.items) <= one.depth
            held[one.task.uid] += sum(map(size_of, one.items))
        else:
            held[one.task.uid] += sum(map(ids_size, one.waiting))
            assert one.ctx.feed is one and one.task.contexts[one.ctx.handle] is one.ctx
            assert one.num_waiting == sum(map(len, one.waiting))
    assert held == k.ports.bytes and names == k.ports.names
    for task in k.tasks:
        if task.mail is not None:
            _check_task(task)


def _check_task(task: Task) -> None:
    mail: Mail = task.mail
    waits = [m for port in mail.ports.values() for m in port.waiting.values()]
    takes = [m for port in mail.ports.values() for m in port.taken.values()]
    assert set(mail.taken.values()) == set(takes)
    for call, message in mail.calls.items():
        port = message.port
        assert message.number in port.waiting or message.number in port.taken
        assert message.call == call and message.level == mail.level + 1
        assert message.rank is task.rank, "a caller passes on whose place it has"
    for call, receiver in mail.recvs.items():
        assert call in task.session.open and receiver in receiver.where.receivers
    assert mail.level == max((m.task.mail.level + 1 for m in [*waits, *takes]), default=0)
    assert mail.level <= MAX_LEVEL
    known = {id(m): key for key, of in mail._by_urgency.items() for m in of.values()}
    assert known == {id(m): m.rank.urgency for m in [*waits, *takes]}
    last = max(takes, key=lambda m: list(mail.taken).index(m.number), default=None)
    assert task.payer is (last.payer if last else task.account)
    best = min([m.rank.urgency for m in [*waits, *takes]], default=task.payer.urgency)
    assert task.rank.urgency == min(best, task.payer.urgency)
    assert all(ctx.returns_at == mail.returns_at for ctx in mail.away)
    assert all(not ctx.returns_at for ctx in task.contexts.values() if ctx not in mail.away)
    assert bool(mail.calls) or not mail.away
    for ctx in task.contexts.values():
        if ctx.request is not None:
            assert (ctx.request.payer, ctx.request.rank) == (task.payer, task.rank)


def letter(sim: Sim, client: Any) -> tuple[str, str]:
    """Return the state of a client's task and what it waits for, as ps shows them."""
    row = client.ask("stat_task").result
    return row.state, row.wait


def task_of(client: SimClient) -> Task:
    """Return a client's task."""
    task = client.sim.system.sessions[client.route].task
    assert task is not None
    return task


def wait_of(client: SimClient, by: SimClient) -> tuple[str, str]:
    """Return state and reason of a client's task as another one sees them."""
    row = by.ask("stat_task", task_of(client).pid).result
    return row.state, row.wait


def server(sim: Sim, name: str = "tools", depth: int = 64) -> SimClient:
    """Return a client that has bound a port."""
    client = sim.client()
    assert client.ask("bind", name, depth).errno == 0
    return client


def nice(client: SimClient, value: int) -> None:
    """Give a client's task a nice value before it calls anybody."""
    task_of(client).account.nice = value


def subscriber(sim: Sim, depth: int = 4, full: str = "refuse") -> SimClient:
    """Return a client that has subscribed to the topic `news`."""
    client = sim.client()
    assert client.ask("subscribe", "news", depth, full).errno == 0
    return client


def publish(client: SimClient, body: bytes = b"", ids: list[int] | None = None) -> int:
    """Publish to `news`; return how many have got it."""
    reply = client.ask("publish", "news", body, ids=ids)
    assert reply.errno == 0, reply.message
    count: int = reply.result.subscriptions
    return count


def feed(client: SimClient, ids: list[int], window: int = 1000) -> int:
    """Return a new context of a client that feeds on `news`."""
    handle = client.context(ids)
    assert client.ask("subscribe", "news", window, "refuse", handle).errno == 0
    return handle
