"""The asyncio twins of `port`: Port, Subscription and Message, and the calls that make them."""

from array import array
from collections.abc import Sequence
from typing import Protocol, TypeVar

from syscalls import abi, messages
from syscalls.flow import Caller, Flow
from syscalls.messages import MessageFacts, Source

T = TypeVar("T")


class Runs(Protocol):
    """What of a Task is needed here."""

    caller: Caller

    async def run(self, flow: Flow[T]) -> T: ...
    async def run_for(self, flow: Flow[T], limit: float | None) -> T: ...


class Message(MessageFacts):
    """A message. One of a port waits for its reply; `number` is 0 for one of a topic."""

    def __init__(self, task: Runs, row: abi.RecvResult, ids: "array[int]") -> None:
        super().__init__(row, ids)
        self._task = task

    async def reply(self, body: bytes = b"") -> None:
        """Answer it; ESRCH if the caller has gone or does not wait any more."""
        await self._task.run(self._task.caller.ask("reply", self.number, body))


class _Source:
    def __init__(self, task: Runs, source: Source) -> None:
        self._task = task
        self._source = source

    async def recv(self, timeout: float | None = None) -> Message:
        """Take the next message; ETIMEDOUT after `timeout` seconds, 0: only what is there."""
        row, ids = await self._task.run_for(self._source.recv(timeout), None)
        return Message(self._task, row, ids)

    async def close(self) -> None:
        """Take no more from it; EPIPE to who waits for a reply."""
        await self._task.run(self._source.close())


class Port(_Source):
    """A port that this task serves. Made by `Task.bind`."""

    @property
    def name(self) -> str:
        return self._source.port or ""


class Subscription(_Source):
    """A topic whose messages wait for this task. Made by `Task.subscribe`."""

    @property
    def topic(self) -> str:
        return self._source.topic or ""


class Messages:
    """Calls of a Task about messages."""

    async def bind(self: Runs, name: str, depth: int = 64) -> Port:
        """Become the server of a port, at which `depth` messages may be unanswered.

        What this task computes from recv to reply is charged to the caller, and done in its place.
        EEXIST if another task of this user serves it.
        """
        return Port(self, await self.run(messages.bind(self.caller, name, depth)))

    async def call(self: Runs, port: str, body: bytes = b"", timeout: float | None = None) -> bytes:
        """Send a message to a port and wait for the reply, no longer than `timeout` seconds.

        ENOENT: nobody serves it. EAGAIN: it is full. ETIMEDOUT. EPIPE: its server has gone before
        it answered. EDEADLK: its server waits for this task.
        """
        return await self.run_for(messages.call(self.caller, port, body, timeout), None)

    async def publish(
        self: Runs, topic: str, body: bytes = b"", ids: "Sequence[int] | array[int] | None" = None
    ) -> int:
        """Send a message to all subscriptions of a topic, or to none; return to how many.

        `ids` go to contexts that feed on it, too. EAGAIN if a subscription is full.
        """
        return await self.run(messages.publish(self.caller, topic, body, ids))

    async def subscribe(
        self: Runs, topic: str, depth: int = 64, drop: bool = False
    ) -> Subscription:
        """Let up to `depth` messages of a topic wait for this task.

        When that many wait, a publisher gets EAGAIN; with `drop` the oldest one goes, and the next
        that is taken says how many are `missing`.
        """
        full = abi.Full.DROP if drop else abi.Full.REFUSE
        return Subscription(
            self, await self.run(messages.subscribe(self.caller, topic, depth, full.value))
        )

    async def ports(self: Runs) -> list[abi.PortRow]:
        """List ports, subscriptions and feeds."""
        return await self.run(self.caller.snapshot("ports", abi.PortRow))
