"""Handlers of bind, call, recv and reply, and how what waits at ports ends.

A call ends once, by whichever comes first; all ways go through `take_out`, which leaves nothing of
a message behind. One that was taken by its server when its caller goes is forgotten, too: the reply
is told ESRCH then, and what the server still does for it is at its own cost.
"""

from kernel.handler import PENDING, Caller, Done, Pending
from kernel.mail import mail_of
from kernel.port import FIRST_GUESS_S, OVERHEAD, Message, Port, Receiver, Waiter, require_size
from kernel.returning import called, came_back
from kernel.system import System
from kernel.task import Task, TaskState
from kernel.topic import Subscription, size_of
from syscalls.abi import Bind, CallPort, CallPortResult, Nothing, Recv, RecvResult, Reply
from syscalls.errors import (
    ECANCELED,
    EINVAL,
    ENOENT,
    EPIPE,
    ESRCH,
    ETIMEDOUT,
    KernelError,
)


def sys_bind(k: System, caller: Caller, args: Bind) -> Done:
    """Make the caller the server of a port; `depth` 0: not any more."""
    mail = mail_of(caller.task)
    if args.depth:
        mail.ports[args.port] = k.ports.bind(caller.task, args.port, args.depth)
        return Done(Nothing())
    _close(k, _bound(caller.task, args.port), "its server has given it up")
    return Done(Nothing())


def _bound(task: Task, name: str) -> Port:
    port = task.mail.ports.get(name) if task.mail is not None else None
    if port is None:
        raise ENOENT(f"task {task.pid} has not bound port {name}")
    found: Port = port
    return found


def sys_call(k: System, caller: Caller, args: CallPort) -> Pending:
    """Put a message into a port; the call ends with its reply."""
    require_size(args.body)
    task, now = caller.task, k.clock()
    port = k.ports.find(task.uid, args.port)
    mail = mail_of(task)
    mail.require_way(port)
    port.require_room()
    k.ports.require_bytes(task.uid, len(args.body) + OVERHEAD)
    deadline = None if args.timeout_s is None else now + args.timeout_s
    message = Message(next(k.ports.numbers), port, task, caller.call, deadline, args.body)
    message.since = now
    message.returns_at = now + (port.usual_s or FIRST_GUESS_S)
    k.ports.hold(task.uid, message.size)
    k.ports.watch(message)
    port.waiting[message.number] = message
    mail.calls[caller.call] = message
    mail_of(port.server).enter(message)
    called(k, task)
    serve(k, port)
    return PENDING


def sys_recv(k: System, caller: Caller, args: Recv) -> Pending:
    """Take the next message of a port or a topic, now or when there is one."""
    where: Port | Subscription
    if (args.port is None) == (args.topic is None):
        raise EINVAL("recv takes from a port or from a topic: name one")
    if args.port is not None:
        where = _bound(caller.task, args.port)
    else:
        where = _subscribed(caller.task, args.topic or "")
    if args.timeout_s == 0 and not _has(where):
        raise ETIMEDOUT(f"nothing waits for {where.reason}")
    deadline = None if args.timeout_s is None else k.clock() + args.timeout_s
    receiver = Receiver(caller.task, caller.call, deadline, where)
    mail_of(caller.task).recvs[caller.call] = receiver
    k.ports.watch(receiver)
    serve(k, where)
    return PENDING


def _subscribed(task: Task, topic: str) -> Subscription:
    found = task.mail.subscriptions.get(topic) if task.mail is not None else None
    if found is None:
        raise ENOENT(f"task {task.pid} has not subscribed to topic {topic}")
    one: Subscription = found
    return one


def sys_reply(k: System, caller: Caller, args: Reply) -> Done:
    """End the call of a message that the caller has taken."""
    require_size(args.body)
    mail = caller.task.mail
    message = mail.taken.get(args.message) if mail is not None else None
    if message is None:
        raise ESRCH(
            f"nobody waits for a reply to message {args.message}",
            "it was answered, or its caller has gone or did not wait any longer",
        )
    message.port.note(k.clock() - message.since)
    take_out(k, message)
    message.finish(CallPortResult(args.body, caller.task.pid))
    return Done(Nothing())


# --- messages on their way ------------------------------------------------------------------------


