"""Books: what users have used and what limits them, kept over restarts in the store's catalogue.

They are read when the store is up for the first time, written again at most every WRITE_S seconds
if anything was charged, and at the end of a kernel that is stopped. So a kernel that is killed
loses the charges of its last seconds, and no more. A kernel without a state directory keeps none.

What was used before this kernel began is `before` of an account: limits and tables add it, and the
counters of this kernel (kernel/ledger.py) still add up to what this kernel has done. Tasks that
come back with a kernel bring theirs along (kernel/record.py).
"""

import logging
from collections.abc import Generator
from typing import Annotated, Any, NamedTuple

import msgpack

from drivers.store import base
from kernel import journal, limits
from kernel.account import Account, Kind
from kernel.errand import Errand
from kernel.handler import Done
from kernel.journal import Counted, Limited
from kernel.storehost import StoreState
from kernel.system import System
from kernel.usage import Counters
from syscalls.abi import U32, Int, Title
from syscalls.errors import ENOENT, KernelError

log = logging.getLogger(__name__)

WRITE_S = 10.0
FORM = 1
MAX_BYTES = 1 << 20
NAME = "\x02ledger"
"""In the store, where no client's name begins so."""

Steps = Generator[Any, Any, None]


class Head(NamedTuple):
    """Comes first."""

    form: U32
    num_entries: Annotated[int, Int(0, 1 << 16)]


class Entry(NamedTuple):
    """A user, or a group of one; or what the kernel itself had to do again.

    A group is there again only with a kernel that brings its tasks back.
    """

    uid: U32
    system: bool
    counters: Counted
    limits: Limited
    group: Title = ""


# --- the loop's side --------------------------------------------------------------------------


def go_on(k: System) -> None:
    """Read what there is, once; write what was charged, from time to time."""
    b = k.books
    if b.working or not _possible(k):
        return
    if not b.read:
        _begin(k, _read(k))
    elif _dirty(k) and k.clock() >= b.due:
        _begin(k, write(k))


def deadline(k: System) -> float | None:
    """Return when something is to be written."""
    b = k.books
    return b.due if b.read and not b.working and _possible(k) and _dirty(k) else None


def closed(k: System) -> bool:
    """Whether all is written, of a kernel that stops; the last write begins when this is asked."""
    b = k.books
    if not b.closing and not b.working and b.read and _possible(k):
        b.closing = True
        _begin(k, write(k))
    return not b.working


def _possible(k: System) -> bool:
    return bool(k.config.state_dir) and k.store.state is StoreState.UP


def _dirty(k: System) -> bool:
    return k.books.written != _marks(k)


def _marks(k: System) -> tuple[int, ...]:
    """Return what changes with anything that is worth a write."""
    table = k.tasks.accounts
    usage = table.root.usage
    return usage.requests, usage.input_ids, usage.entries, usage.output_ids, table.changes


def _begin(k: System, steps: Steps) -> None:
    k.books.working = True
    k.errands.beside(_errand(k, steps))


def _errand(k: System, steps: Steps) -> Errand:
    try:
        yield from steps
    except KernelError as error:
        log.error("the ledger of users is not kept: %s", error.message)
    k.books.read = True
    k.books.working = False
    k.books.due = k.clock() + WRITE_S
    return Done(())


# --- reading and writing ----------------------------------------------------------------------


def write(k: System) -> Steps:
    """Have the store write the books as they are now."""
    k.books.written = _marks(k)
    table = k.tasks.accounts
    rows = [_entry(account) for account in (table.system, *table.owners(), *table.groups())]
    raw = bytearray(journal.pack(Head(FORM, len(rows))))
    for row in rows:
        raw += journal.pack(row)
    ids = journal.padded(raw)
    number, length = k.store.new_job(), len(ids) // 4
    yield base.BeginSave(number, k.uid, NAME, base.SaveMeta("", b"", "", (), 0, 0, length, 0, b""))
    for start in range(0, length, base.MAX_IDS):
        yield base.AddIds(number, start, ids[4 * start : 4 * (start + base.MAX_IDS)])
    yield base.CommitSave(number)


def _entry(account: Account) -> Entry:
    counters = tuple(limits.total(account))
    group = account.name if account.kind is Kind.GROUP else ""
    return Entry(account.uid, account.kind is Kind.SYSTEM, counters, limits.pack(account), group)


def _read(k: System) -> Steps:
    number = k.store.new_job()
    try:
        found: base.Found = yield base.OpenSave(number, k.uid, NAME, 0)
    except ENOENT:
        return
    raw, length = b"", min(found.meta.length, MAX_BYTES // 4)
    for start in range(0, length, base.MAX_IDS):
        part: base.Ids = yield base.ReadIds(number, start, min(base.MAX_IDS, length - start))
        raw += part.ids
    yield base.CloseSave(number)
    try:
        entries = _rows(raw)
    except journal.Damaged as wrong:
        log.error("the ledger of users is damaged (%s): it begins anew", wrong)
        return
    if found.state == base.SaveState.STALE:
        log.warning("the ledger of users is an old one, which was put back")
    for entry in entries:
        if entry.group:
            k.books.groups[entry.uid, entry.group] = entry
        else:
            _take(k, entry)
    take_groups(k)


def _rows(raw: bytes) -> list[Entry]:
    """Return the checked rows of what was read; Damaged."""
    unpacker = msgpack.Unpacker(
        raw=False, strict_map_key=True, max_buffer_size=MAX_BYTES, max_str_len=64, max_bin_len=0,
        max_array_len=64, max_map_len=0, max_ext_len=0,
    )  # fmt: skip
    unpacker.feed(raw)
    head = _next(unpacker, Head)
    if head.form != FORM:
        raise journal.Damaged(f"it is of form {head.form}, this version reads {FORM}")
    return [_next(unpacker, Entry) for _ in range(head.num_entries)]


def _next(unpacker: Any, kind: Any) -> Any:
    try:
        values = unpacker.unpack()
    except (msgpack.OutOfData, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise journal.Damaged(f"it cannot be decoded: {type(error).__name__}") from None
    if type(values) is not list:
        raise journal.Damaged("a row of it is no array")
    return journal.row_of(kind, values)


def take_groups(k: System) -> None:
    """Let groups that are back begin where they were: books and tasks come in any order."""
    table = k.tasks.accounts
    for (uid, name), entry in list(k.books.groups.items()):
        group = table.find_group(uid, name)
        if group is not None:
            del k.books.groups[uid, name]
            group.before = Counters(*entry.counters[: len(Counters._fields)])
            limits.unpack(group, entry.limits)


def _take(k: System, entry: Entry) -> None:
    """Let an account begin where it was; limits that were set meanwhile stand."""
    table = k.tasks.accounts
    account = table.system if entry.system else table.owner(entry.uid)
    account.before = Counters(*entry.counters[: len(Counters._fields)])
    table.root.before = table.root.before.plus(account.before)
    if account.limits is None:
        limits.unpack(account, entry.limits)
