"""One session with the kernel, without any I/O: bytes out, bytes in, calls in between.

A `Session` numbers calls (u64 from 1, never reused), packs their requests and routes the events
of replies to the `Pending` call that they are about:

    request() -> Pending, frames to send        receive(frames) -> the Pendings that have news

    in flight --TOKEN PROGRESS REWIND--> in flight --FIN | ERR--> done          (once, for good)

Invariants: every call ends exactly once, by its FIN, by its ERR or by `fail_all`; an event for a
call that was never made or has ended is EPROTO. FIN events take their ids from frame 2 in the
order in which they stand, and use it up. Events about the session itself (call 0) wait in
`events`; an error among them ends the session, because a call may be among what it is about.

It does not decide when to send, wait or retry; `client` and `aio` do.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from syscalls import abi, wire
from syscalls.abi import Event
from syscalls.errors import E2BIG, EAGAIN, ECONNRESET, EINVAL, EPROTO, KernelError, from_wire

_MAX_HANDLES = 2**24 - 1


class Token(NamedTuple):
    """Ids that an infer sampled, each with its logprob and the best alternatives, if asked for."""

    ids: list[int]
    logprobs: list[float] | None
    top: list[list[tuple[int, float]]] | None


class Progress(NamedTuple):
    """How far a long call is."""

    phase: str
    done: int
    total: int


class Rewind(NamedTuple):
    """A power cut lost what a durable context held beyond `length`; its tokens come again."""

    length: int


class Signalled(NamedTuple):
    """The task got a signal that its program may act on."""

    signal: int


class Exited(NamedTuple):
    """A child of the task ended."""

    pid: int
    status: int
    reason: str


CallEvent = Token | Progress | Rewind
SessionEvent = Signalled | Exited | KernelError


class Pending:
    """One call in flight. `events` is read from the left by whoever made the call."""

    __slots__ = ("_error", "_result", "call", "done", "events", "ids", "row")

    def __init__(self, call: int, row: abi.Call) -> None:
        self.call = call
        self.row = row
        self.events: deque[CallEvent] = deque()
        self.done = False
        self.ids: array[int] = array("i")
        self._result: Any = None
        self._error: KernelError | None = None

    def value(self) -> Any:
        """Return the result row of a call that is done, or raise its error."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._result

    def finish(self, result: Any, ids: "array[int]") -> None:
        self._result, self.ids, self.done = result, ids, True

    def fail(self, error: KernelError) -> None:
        self._error, self.done = error, True


class Session:
    """The calls of one connection."""

    def __init__(self) -> None:
        self.events: deque[SessionEvent] = deque()
        self.lost: KernelError | None = None
        self._pending: dict[int, Pending] = {}
        self._next_call = 1
        self._connection = 0
        self._handles = 0

    @property
    def in_flight(self) -> int:
        """Calls that have not ended."""
        return len(self._pending)

    # --- out ----------------------------------------------------------------------------------

    def request(
        self,
        name: str,
        *args: Any,
        ids: "Sequence[int] | array[int] | None" = None,
        flags: int = 0,
    ) -> tuple[Pending, list[bytes]]:
        """Return a new call and the frames that make it; raise if it cannot be sent."""
        if self.lost is not None:
            raise self.lost.with_traceback(None)
        row = abi.BY_NAME.get(name)
        if row is None:
            raise EINVAL(f"there is no system call {name!r}", "see docs/syscalls.md")
        frames = _pack(row, self._next_call, flags, args)
        if ids is not None:
            frames.append(_pack_ids(row, ids))
        pending = self._pending[self._next_call] = Pending(self._next_call, row)
        self._next_call += 1
        return pending, frames

    def bind(self, connection: int) -> None:
        """Take the connection number from the hello result: the high byte of every handle."""
        if not 0 <= connection <= 255:
            raise EPROTO(f"the kernel gave connection {connection}, which is not in 0..255")
        self._connection = connection

    def handle(self) -> int:
        """Return a context handle that this connection has not used before."""
        if self._handles >= _MAX_HANDLES:
            raise EAGAIN(
                f"this connection has used all its {_MAX_HANDLES} context handles", "connect again"
            )
        self._handles += 1
        return self._connection << 24 | self._handles

    # --- in -----------------------------------------------------------------------------------

    def receive(self, frames: Sequence[bytes]) -> list[Pending]:
        """Route the events of one reply; return the calls that have news, in order."""
        if not 1 <= len(frames) <= 2:
            raise EPROTO(f"a reply has 1 or 2 frames, got {len(frames)}")
        events = wire.unpack_events(frames[0])
        ids = _unpack_ids(frames[1]) if len(frames) == 2 else array("i")
        news: list[Pending] = []
        taken = 0
        for event in events:
            about, count = self._event(event, ids, taken)
            taken += count
            news += about
        if taken != len(ids):
            raise EPROTO(f"frame 2 has {len(ids)} ids, the results take {taken}")
        return news

    def fail_all(self, error: KernelError | None = None) -> list[Pending]:
        """End the session and every call in flight with `error`; return those calls."""
        self.lost = self.lost or error or ECONNRESET("the kernel went away", "llmos status")
        failed = list(self._pending.values())
        self._pending.clear()
        for pending in failed:
            pending.fail(self.lost)
        return failed

    def _event(self, event: Any, ids: "array[int]", at: int) -> tuple[list[Pending], int]:
        if not (isinstance(event, list) and len(event) >= 2):
            raise EPROTO("an event is not [kind, call, ...]")
        kind, call, *rest = event
        if type(kind) is not int or type(call) is not int:
            raise EPROTO("an event's kind and call id are whole numbers")
        try:
            if call == 0:
                return self._session_event(kind, rest), 0
            pending, count = self._call_event(kind, call, rest, ids, at)
            return [pending], count
        except (ValueError, TypeError, OverflowError):
            raise EPROTO(f"event {kind} of call {call} is not of its form") from None

    def _session_event(self, kind: int, rest: list[Any]) -> list[Pending]:
        if kind == Event.ERR:
            error = _error(rest)
            self.events.append(error)
            return self.fail_all(error)
        if kind == Event.SIGNAL:
            (signal,) = rest[:1]
            self.events.append(Signalled(signal))
        elif kind == Event.EXIT:
            self.events.append(Exited(*rest[:3]))
        return []  # other kinds are a newer kernel's; nobody waits for them

    def _call_event(
        self, kind: int, call: int, rest: list[Any], ids: "array[int]", at: int
    ) -> tuple[Pending, int]:
        pending = self._pending.get(call)
        if pending is None:
            what = "has ended already" if 0 < call < self._next_call else "was never made"
            raise EPROTO(f"the kernel sent event {kind} for call {call}, which {what}")
        if kind == Event.FIN:
            return pending, self._fin(pending, rest, ids, at)
        if kind == Event.ERR:
            pending.fail(_error(rest))
            del self._pending[call]
        elif kind == Event.TOKEN:
            pending.events.append(_token(rest))
        elif kind == Event.PROGRESS:
            pending.events.append(Progress(*rest[:3]))
        elif kind == Event.REWIND:
            pending.events.append(Rewind(*rest[:1]))
        return pending, 0

    def _fin(self, pending: Pending, rest: list[Any], ids: "array[int]", at: int) -> int:
        values, count = rest[:2]
        if type(count) is not int or count < 0 or at + count > len(ids):
            raise EPROTO(
                f"call {pending.call} ends with {count} ids at {at}, frame 2 has {len(ids)}"
            )
        pending.finish(make_row(pending.row.result, values), ids[at : at + count])
        del self._pending[pending.call]
        return count


