"""Session: one connection of one program, seen from the kernel.

It keeps the promise that every accepted call ends in exactly one terminal event: `accept` opens a
call, `finish` or `fail` ends it, anything else panics. Events gather here during a loop turn and
leave in one message, or in a few if they are many. A client that does not read is not dropped at
once: its events wait, its requests are held, new calls are refused when too much is `unread`, and
after a lease the session is closed.

Results of calls that are not idempotent are kept (the last 1,024, and 1 MiB of them), so that a
call sent twice runs once.
"""

from array import array
from collections import OrderedDict, deque
from typing import Any

from kernel.panic import check
from kernel.task import Task
from syscalls import abi
from syscalls.abi import Event
from syscalls.errors import KernelError
from syscalls.wire import join_events, pack_event, pack_ids

MAX_REPLY = 1 << 20
"""Bytes of events and ids after which a message is full; a single event may be larger."""
KEPT_BYTES = 1 << 20
"""Of results that are kept: fewer of them, if they are long."""
KEPT_FAILURES = 4096
"""Failed calls that are known to calls chained to them, which may wait in a queue."""


class Session:
    """One connection."""

    def __init__(self, route: bytes, uid: int, pid: int, speaking: "dict[Session, None]") -> None:
        """Put itself among those `speaking` whenever it has something for its program."""
        self._speaking = speaking
        self.route = route  # the transport's name for the connection
        self.uid = uid
        self.host_pid = pid
        self.task: Task | None = None
        self.ended = ""  # why the session has no task any more
        self.over = False  # its task has exited: nothing more is to come
        self.connection = 0
        self.last_call = 0
        self.last_handle = -1
        self.strikes = 0
        self.stalled_since: float | None = None  # nothing was taken of what waits
        self.held = False  # so much waits that its infers may not run
        self.open: dict[int, abi.Call] = {}
        self.infers: dict[int, Any] = {}  # call -> Request
        self.outbox: deque[list[bytes]] = deque()  # messages that the transport has not taken yet
        self._before: dict[int, int] = {}  # open call -> the call that came before it
        self._failed: OrderedDict[int, None] = OrderedDict()  # the last calls that have
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._events: list[bytes] = []  # packed, of the message to come
        self._ids: array[int] = array("i")
        self._size = 0
        self._waiting = 0  # bytes in the outbox

    # --- calls --------------------------------------------------------------------------------

    def accept(self, call: int, row: abi.Call) -> None:
        """Open a call."""
        self.open[call] = row
        if call > self.last_call:
            self._before[call], self.last_call = self.last_call, call

    def broken(self, call: int) -> bool:
        """See whether the call before an open one has failed: then CHAIN does not run it."""
        return self._before.get(call) in self._failed

    def finish(self, call: int, result: tuple[Any, ...], ids: "array[int] | None" = None) -> None:
        """End a call with its result."""
        ids = ids or array("i")
        self._end(call, pack_event([Event.FIN, call, tuple(result), len(ids)]), ids)

    def fail(self, call: int, error: KernelError) -> None:
        """End a call with an error."""
        self._end(call, _error(call, error), array("i"))
        self._note_failure(call)

    def _note_failure(self, call: int) -> None:
        self._failed[call] = None
        if len(self._failed) > KEPT_FAILURES:
            self._failed.popitem(last=False)

    def _end(self, call: int, event: bytes, ids: "array[int]") -> None:
        row = self.open.pop(call, None)
        check(row is not None, f"call {call} of {self.host_pid} ended twice, or was never accepted")
        assert row is not None
        self.infers.pop(call, None)
        self._before.pop(call, None)
        if not row.idempotent:
            self._keep(call, event)
        self._add(event, ids)

    def _keep(self, call: int, event: bytes) -> None:
        self._kept[call] = event
        self._kept_bytes += len(event)
        while len(self._kept) > abi.KEPT_RESULTS or self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    def kept(self, call: int) -> bool:
        """Send the result of a call that has ended again, if it is kept."""
        event = self._kept.get(call)
        if event is not None:
            self._add(event)
        return event is not None

    # --- events -------------------------------------------------------------------------------

    def emit(self, *event: Any) -> None:
        """Send an event that ends no call."""
        self._add(pack_event(event))

    def refuse(self, call: int, error: KernelError) -> None:
        """Answer a message that is no acceptable call."""
        self._add(_error(call, error))

    def skip(self, call: int) -> None:
        """Note that a message was no call (0: not even its id), and ends what is chained to it."""
        self.last_call = max(self.last_call, call)
        self._note_failure(call or self.last_call)

    def _add(self, event: bytes, ids: "array[int] | tuple[()]" = ()) -> None:
        size = len(event) + 4 * len(ids)
        self._speaking[self] = None
        if len(self._events) == abi.MAX_EVENTS or self._size + size > MAX_REPLY:
            self.seal()
        self._events.append(event)
        self._ids.extend(ids)
        self._size += size

    def seal(self) -> None:
        """Make a message of the events gathered since the last one."""
        if not self._events:
            return
        message = [join_events(self._events)]
        if self._ids:
            message.append(pack_ids(self._ids))
        self.outbox.append(message)
        self._waiting += sum(map(len, message))
        self._events, self._ids, self._size = [], array("i"), 0

    def sent(self) -> None:
        """Note that the transport has taken the oldest message."""
        self._waiting -= sum(map(len, self.outbox.popleft()))

    @property
    def unread(self) -> int:
        """Bytes that the transport has not taken yet."""
        return self._waiting + self._size


def _error(call: int, error: KernelError) -> bytes:
    errno, details = int(error.errno), dict(error.details)
    return pack_event([Event.ERR, call, errno, error.message, error.hint, details])
