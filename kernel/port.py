"""Port: named places where tasks take what others send them, and who waits there.

    call ---> waiting --recv---> taken --reply---> answered         of a port: a Message
    publish -> waiting --recv--> gone                               of a subscription: an Item

A port belongs to one task, its server; its name is known to the tasks of its user. A message is one
open `call`, and ends once: by the reply, its deadline, cancel, a signal, or the end of its caller
or its server. Whoever ends it takes it out of its port first, so nothing else can find it again.

Credit bounds all of it: messages of a port that are not answered, of a subscription that are not
taken, bytes of a user that wait. What waits for what else is kernel/mail.py's; topics are
kernel/topic.py's.
"""

from array import array
from collections import Counter, deque
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, NamedTuple

from kernel.account import Account
from kernel.panic import check
from kernel.task import Task
from syscalls.abi import MAX_BODY
from syscalls.errors import E2BIG, EAGAIN, EEXIST, ENOENT, KernelError

MAX_NAMES = 1024
"""Ports and subscriptions of one user."""
MAX_BYTES = 64 << 20
"""Of one user, in messages that wait to be taken."""
OVERHEAD = 256
"""Bytes that a message counts beside its body."""
FIRST_GUESS_S = 1.0
"""How long a call is expected to take to a port that has not answered any yet."""
_NEW = 0.2
"""Weight of the newest call in what calls of a port usually take."""


class Waiter:
    """A call of a task that is open until something comes, or its deadline."""

    def __init__(self, task: Task, call: int, deadline: float | None) -> None:
        self.task = task
        self.call = call
        self.deadline = deadline
        self.over = False  # the call has ended

    def finish(self, result: tuple[Any, ...], ids: "array[int] | None" = None) -> None:
        """End the call with its result."""
        self.over = True
        self.task.session.finish(self.call, result, ids)

    def fail(self, error: KernelError) -> None:
        """End the call with an error."""
        self.over = True
        self.task.session.fail(self.call, error)


class Message(Waiter):
    """One call to a port."""

    def __init__(
        self, number: int, port: "Port", task: Task, call: int, deadline: float | None, body: bytes
    ) -> None:
        super().__init__(task, call, deadline)
        self.number = number
        self.port = port
        self.body = body  # until it is taken
        self.size = len(body) + OVERHEAD  # while it waits; 0 then
        self.since = 0.0
        self.returns_at = 0.0  # when the reply is to be expected
        self.behalf: Message | None = task.mail.serves  # what its caller works for
        self.rank: Account = task.rank  # in whose place its server works for it
        self.level = 0  # callers in a row behind it, itself included

    @property
    def payer(self) -> Account:
        """Who is charged for what its server does: the first in the row that still waits."""
        behalf = self.behalf
        if behalf is None or behalf.over:
            account: Account = self.task.account
            return account
        return behalf.payer


class Item(NamedTuple):
    """One message of a topic, waiting for one subscriber."""

    pid: int
    sender: str
    body: bytes
    ids: "array[int] | None"


class Receiver(Waiter):
    """One recv that waits at a port or a subscription."""

    def __init__(self, task: Task, call: int, deadline: float | None, where: Any) -> None:
        super().__init__(task, call, deadline)
        self.where = where  # a Port or a Subscription
        where.receivers.append(self)


class Port:
    """One port."""

    def __init__(self, name: str, server: Task, depth: int) -> None:
        self.name = name
        self.server = server
        self.depth = depth
        self.waiting: dict[int, Message] = {}  # by number, in order of arrival
        self.taken: dict[int, Message] = {}
        self.receivers: deque[Receiver] = deque()
        self.done = 0  # messages that were answered
        self.usual_s = 0.0  # from a call to its reply

    @property
    def reason(self) -> str:
        """What ps says of a task that waits to receive here."""
        return f"recv:{self.name}"

    def require_room(self) -> None:
        """Raise EAGAIN if as many messages are unanswered as may be."""
        if len(self.waiting) + len(self.taken) >= self.depth:
            raise EAGAIN(
                f"port {self.name} has {len(self.waiting)} messages waiting and "
                f"{len(self.taken)} taken, the limit is {self.depth}",
                "call again when some are answered, or bind it with a larger depth",
                {"waiting": len(self.waiting), "taken": len(self.taken), "limit": self.depth},
            )

    def remove(self, message: Message) -> None:
        """Take a message out, wherever it is."""
        found = self.waiting.pop(message.number, None) or self.taken.pop(message.number, None)
        check(found is message, f"message {message.number} is not at port {self.name}")

    def note(self, took_s: float) -> None:
        """Count a call that was answered."""
        self.done += 1
        old = self.usual_s or took_s
        self.usual_s = (1 - _NEW) * old + _NEW * took_s


