"""Messages between tasks as flows: what both twins of `Port`, `Subscription` and `Message` do.

    port = task.bind("search")               answer = task.call("search", b"llamas", timeout=5.0)
    message = port.recv()
    message.reply(b"found 3")

    news = task.subscribe("news")            task.publish("news", b"rain")
    news.recv().body

Bodies are bytes, and the kernel does not look at them. A wait that is interrupted takes nothing
away: a call is cancelled then, and a message that came all the same is the next recv's.
"""

from array import array
from collections.abc import Sequence
from contextlib import suppress

from syscalls import abi
from syscalls.errors import ECANCELED, ETIMEDOUT
from syscalls.flow import Caller, Flow, finish
from syscalls.session import Pending


class MessageFacts:
    """A message that was taken from a port or a topic."""

    def __init__(self, row: abi.RecvResult, ids: "array[int]") -> None:
        self.number = row.message  # 0: of a topic, there is nobody to reply to
        self.pid = row.pid
        self.sender = row.sender
        self.body = row.body
        self.ids = list(ids)
        self.waiting = row.waiting
        self.missing = row.missing

    def __repr__(self) -> str:
        return f"<message {self.number} of task {self.pid}, {len(self.body)} bytes>"


class Source:
    """A port or a topic that this task takes messages from."""

    def __init__(self, caller: Caller, port: str | None, topic: str | None) -> None:
        self.caller = caller
        self.port = port
        self.topic = topic
        self._left: list[Pending] = []  # recvs that were interrupted

    def recv(self, timeout: float | None) -> Flow[tuple[abi.RecvResult, "array[int]"]]:
        """Take the next message; ETIMEDOUT after `timeout` seconds, 0: what is there."""
        while self._left:
            left = self._left.pop(0)
            with suppress(ECANCELED, ETIMEDOUT):
                return (yield from self._take(left))
        call = self.caller.call("recv", self.port, self.topic, timeout)
        return (yield from self._take(call))

    def _take(self, call: Pending) -> Flow[tuple[abi.RecvResult, "array[int]"]]:
        try:
            row: abi.RecvResult = yield from finish(call)
        except GeneratorExit:
            self._left.append(call)
            self.caller.forget("cancel", call.call)
            raise
        return row, call.ids

    def close(self) -> Flow[None]:
        """Give the port up, or end the subscription."""
        if self.port is not None:
            yield from self.caller.ask("bind", self.port, 0)
        else:
            yield from self.caller.ask("subscribe", self.topic, 0)


def bind(caller: Caller, name: str, depth: int) -> Flow[Source]:
    """Become the server of a port."""
    yield from caller.ask("bind", name, depth)
    return Source(caller, name, None)


def subscribe(caller: Caller, topic: str, depth: int, full: str) -> Flow[Source]:
    """Let the messages of a topic wait for this task."""
    yield from caller.ask("subscribe", topic, depth, full)
    return Source(caller, None, topic)


def feed(caller: Caller, ctx: int, topic: str, window: int) -> Flow[None]:
    """Let a topic feed a context; `window` 0: not any more."""
    yield from caller.ask("subscribe", topic, window, abi.Full.REFUSE.value, ctx)


def call(caller: Caller, port: str, body: bytes, timeout: float | None) -> Flow[bytes]:
    """Send a message and wait for the reply; if that is interrupted, the call is cancelled."""
    pending = caller.call("call", port, body, timeout)
    try:
        result: abi.CallPortResult = yield from finish(pending)
    except GeneratorExit:
        caller.forget("cancel", pending.call)
        raise
    return result.body


def publish(
    caller: Caller, topic: str, body: bytes, ids: "Sequence[int] | array[int] | None"
) -> Flow[int]:
    """Send a message to all who have subscribed; return how many."""
    result: abi.PublishResult = yield from caller.ask("publish", topic, body, ids=ids)
    return result.subscriptions
