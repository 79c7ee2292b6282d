"""Journal: the record of a kernel that has stopped, from which the next one goes on.

It is a save of the kernel's own user under a name that no client can say: encryption, replacement
as a whole and the detection of an old one that is put back are the store's. Its "ids" are the bytes
of the record, filled up with zeros to whole int32:

    Head, then Head.num_models ModelEntry, num_tasks TaskEntry, num_contexts CtxEntry, each an array

Each context is a save of its own, its owner's. The record is written after the last of these and
removed before the first of them (as `restored`, when it only says which of them are to go), so
whatever a crash leaves is one whole state or the other.

Reading believes nothing: sizes are checked before anything is decoded, fields as those of a call
are (syscalls/checks.py), and what refers to something refers to what was read before.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import msgpack

from kernel.task import INIT
from syscalls.abi import (
    U32,
    U64,
    Handle,
    Int,
    Ints,
    Length,
    ModelName,
    Name,
    Nice,
    Pairs,
    Path,
    Pid,
    Real,
    Status,
    Text,
    Ticket,
    Title,
)  # fmt: skip
from syscalls.errors import KernelError
from syscalls.wire import check_row

FORM = 1
MAX_BYTES = 64 << 20
"""Of a record: what a save can have as ids."""
MAX_ROW = 64 * 1024
RECORD = "\x02record"
_KERNELS, _SHOWN = "\x01", "hibernated/"
"""What the names of contexts begin with: in the store, where no client's begins so, and shown."""

Mark = Annotated[str, Text(16, re.compile(r"[0-9a-f]{16}"))]
Count = Annotated[int, Int(0, 1 << 24)]
_LEVEL = r"(?:@[A-Za-z0-9._-]{1,64}|[0-9]{1,15}):(?:-20|-?1?[0-9])/"
Place = Annotated[str, Text(1024, re.compile(f"(?:{_LEVEL}){{0,12}}"))]
Seconds = Annotated[float, Real(0.0, 1e12)]
Counted = Annotated[tuple[int, ...], Ints(32, 0, 2**63 - 1)]
"""Counters of an account (kernel/usage.py)."""
Limited = Annotated[tuple[tuple[int, float], ...], Pairs(64, Int(0, 63), Real(0.0, 1e15))]
"""Limits of an account (kernel/limits.py)."""


class Damaged(Exception):
    """This is no record that can be used; the text says why."""


class Head(NamedTuple):
    """Comes first."""

    form: U32
    mark: Mark  # of this record, in the names of its saves
    last_pid: Pid
    restored: bool  # its contexts are back: the saves named here are only to be removed
    num_models: Count
    num_tasks: Count
    num_contexts: Count


class ModelEntry(NamedTuple):
    """A model that contexts need, as it was loaded."""

    name: ModelName
    path: Path
    dtype: Title
    block_size: Length
    num_blocks: Length
    kv_bytes: U64
    max_ctx: Length
    deterministic: bool
    threads: Length
    kv_dtype: Title
    overcommit: Seconds


class TaskEntry(NamedTuple):
    """A task; a zombie has a status and a reason."""

    pid: Pid
    parent: Pid
    uid: U32
    name: Name
    stopped: bool
    zombie: bool
    token: Ticket  # its digest
    connection: Annotated[int, Int(0, 255)]  # the last one that it had
    prompt_tokens: U64
    cached_tokens: U64
    output_tokens: U64
    age_s: Seconds
    status: Status
    reason: Title
    nice: Nice = 0
    place: Place | None = None  # of its account (kernel/standing.py); nil: it was not told
    signals: Annotated[tuple[int, ...], Ints(64, 1, 64)] = ()  # that its program has not heard of
    counters: Counted = ()  # what it and those below it have used (kernel/usage.py)
    limits: Limited = ()  # likewise: resource and whether it is the hard one; how much


class CtxEntry(NamedTuple):
    """A context; one without ids has no save."""

    pid: Pid
    handle: Handle
    uid: U32  # of its task: whose save it is
    name: Title
    model: ModelName
    length: Length
    pinned: bool
    demoted: bool
    retain_s: Seconds  # that are left


Entry = ModelEntry | TaskEntry | CtxEntry


# --- names ------------------------------------------------------------------------------------


def save_name(mark: str, pid: int, handle: int) -> str:
    """Return the name in the store of a context's save."""
    return f"{_KERNELS}{mark}/{pid}/{handle}"


def shown(name: str) -> str:
    """Return a name of the store as clients see it; empty: they do not."""
    if name.startswith(_KERNELS):
        return _SHOWN + name.removeprefix(_KERNELS)
    return name if name >= " " else ""


def stored(name: str) -> str:
    """Return the name in the store of what a client calls so."""
    return _KERNELS + name.removeprefix(_SHOWN) if name.startswith(_SHOWN) else name


