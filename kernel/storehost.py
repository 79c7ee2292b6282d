"""Store host: the process of disk and keys, as the kernel deals with it.

    OFF --(a state directory)--> OPENING --Opened--> UP      FAILED: refused, or out of restarts
                   ^----- it died or hung: a new epoch -----|

The kernel asks and goes on; each answer, or the fault that stands for it, is handed to whoever
asked. When the process dies, all that was asked is answered with a fault: what was only in the swap
file is gone with its keys, what was being saved is as it was before. Then it is started again.

A job is a number that the messages of one save, one load or one batch have in common; the answers
of a job come in the order of its messages (drivers/store/base.py).
"""

import logging
from collections import deque
from collections.abc import Callable
from enum import Enum
from itertools import count
from typing import Any, NamedTuple

from drivers.store import base, wire
from kernel.process_link import LinkDown
from kernel.store import Store
from kernel.watch import Patience, Watch
from syscalls.errors import (
    EAGAIN,
    EBUSY,
    ECORRUPT,
    EINVAL,
    EIO,
    ENOENT,
    ENOSPC,
    ENOTSUP,
    KernelError,
)

log = logging.getLogger(__name__)

MAX_MESSAGES = 64
"""Of the store in one turn of the loop."""
Answered = Callable[[Any], None]
ERRORS: dict[base.FaultKind, type[KernelError]] = {
    base.FaultKind.INVALID: EINVAL,
    base.FaultKind.NO_JOB: EIO,
    base.FaultKind.NOT_FOUND: ENOENT,
    base.FaultKind.CORRUPT: ECORRUPT,
    base.FaultKind.NO_SPACE: ENOSPC,
    base.FaultKind.IO: EIO,
    base.FaultKind.UNSURE: EIO,
    base.FaultKind.UNSAFE: EIO,
    base.FaultKind.KEY_LOST: EIO,
    base.FaultKind.UNSUPPORTED: ENOTSUP,
    base.FaultKind.BUSY: EBUSY,
}


class StoreState(Enum):
    OFF = "off"
    OPENING = "opening"
    UP = "up"
    FAILED = "failed"


class Disk(NamedTuple):
    """Where the store works, and how much it may take for swap."""

    state_dir: str  # empty: nothing is kept
    keys_dir: str
    swap_bytes: int


