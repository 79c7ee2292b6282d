"""Session: one connection of one program, seen from the kernel.

It keeps the promise that every accepted call ends in exactly one terminal event: `accept` opens a
call, `finish` or `fail` ends it, anything else panics. Events gather here during a loop turn and
leave in one message. A client that does not read is not dropped at once: its events wait, its
requests are held, and after a lease the session is closed.

Results of calls that are not idempotent are kept (the last 1,024), so that a call sent twice runs
once.
"""

from array import array
from collections import OrderedDict
from typing import Any

from kernel.panic import check
from kernel.task import Task
from syscalls import abi
from syscalls.abi import Event
from syscalls.errors import KernelError
from syscalls.wire import pack_events, pack_ids


class Session:
    """One connection."""

    def __init__(self, route: bytes, uid: int, pid: int) -> None:
        self.route = route  # the transport's name for the connection
        self.uid = uid
        self.host_pid = pid
        self.task: Task | None = None
        self.ended = ""  # why the session has no task any more
        self.over = False  # its task has exited: nothing more is to come
        self.connection = 0
        self.last_call = 0
        self.last_handle = -1
        self.last_failed = False  # of the call before: for CHAIN
        self.strikes = 0
        self.stalled_since: float | None = None  # the client does not read
        self.open: dict[int, abi.Call] = {}
        self.infers: dict[int, Any] = {}  # call -> Request
        self._kept: OrderedDict[int, list[Any]] = OrderedDict()
        self._events: list[Any] = []
        self._ids: array[int] = array("i")
        self.outbox: list[list[bytes]] = []  # messages that the transport has not taken yet

    # --- calls --------------------------------------------------------------------------------

    def accept(self, call: int, row: abi.Call) -> None:
        """Open a call."""
        self.open[call] = row
        self.last_call = max(self.last_call, call)

    def finish(self, call: int, result: tuple[Any, ...], ids: "array[int] | None" = None) -> None:
        """End a call with its result."""
        self._end(call, [Event.FIN, call, tuple(result), len(ids) if ids else 0])
        if ids:
            self._ids.extend(ids)
        self.last_failed = False

    def fail(self, call: int, error: KernelError) -> None:
        """End a call with an error."""
        event = [Event.ERR, call, int(error.errno), error.message, error.hint, dict(error.details)]
        self._end(call, event)
        self.last_failed = True

    def _end(self, call: int, event: list[Any]) -> None:
        row = self.open.pop(call, None)
        check(row is not None, f"call {call} of {self.host_pid} ended twice, or was never accepted")
        assert row is not None
        self.infers.pop(call, None)
        if not row.idempotent:
            self._kept[call] = event
            if len(self._kept) > abi.KEPT_RESULTS:
                self._kept.popitem(last=False)
        self._events.append(event)

    def kept(self, call: int) -> bool:
        """Send the result of a call that has ended again, if it is kept."""
        event = self._kept.get(call)
        if event is not None:
            self._events.append(event)
        return event is not None

    # --- events -------------------------------------------------------------------------------

    def emit(self, *event: Any) -> None:
        """Send an event that ends no call."""
        self._events.append(list(event))

    def refuse(self, call: int, error: KernelError) -> None:
        """Answer a message that is no acceptable call."""
        self.emit(Event.ERR, call, int(error.errno), error.message, error.hint, dict(error.details))

    def seal(self) -> None:
        """Make one message of the events gathered in this turn."""
        if not self._events:
            return
        message = [pack_events(self._events)]
        if self._ids:
            message.append(pack_ids(self._ids))
        self.outbox.append(message)
        self._events, self._ids = [], array("i")
