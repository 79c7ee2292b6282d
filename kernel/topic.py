"""Topic: what tasks of one user publish, and who has subscribed to it.

    publish --+--> Subscription: a queue that its task takes from with recv
              +--> Feed: a context that the ids become part of

A topic is there while somebody has subscribed to it. A message goes to all of them or to none: the
subscription or feed that is full says so to the publisher (Full.REFUSE), or lets its oldest message
go and tells how many are missing (Full.DROP).

A feed adds ids to its context as they arrive, and the scheduler computes them in the background, so
that a question finds them computed. While something else runs on the context they wait here, in
order. `depth` ids may wait or be uncomputed: that is the window, and what holds the publisher back.
"""

from array import array
from collections import deque
from collections.abc import Iterator

from kernel.context import Context
from kernel.panic import check
from kernel.port import OVERHEAD, Item, PortTable, Receiver
from kernel.task import Task
from syscalls.abi import Full
from syscalls.errors import E2BIG, EAGAIN


class Subscription:
    """The messages of a topic that wait for one task."""

    def __init__(self, topic: str, task: Task, depth: int, full: Full) -> None:
        self.topic = topic
        self.task = task
        self.depth = depth
        self.full = full
        self.items: deque[Item] = deque()
        self.receivers: deque[Receiver] = deque()
        self.done = 0  # messages that were taken
        self.missing = 0  # that were dropped
        self.lost = 0  # of these, those that the task was not told of

    @property
    def reason(self) -> str:
        """What ps says of a task that waits to receive here."""
        return f"topic:{self.topic}"

    def require_room(self) -> None:
        """Raise EAGAIN if it takes no message more."""
        if self.full is Full.REFUSE and len(self.items) >= self.depth:
            raise EAGAIN(
                f"{len(self.items)} messages of topic {self.topic} wait for task {self.task.pid} "
                f"({self.task.name}), the limit of its subscription is {self.depth}",
                "publish again when it has taken some",
                {"waiting": len(self.items), "limit": self.depth},
            )

    def add(self, item: Item) -> Item | None:
        """Let a message wait; return the one that is dropped for it."""
        dropped = self.items.popleft() if len(self.items) >= self.depth else None
        if dropped is not None:
            self.missing += 1
            self.lost += 1
        self.items.append(item)
        return dropped


class Feed:
    """A context that takes the ids of a topic."""

    def __init__(self, topic: str, task: Task, ctx: Context, depth: int) -> None:
        self.topic = topic
        self.task = task
        self.ctx = ctx
        self.depth = depth
        self.waiting: deque[array[int]] = deque()
        self.num_waiting = 0  # ids in it
        self.done = 0  # messages that have become part of the context

    @property
    def backlog(self) -> int:
        """Ids that wait, or are part of the context and not computed; its last one need not be."""
        return self.num_waiting + max(0, self.ctx.length - 1 - self.ctx.computed)

    def require_room(self, count: int) -> None:
        """Raise EAGAIN unless `count` ids more are within the window, E2BIG if they never are."""
        who = f"context {self.ctx.handle} of task {self.task.pid} ({self.task.name})"
        if count > self.depth:
            raise E2BIG(
                f"{count} ids, {who} takes {self.depth} at a time of topic {self.topic}",
                "publish them in parts",
                {"needed": count, "limit": self.depth},
            )
        if self.backlog + count > self.depth:
            raise EAGAIN(
                f"{who} has still to compute {self.backlog} ids, {count} more of topic "
                f"{self.topic} are over its window of {self.depth}",
                "publish again in a moment",
                {"waiting": self.backlog, "needed": count, "limit": self.depth},
            )

    def add(self, ids: "array[int]") -> None:
        """Let ids wait until the context is free."""
        self.waiting.append(ids)
        self.num_waiting += len(ids)

    def next(self) -> "array[int]":
        """Take the ids that have waited longest."""
        ids = self.waiting.popleft()
        self.num_waiting -= len(ids)
        self.done += 1
        return ids


class Topic:
    """Who gets what is published under a name."""

    def __init__(self) -> None:
        self.subscriptions: dict[int, Subscription] = {}  # by pid
        self.feeds: dict[Context, Feed] = {}

    def __len__(self) -> int:
        return len(self.subscriptions) + len(self.feeds)


class TopicTable:
    """All topics that somebody has subscribed to."""

    def __init__(self, ports: PortTable) -> None:
        self._ports = ports  # counts names and bytes of both
        self._topics: dict[tuple[int, str], Topic] = {}

    def __iter__(self) -> Iterator[Subscription | Feed]:
        for topic in list(self._topics.values()):
            yield from list(topic.subscriptions.values())
            yield from list(topic.feeds.values())

    def __len__(self) -> int:
        return len(self._topics)

    def find(self, uid: int, name: str) -> Topic | None:
        """Return a topic of a user, None if nobody has subscribed to it."""
        return self._topics.get((uid, name))

    def add(self, one: Subscription | Feed) -> None:
        """Enter a subscription or a feed; EAGAIN if the user has too many."""
        self._ports.take_name(one.task.uid)
        topic = self._topics.setdefault((one.task.uid, one.topic), Topic())
        if isinstance(one, Feed):
            topic.feeds[one.ctx] = one
        else:
            topic.subscriptions[one.task.pid] = one

    def remove(self, one: Subscription | Feed) -> None:
        """Forget one, with what waits for it."""
        uid = one.task.uid
        topic = self._topics[uid, one.topic]
        if isinstance(one, Feed):
            found: object = topic.feeds.pop(one.ctx, None)
            self._ports.hold(uid, -sum(map(ids_size, one.waiting)))
        else:
            found = topic.subscriptions.pop(one.task.pid, None)
            self._ports.hold(uid, -sum(size_of(item) for item in one.items))
        check(found is one, f"topic {one.topic} does not know its subscription")
        if not topic:
            del self._topics[uid, one.topic]
        self._ports.give_name(uid)


def ids_size(ids: "array[int]") -> int:
    """Return the bytes that ids count while they wait for a context."""
    return OVERHEAD + 4 * len(ids)


def size_of(item: Item) -> int:
    """Return the bytes that a message counts while it waits for a task."""
    return OVERHEAD + len(item.body) + 4 * len(item.ids or ())
