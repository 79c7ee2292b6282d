"""Mail: what one task has to do with ports and topics, and who waits for it through them.

A server works for its callers. So while it has messages, what it computes is charged to the caller
of the one it took last (its `payer`), and done in that caller's place in the order, or in that of a
better one that waits for it (its `rank`). A caller may be a server itself, and pass on whose place
it has: a change goes down the row of servers at once.

`level` is how many callers in a row wait for a task. A call goes from a task to one of a higher
level, so a cycle is only looked for where levels allow one, and no row is longer than MAX_LEVEL.
"""

from collections.abc import Iterable
from typing import Any

from kernel.account import Account
from kernel.context import Context
from kernel.port import Message, Port, Receiver
from kernel.task import Task
from syscalls.errors import EAGAIN, EDEADLK, EINVAL

MAX_LEVEL = 8
MAX_CALLS = 256
"""Calls to ports that one task waits for."""


class Mail:
    """The mail of one task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.ports: dict[str, Port] = {}
        self.subscriptions: dict[str, Any] = {}  # by topic, without those of its contexts
        self.calls: dict[int, Message] = {}  # that it waits for, by call
        self.recvs: dict[int, Receiver] = {}
        self.taken: dict[int, Message] = {}  # not answered, in the order in which it took them
        self.away: dict[Context, bool] = {}  # contexts that know of its calls; whether parked
        self.level = 0
        self._stands: tuple[Account, Account, tuple[int, int]] | None = None  # as others know
        self._by_urgency: dict[tuple[int, int], dict[int, Message]] = {}  # all that wait for it
        self._at_level = [0] * (MAX_LEVEL + 2)

    @property
    def payer(self) -> Account:
        """The account that is charged for what the task computes."""
        serves = self.serves
        return serves.payer if serves is not None else self.task.account

    @property
    def serves(self) -> Message | None:
        """The message that it works for: the one that it took last and has not answered."""
        return next(reversed(self.taken.values()), None)

    @property
    def rank(self) -> Account:
        """The account in whose place its requests stand in the order."""
        payer = self.payer
        if not self._by_urgency:
            return payer
        best = min(self._by_urgency)
        if best >= payer.urgency:
            return payer
        return next(iter(self._by_urgency[best].values())).rank

    @property
    def waits_for(self) -> str:
        """What the task waits for, as ps says it; empty: for nothing here."""
        for message in self.calls.values():
            return f"port:{message.port.name}"
        for receiver in self.recvs.values():
            return str(receiver.where.reason)
        return ""

    @property
    def returns_at(self) -> float:
        """When the first reply is to be expected; 0: it waits for none."""
        return min((message.returns_at for message in self.calls.values()), default=0.0)

    # --- who waits for whom -------------------------------------------------------------------

    def require_way(self, port: Port) -> None:
        """Raise unless a call from this task to a port may wait: EDEADLK, EINVAL, EAGAIN."""
        if len(self.calls) >= MAX_CALLS:
            count = len(self.calls)
            raise EAGAIN(f"{count} calls of this task wait for replies, that is the limit")
        server = port.server
        if server is self.task or self._reaches(server.mail):
            raise EDEADLK(
                f"port {port.name} is of task {server.pid} ({server.name}), which waits for a "
                f"reply of task {self.task.pid}",
                "a server must not call whom it serves, nor itself",
            )
        if _highest(server.mail, self.level + 1) > MAX_LEVEL:
            raise EINVAL(
                f"more than {MAX_LEVEL} callers in a row would wait for each other at port "
                f"{port.name}",
                "let a server answer before the next one is called",
            )

    def _reaches(self, start: "Mail") -> bool:
        """Whether a task waits for this one, be it through others."""
        seen, stack = {start}, [start]
        while stack:
            mail = stack.pop()
            if mail.level >= self.level:
                continue  # calls go up: from here none comes to this task
            for message in mail.calls.values():
                server = message.port.server
                if server is self.task:
                    return True
                if server.mail not in seen:
                    seen.add(server.mail)
                    stack.append(server.mail)
        return False

    def enter(self, message: Message) -> None:
        """Let a message of another task wait for this one."""
        self._add(message)
        self.renew()

    def leave(self, message: Message) -> None:
        """Let one go that has ended."""
        self.taken.pop(message.number, None)
        self._drop(message)
        self.renew()
        self._pass_on(message)

    def _pass_on(self, message: Message) -> None:
        """Tell servers that work for a message through this task that somebody else pays now."""
        for call in self.calls.values():
            if call.behalf is message:
                server: Mail = call.port.server.mail
                server.renew()
                server._pass_on(call)

    def _add(self, message: Message) -> None:
        caller = message.task
        message.rank, message.level = caller.rank, caller.mail.level + 1
        self._by_urgency.setdefault(message.rank.urgency, {})[message.number] = message
        self._at_level[message.level] += 1

    def _drop(self, message: Message) -> None:
        for nice, messages in self._by_urgency.items():
            if messages.pop(message.number, None) is not None:
                if not messages:
                    del self._by_urgency[nice]
                break
        self._at_level[message.level] -= 1

    def renew(self) -> None:
        """Take over whom the task works for now, and tell the servers that it waits for."""
        level = next((at for at in range(MAX_LEVEL, 0, -1) if self._at_level[at]), 0)
        payer, rank = self.payer, self.rank
        stands = payer, rank, rank.urgency
        if stands == self._stands and level == self.level:
            return
        self._stands, self.level = stands, level
        for ctx in self.task.contexts.values():
            if ctx.request is not None:
                ctx.request.payer, ctx.request.rank = payer, rank
                payer.look()
        self.restand()

    def restand(self) -> None:
        """Let the calls of this task stand at their servers as the task itself does now."""
        for message in self.calls.values():
            server: Mail = message.port.server.mail
            server._drop(message)
            server._add(message)
            server.renew()


def _highest(mail: Mail, level: int) -> int:
    """Return the level that the last of a row would have if this task had `level`."""
    highest, stack = level, [(mail, level)]
    known: dict[Mail, int] = {}
    while stack and highest <= MAX_LEVEL:
        mail, level = stack.pop()
        if level <= known.get(mail, mail.level):
            continue
        known[mail] = level
        highest = max(highest, level)
        stack += [(message.port.server.mail, level + 1) for message in mail.calls.values()]
    return highest


def mail_of(task: Task) -> Mail:
    """Return the mail of a task, made with its first use."""
    if task.mail is None:
        task.mail = Mail(task)
    mail: Mail = task.mail
    return mail


def reranked(tasks: Iterable[Task], account: Account) -> None:
    """Take over that an account has another nice value, or another place in the tree."""
    for task in tasks:
        if task.mail is not None and task.account.is_below(account):
            task.mail.renew()
            task.mail.restand()
