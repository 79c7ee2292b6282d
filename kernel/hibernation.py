"""Hibernation: how far a kernel is on its way down with everything saved, or on its way back.

`Hibernation` is the way down, from the call to the end (kernel/way_down.py):

    GRACE --no infer runs--> SAVING --the record is written--> SAVED        or it fails, and is gone

`Comeback` is the way up, from the first turn on (kernel/way_up.py), in the states of abi.Restore:

    READING --a record--> COMING --all that could come--> DONE
       |--none--> NONE        |--the store or the device fails--> FAILED
       |--told not to, or no room--> WAITING
       |--it cannot be read--> FAILED
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kernel.block import Block
from kernel.context import Context
from kernel.journal import CtxEntry, Head, ModelEntry
from kernel.session import Session
from kernel.task import Task
from syscalls.abi import Restore, ShutdownResult


class Phase(Enum):
    """Of a way down."""

    GRACE = "grace"
    SAVING = "saving"
    SAVED = "saved"


@dataclass
class Hibernation:
    """A shutdown that saves."""

    session: Session  # whose call it is
    call: int
    by: float  # when the grace ends
    mark: str
    phase: Phase = Phase.GRACE
    tasks: list[Task] = field(default_factory=list)
    saved: dict[Context, Task] = field(default_factory=dict)  # also empty ones, which need no save
    elsewhere: dict[int, set[Block]] = field(default_factory=dict)  # by owner: KV that is saved
    names: dict[Context, tuple[int, str]] = field(default_factory=dict)  # of saves: owner, name
    committing: bool = False  # the record may be there
    result: ShutdownResult = field(default_factory=ShutdownResult)


@dataclass
class Books:
    """How far the ledger of users is kept (kernel/books.py)."""

    read: bool = False  # what the kernel before has kept is known
    working: bool = False  # an errand of it is under way
    closing: bool = False  # the last write has begun
    due: float = 0.0  # when it is written next, if anything has changed
    groups: dict[tuple[int, str], Any] = field(default_factory=dict)  # that may be back
    written: tuple[int, ...] = (0, 0, 0, 0, 0)  # what was written last


class Comeback:
    """What a kernel brings back of the one before it."""

    def __init__(self, possible: bool, lease_s: float) -> None:
        self.state = Restore.READING if possible else Restore.NONE
        self.lease_s = lease_s  # of tasks that nobody attaches to
        self.working = False  # an errand of it is under way
        self.tries = 0  # of reading the record, in epochs of the store that have ended
        self.head: Head | None = None
        self.models: list[ModelEntry] = []
        self.entries: deque[CtxEntry] = deque()  # of contexts that are to come
        self.back: list[CtxEntry] = []  # whose saves are to go
        self.left = 0  # contexts that could not come
        self.num_back = 0
        self.waiting: deque[tuple[Session, Any, bool]] = deque()  # hello and attach; of a known one
        self.num_waiting = 0  # contexts of a record that is left alone
        self._coming: dict[int, int] = {}  # contexts that are to come, by pid

    @property
    def reading(self) -> bool:
        """Whether it is unknown which pids are taken."""
        return self.state is Restore.READING

    @property
    def unrestored(self) -> int:
        """Contexts that are not back, or not yet."""
        return len(self.entries) + self.left + self.num_waiting

    @property
    def under_way(self) -> bool:
        """Whether the saves of the kernel before are being read or removed."""
        return self.working or self.state in (Restore.READING, Restore.COMING)

    def expect(self, entries: Iterable[CtxEntry]) -> None:
        """Note contexts that are to come."""
        for entry in entries:
            self.entries.append(entry)
            self._coming[entry.pid] = self._coming.get(entry.pid, 0) + 1

    def coming(self, pid: int) -> bool:
        """Whether contexts of a task are still to come."""
        return self.state is Restore.COMING and pid in self._coming

    def settled(self, entry: CtxEntry) -> None:
        """Note that a context has come, or will not."""
        self._coming[entry.pid] -= 1
        if not self._coming[entry.pid]:
            del self._coming[entry.pid]