class PortTable:
    """All ports, and the deadlines of all that wait at ports and topics."""

    def __init__(self) -> None:
        self.numbers = count(1)
        self.bytes: Counter[int] = Counter()  # that wait, by uid
        self.names: Counter[int] = Counter()  # ports and subscriptions, by uid
        self._ports: dict[tuple[int, str], Port] = {}
        self._due: list[tuple[float, int, Waiter]] = []
        self._order = count()
        self._live = 0  # entries of `_due` when it was last cleaned

    def __iter__(self) -> "Any":
        return iter(list(self._ports.values()))

    def __len__(self) -> int:
        return len(self._ports)

    # --- names --------------------------------------------------------------------------------

    def find(self, uid: int, name: str) -> Port:
        """Return a port of a user; ENOENT if there is none."""
        port = self._ports.get((uid, name))
        if port is None:
            raise ENOENT(f"no task of yours has bound port {name}", "llmos ports lists them")
        return port

    def bind(self, task: Task, name: str, depth: int) -> Port:
        """Make a port; EEXIST, EAGAIN."""
        taken = self._ports.get((task.uid, name))
        if taken is not None:
            server = taken.server
            raise EEXIST(f"port {name} is bound by task {server.pid} ({server.name})")
        self.take_name(task.uid)
        port = self._ports[task.uid, name] = Port(name, task, depth)
        return port

    def unbind(self, port: Port) -> None:
        """Forget a port that nobody waits at any more."""
        check(not (port.waiting or port.taken or port.receivers), f"port {port.name} is in use")
        del self._ports[port.server.uid, port.name]
        self.give_name(port.server.uid)

    def take_name(self, uid: int) -> None:
        """Count a port or a subscription of a user; EAGAIN if it has too many."""
        if self.names[uid] >= MAX_NAMES:
            raise EAGAIN(
                f"{self.names[uid]} ports and subscriptions of uid {uid}, that is the limit",
                "end some tasks, or their subscriptions",
                {"limit": MAX_NAMES},
            )
        self.names[uid] += 1

    def give_name(self, uid: int) -> None:
        """Count one less."""
        self.names[uid] -= 1
        if not self.names[uid]:
            del self.names[uid]

    # --- bytes --------------------------------------------------------------------------------

    def require_bytes(self, uid: int, num_bytes: int) -> None:
        """Raise EAGAIN if so many more would be too much of one user."""
        if self.bytes[uid] + num_bytes > MAX_BYTES:
            raise EAGAIN(
                f"{self.bytes[uid]} bytes of uid {uid} wait in messages, {num_bytes} more are over "
                f"the limit of {MAX_BYTES}",
                "send again when some are taken",
                {"needed": num_bytes, "limit": MAX_BYTES},
            )

    def hold(self, uid: int, num_bytes: int) -> None:
        """Count bytes that wait, or with a number below 0, that do not any more."""
        self.bytes[uid] += num_bytes
        if not self.bytes[uid]:
            del self.bytes[uid]

    # --- deadlines ----------------------------------------------------------------------------

    def watch(self, waiter: Waiter) -> None:
        """Note when a call's time is over."""
        if waiter.deadline is None:
            return
        heappush(self._due, (waiter.deadline, next(self._order), waiter))
        if len(self._due) > 2 * self._live + 64:  # calls that have ended long before their time
            self._due = [due for due in self._due if not due[2].over]
            heapify(self._due)
            self._live = len(self._due)

    @property
    def deadline(self) -> float | None:
        """When the next call's time is over."""
        while self._due and self._due[0][2].over:
            heappop(self._due)
        return self._due[0][0] if self._due else None

    def late(self, now: float) -> Waiter | None:
        """Return a call whose time is over."""
        deadline = self.deadline
        return self._due[0][2] if deadline is not None and deadline <= now else None


def require_size(body: bytes) -> None:
    """Raise E2BIG if a body is longer than a message may be."""
    if len(body) > MAX_BODY:
        raise E2BIG(
            f"a message of {len(body)} bytes, the limit is {MAX_BODY}",
            "send it in parts, or grant a context",
            {"needed": len(body), "limit": MAX_BODY},
        )
