"""Streams: what a program of the simulator has asked for, and what has come of it so far."""

from typing import TYPE_CHECKING

from tests.helpers.forest import Node
from tests.helpers.sim import Reply

if TYPE_CHECKING:
    from tests.helpers.programs import Program


class Owned:
    """A context as its program knows it."""

    def __init__(self, program: "Program", handle: int, ids: list[int]) -> None:
        self.program = program
        self.handle = handle
        self.ids = ids
        self.paid = 0  # leading positions that somebody was charged for
        self.stream: Stream | None = None


class Stream:
    """An infer that is not finished."""

    def __init__(self, owned: Owned, reply: Reply, seed: int, ids: list[int], now: float) -> None:
        self.owned = owned
        self.reply = reply
        self.seed = seed  # no other infer has it
        self.accepted = False
        self.appended = False  # its context was being prefilled, and is if this is refused
        self.coming = 0  # blocks of it that were on their way to the device
        self.since = now
        self.event = owned.program.work.events  # at which it came, or was let run again
        self.served = now  # when it last got a part of a step, or could not have got one
        self.times: list[float] = []  # at which ids came
        self._ids = ids

    def accept(self) -> int:
        """Note that the kernel has taken it; return how many ids came with it."""
        self.accepted = True
        self.owned.ids.extend(self._ids)
        return len(self._ids)

    @property
    def exceeds(self) -> bool:
        """Whether it was accepted, and ended by blocks that turned out to be too many."""
        message = self.reply.message
        return "limit device_blocks of" in message and "more asked for" not in message


class Errand:
    """A call to a port. While its server has it and has not answered, the caller pays for what the
    server computes; or whoever the caller worked for itself when it called."""

    def __init__(self, caller: "Program", port: str, reply: Reply, timeout_s: float | None) -> None:
        self.caller = caller
        self.port = port
        self.taken = self.answered = False
        self._reply = reply
        self._until = None if timeout_s is None else caller.work.now + timeout_s
        self._behalf = caller.serves

    @property
    def over(self) -> bool:
        """Whether its call has ended, be it that the caller does not read that."""
        late = self._until is not None and self.caller.work.now >= self._until
        return late or self.answered or self._reply.done or self.caller.gone

    @property
    def payer(self) -> Node:
        """Whose place in the tree of accounts is charged."""
        behalf = self._behalf
        return self.caller.node if behalf is None or behalf.over else behalf.payer