# --- rows and frames ------------------------------------------------------------------------------


def make_row(row: Any, values: Any) -> Any:
    """Return a result row; fields that a newer kernel has added at the end are left out."""
    if row is None:
        return values
    if not isinstance(values, list):
        raise EPROTO(f"a {row.__name__} is not an array")
    required = len(row._fields) - len(row._field_defaults)
    if len(values) < required:
        raise EPROTO(f"a {row.__name__} has {required} fields, got {len(values)}")
    return row(*values[: len(row._fields)])


def _pack(row: abi.Call, call: int, flags: int, args: tuple[Any, ...]) -> list[bytes]:
    try:
        said = args if row.args is None else _said(row.args(*args))
        frame = wire.pack_request(row.number, call, flags, said)
    except (TypeError, ValueError, OverflowError) as error:
        raise EINVAL(f"{row.name}: the arguments cannot be sent: {error}") from None
    if len(frame) > abi.MAX_FRAME:
        raise E2BIG(
            f"{row.name}: the arguments take {len(frame)} bytes, the limit is {abi.MAX_FRAME}",
            details={"limit": abi.MAX_FRAME},
        )
    return [frame]


def _said(args: Any) -> tuple[Any, ...]:
    """Return arguments up to the last one that differs from its default."""
    values, defaults = list(args), list(args._field_defaults.values())
    while defaults and type(values[-1]) is type(defaults[-1]) and values[-1] == defaults[-1]:
        values.pop()
        defaults.pop()
    return tuple(values)


def _pack_ids(row: abi.Call, ids: "Sequence[int] | array[int]") -> bytes:
    if len(ids) > abi.MAX_IDS:
        raise E2BIG(
            f"{row.name}: {len(ids)} ids in one call, the limit is {abi.MAX_IDS}",
            "send them in several calls",
            {"limit": abi.MAX_IDS},
        )
    return wire.pack_ids(ids)


def _unpack_ids(frame: bytes) -> "array[int]":
    if len(frame) % 4:
        raise EPROTO(f"frame 2 of the reply has {len(frame)} bytes, not a multiple of 4")
    return wire.unpack_ids(frame)


def _error(rest: list[Any]) -> KernelError:
    errno, message, hint, details = rest[:4]
    return from_wire(errno, str(message), str(hint), dict(details))


def _token(rest: list[Any]) -> Token:
    ids, logprobs, top = (*rest, None, None)[:3]
    if top is not None:
        top = [[(int(id), float(logprob)) for id, logprob in best] for best in top]
    return Token(list(ids), None if logprobs is None else list(logprobs), top)