def serve(k: System, where: Port | Subscription) -> None:
    """Give what waits to the recvs that wait for it; a stopped task takes nothing."""
    task = where.server if isinstance(where, Port) else where.task
    while where.receivers and _has(where) and task.state is not TaskState.STOPPED:
        receiver = where.receivers.popleft()
        del task.mail.recvs[receiver.call]
        if isinstance(where, Port):
            receiver.finish(_take(k, where))
        else:
            item = where.items.popleft()
            missing, where.lost = where.lost, 0
            where.done += 1
            k.ports.hold(task.uid, -size_of(item))
            row = RecvResult(0, item.pid, item.sender, item.body, len(where.items), missing)
            receiver.finish(row, item.ids)


def _has(where: Port | Subscription) -> bool:
    return bool(where.waiting if isinstance(where, Port) else where.items)


def _take(k: System, port: Port) -> RecvResult:
    number, message = next(iter(port.waiting.items()))
    mail, caller, body = port.server.mail, message.task, message.body
    k.ports.hold(caller.uid, -message.size)
    message.body, message.size = b"", 0
    port.taken[number] = mail.taken[number] = port.waiting.pop(number)
    mail.renew()
    return RecvResult(number, caller.pid, caller.name, body, len(port.waiting))


def take_out(k: System, message: Message) -> None:
    """Take a message out of its port, whose call is about to end."""
    port, caller = message.port, message.task
    message.over = True
    k.ports.hold(caller.uid, -message.size)
    port.remove(message)
    del caller.mail.calls[message.call]
    port.server.mail.leave(message)
    came_back(k, caller)


# --- ends ---------------------------------------------------------------------------------------


def expire_waiters(k: System, now: float) -> None:
    """End calls and recvs whose time is over."""
    while (waiter := k.ports.late(now)) is not None:
        if isinstance(waiter, Message):
            port = waiter.port
            what = "was not taken" if waiter.number in port.waiting else "was not answered"
            server = f"task {port.server.pid} ({port.server.name})"
            why = f"a message to port {port.name} {what} in time; its server is {server}"
        else:
            assert isinstance(waiter, Receiver)
            why = f"nothing came in time for {waiter.where.reason}"
        _abandon(k, waiter)
        waiter.fail(ETIMEDOUT(why))


def _abandon(k: System, waiter: Waiter) -> None:
    """Let nothing come to a call any more, whose end is near."""
    if isinstance(waiter, Message):
        take_out(k, waiter)
    elif isinstance(waiter, Receiver):
        waiter.over = True
        waiter.where.receivers.remove(waiter)
        del waiter.task.mail.recvs[waiter.call]


def cancel_waiters(k: System, task: Task, why: str, call: int | None = None) -> bool:
    """End calls and recvs of a task, all or one; see whether there was any."""
    if task.mail is None:
        return False
    waiters: list[Waiter] = [*task.mail.calls.values(), *task.mail.recvs.values()]
    found = [waiter for waiter in waiters if call in (None, waiter.call)]
    for waiter in found:
        _abandon(k, waiter)
        waiter.fail(ECANCELED(why))
    return bool(found)


def wake_receivers(k: System, task: Task) -> None:
    """Give a task that goes on what has come for it while it was stopped."""
    if task.mail is not None:
        for where in [*task.mail.ports.values(), *task.mail.subscriptions.values()]:
            serve(k, where)


def end_mail(k: System, task: Task, why: str) -> None:
    """Take a task that ends out of all ports and topics. Its own calls are ended with it."""
    mail = task.mail
    if mail is None:
        return
    for waiter in [*mail.calls.values(), *mail.recvs.values()]:
        _abandon(k, waiter)
    for port in list(mail.ports.values()):
        _close(k, port, why)
    for one in list(mail.subscriptions.values()):
        drop_subscription(k, one, EPIPE(why))


def _close(k: System, port: Port, why: str) -> None:
    """End a port: who waits for a reply of it, or a message, gets EPIPE."""

    def gone(what: str) -> KernelError:
        return EPIPE(f"{what} port {port.name}: {why}")

    for message in [*port.taken.values(), *port.waiting.values()]:
        taken = message.number in port.taken
        take_out(k, message)
        message.fail(gone("taken and not answered by" if taken else "not taken from"))
    for receiver in list(port.receivers):
        _abandon(k, receiver)
        receiver.fail(gone("nothing comes any more to"))
    k.ports.unbind(port)
    del port.server.mail.ports[port.name]


def drop_subscription(k: System, one: Subscription, error: KernelError) -> None:
    """End a subscription of a task, and the recvs that wait for it."""
    for receiver in list(one.receivers):
        _abandon(k, receiver)
        receiver.fail(error)
    k.topics.remove(one)
    del one.task.mail.subscriptions[one.topic]