class StoreHost:
    """The store of one kernel."""

    def __init__(
        self, link: Store | None, disk: Disk, patience: Patience, clock: Callable[[], float]
    ) -> None:
        self.link = link
        self.disk = disk
        self.state = StoreState.OFF
        self.note = ""  # why it failed, or died the last time; what it found
        self.hint = ""  # what a person can do about it
        self.epoch = 0
        self.opened: base.Opened | None = None
        self.num_saves = self.saves_bytes = 0  # of all users
        self.on_death: Callable[[], None] = lambda: None  # what was in the swap file is gone
        self.on_up: Callable[[], None] = lambda: None
        self.fallen = ""  # why the epoch is to end as soon as the loop comes to it
        self._jobs = count(1)
        self._asked: dict[int, deque[Answered]] = {}
        self._watch = Watch(patience, clock)

    # --- asking -------------------------------------------------------------------------------

    def new_job(self) -> int:
        """Return a number for what is asked next."""
        return next(self._jobs)

    def require(self) -> None:
        """Raise ENOTSUP, EAGAIN or EIO unless something can be asked."""
        if self.state is StoreState.OFF:
            raise ENOTSUP(
                "this kernel keeps nothing on disk: it was started without --state-dir",
                "llmos down, then llmos up",
            )
        if self.state is StoreState.OPENING:
            raise EAGAIN("the store is being opened", "ask again in a moment")
        if self.state is StoreState.FAILED:
            raise self.failure()

    def failure(self) -> KernelError:
        """Return what whoever needs a FAILED store is told."""
        return EIO(f"the store has failed: {self.note}", self.hint or "llmos dmesg has more")

    def ask(self, message: Any, answered: Answered) -> None:
        """Send a message; `answered` gets its answer or a Fault, never before this returns."""
        self._asked.setdefault(message.job, deque()).append(answered)
        assert self.link is not None
        try:
            self.link.send(message)
        except LinkDown as down:
            self.fallen = str(down)
        self._watch.stepping()

    def recount(self) -> None:
        """Ask how many saves there are: one has come or gone."""
        self.ask(base.Stats(self.new_job()), self._counted)

    def _counted(self, answer: Any) -> None:
        if isinstance(answer, base.StatsReply):
            self.num_saves, self.saves_bytes = answer.num_saves, answer.saves_bytes

    @property
    def host_pid(self) -> int:
        """The process, 0 if there is none."""
        runs = self.state in (StoreState.OPENING, StoreState.UP)
        return self.link.host_pid if self.link is not None and runs else 0

    @property
    def busy(self) -> bool:
        """Whether an answer is owed."""
        return bool(self._asked) or self.state is StoreState.OPENING

    # --- epochs -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin an epoch, if there is anything for a store to do."""
        if self.link is None or not self.disk.state_dir:
            return
        self.epoch += 1
        self.state = StoreState.OPENING
        self._watch.loading()
        try:
            self.link.start()
            disk, abi = self.disk, (*base.ABI, wire.schema(), self.epoch)
            self.link.send(base.Open(*abi, disk.state_dir, disk.keys_dir, disk.swap_bytes))
        except LinkDown as down:
            self._end_epoch(str(down))

    def _end_epoch(self, why: str) -> None:
        log.error("store: epoch %d ended: %s", self.epoch, why)
        self.note, self.fallen = why, ""
        self.on_death()
        asked, self._asked = self._asked, {}
        again = self._watch.died()
        self._watch.done()
        if again:
            self.start()
        else:
            self._give_up(why)
        _tell_all(asked, f"the store host died: {why}")

    def _give_up(self, why: str, hint: str = "") -> None:
        """Try no more: FAILED until the kernel is started again."""
        assert self.link is not None
        self.link.kill()
        self._watch.done()
        self.state, self.note, self.hint = StoreState.FAILED, why, hint
        self.on_death()
        log.error("store failed: %s%s", why, f"; {hint}" if hint else "")
        asked, self._asked = self._asked, {}
        _tell_all(asked, f"the store has failed: {why}", hint)

    def deadline(self) -> float | None:
        """When to look at `expire` again; None while nothing is owed."""
        return self._watch.deadline

    def expire(self, now: float) -> None:
        """Replace a store that is past its deadline."""
        why = self._watch.overdue(now)
        if why:
            assert self.link is not None
            self.link.kill()
            self._end_epoch(why)

    # --- answers ------------------------------------------------------------------------------

    def collect(self) -> None:
        """Hand out what the store has answered."""
        if self.fallen:
            self._end_epoch(self.fallen)
        for _ in range(MAX_MESSAGES):
            if self.link is None or self.state in (StoreState.OFF, StoreState.FAILED):
                return
            try:
                message = self.link.receive()
            except LinkDown as down:
                self._end_epoch(str(down))
                return
            if message is None:
                return
            self._watch.heard()
            self._take(message)

    def _take(self, message: Any) -> None:
        if isinstance(message, base.Heartbeat):
            return
        if isinstance(message, base.Opened) and self.state is StoreState.OPENING:
            self._open(message)
            return
        if isinstance(message, base.Fault) and message.job == 0:
            self._give_up(message.message, message.hint)
            return
        waiting = self._asked.get(getattr(message, "job", 0))
        if not waiting:
            assert self.link is not None
            self.link.kill()
            self._end_epoch(f"it sent {type(message).__name__}, which nobody had asked for")
            return
        answered = waiting.popleft()
        if not waiting:
            del self._asked[message.job]
        if self._asked:
            self._watch.stepping()
        else:
            self._watch.done()
        answered(message)

    def _open(self, opened: base.Opened) -> None:
        if (opened.major, opened.schema) != (base.ABI[0], wire.schema()):
            self._give_up("the store speaks another ABI", "reinstall llmos-kernel")
            return
        self.state, self.opened = StoreState.UP, opened
        self.num_saves, self.saves_bytes = opened.num_saves, opened.saves_bytes
        self.note = next(iter(opened.notes), self.note)
        self._watch.done()
        log.info(
            "store: up in epoch %d, %d saves, %d damaged, %d bytes of swap",
            self.epoch, opened.num_saves, opened.num_damaged, opened.swap_bytes,
        )  # fmt: skip
        self.on_up()
        for note in opened.notes:
            log.warning("store: %s", note)


def _tell_all(asked: dict[int, deque[Answered]], why: str, hint: str = "") -> None:
    """Answer what was asked with faults: no answer will come."""
    for job, waiting in asked.items():
        for answered in waiting:
            answered(base.Fault(job, base.FaultKind.IO, why, hint))


def error_of(fault: base.Fault) -> KernelError:
    """Return what a client is told of a fault."""
    details = {"needed": fault.needed, "available": fault.available} if fault.needed else {}
    return ERRORS.get(base.FaultKind(fault.kind), EIO)(fault.message, fault.hint, details)