def is_kernels(name: str) -> bool:
    """Whether a client's name is of the kernel's saves, which nobody else makes."""
    return name.startswith(_SHOWN)


# --- writing ----------------------------------------------------------------------------------


def pack(row: Any) -> bytes:
    """Return one row as bytes."""
    packed: bytes = msgpack.packb(list(row), use_bin_type=True)
    return packed


def padded(raw: bytearray) -> bytes:
    """Return the bytes of all rows as those of whole ids."""
    return bytes(raw) + bytes(-len(raw) % 4)


def checked(row: Any) -> Any:
    """Return a row that its reader will take; Damaged."""
    return row_of(type(row), list(row))


# --- reading ----------------------------------------------------------------------------------


class Reader:
    """Takes the bytes of a record in parts, and gives its rows as they are complete."""

    def __init__(self, size: int, owners: tuple[int, ...]) -> None:
        """Read a record of `size` bytes, whose tasks are of these uids; Damaged."""
        if not 0 < size <= MAX_BYTES:
            raise Damaged(f"it has {size} bytes, the limit is {MAX_BYTES}")
        self.head: Head | None = None
        self._owners = owners
        self._left = size  # bytes to come
        self._kinds: list[tuple[Any, int]] = []  # rows to come
        self._users = {INIT: owners[0]}  # by pid
        self._models: set[str] = set()
        self._handles: set[tuple[int, int]] = set()
        self._unpacker = msgpack.Unpacker(
            raw=False, strict_map_key=True, max_buffer_size=size, max_str_len=MAX_ROW,
            max_bin_len=64, max_array_len=64, max_map_len=0, max_ext_len=0,
        )  # fmt: skip

    def feed(self, part: bytes) -> Iterator[Entry]:
        """Take the next part; give the rows that are complete now, Head excepted. Damaged."""
        self._left -= len(part)
        if self._left < 0:
            raise Damaged("it is longer than it says")
        self._unpacker.feed(part)
        while (values := self._next()) is not None:
            if self.head is None:
                self._begin(values)
            else:
                yield self._entry(values)

    def end(self) -> Head:
        """Return the head if nothing is missing; Damaged."""
        if self._left or self.head is None or self._kinds:
            raise Damaged(f"it ends after {self._unpacker.tell()} bytes, before its last row")
        return self.head

    def _next(self) -> list[Any] | None:
        if self.head is not None and not self._kinds:
            return None  # what follows is filling
        try:
            values = self._unpacker.unpack()
        except msgpack.OutOfData:
            return None
        except (ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
            raise Damaged(f"it cannot be decoded: {type(error).__name__}") from None
        if type(values) is not list:
            raise Damaged("a row of it is no array")
        return values

    def _begin(self, values: list[Any]) -> None:
        if values[:1] != [FORM]:
            newer = type(values[0]) is int if values else False
            what = f"it is of form {values[0]}, this version reads {FORM}" if newer else "no head"
            raise Damaged(what)
        head = self.head = row_of(Head, values)
        numbers = (head.num_models, head.num_tasks, head.num_contexts)
        kinds = zip((ModelEntry, TaskEntry, CtxEntry), numbers, strict=True)
        self._kinds = [(kind, number) for kind, number in kinds if number]

    def _entry(self, values: list[Any]) -> Entry:
        kind, number = self._kinds[0]
        self._kinds[0] = kind, number - 1
        if number == 1:
            self._kinds.pop(0)
        entry: Entry = row_of(kind, values)
        wrong = self._wrong(entry)
        if wrong:
            raise Damaged(wrong)
        return entry

    def _wrong(self, entry: Entry) -> str:
        """Say what is wrong with how an entry fits those before it, and note it."""
        assert self.head is not None
        if isinstance(entry, ModelEntry):
            again = entry.name in self._models
            self._models.add(entry.name)
            return "it has a model twice" if again else ""
        if isinstance(entry, TaskEntry):
            if entry.pid in self._users or not INIT < entry.pid <= self.head.last_pid:
                return f"task {entry.pid} is there twice, or above {self.head.last_pid}"
            known = entry.parent in self._users and entry.uid in self._owners
            self._users[entry.pid] = entry.uid
            return "" if known else f"task {entry.pid} has a parent or user that is not there"
        key = entry.pid, entry.handle
        user = entry.uid if self.head.restored else self._users.get(entry.pid)
        if key in self._handles or entry.uid not in self._owners or user != entry.uid:
            return f"context {entry.handle} of task {entry.pid} is there twice, or not that task's"
        self._handles.add(key)
        return ""


def row_of(kind: Any, values: list[Any]) -> Any:
    """Return a row of some kind if the values are as its fields declare; Damaged."""
    try:
        return check_row(kind.__name__, kind, values)
    except KernelError as error:
        raise Damaged(error.message) from None
