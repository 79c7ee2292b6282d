"""Record: what the kernel before has left (kernel/journal.py), read and taken in.

The tasks are made here, and models loaded that contexts need; contexts are expected, and come later
(kernel/way_up.py). A record that cannot be read stays where it is, and the kernel begins without.
"""

import logging
from collections.abc import Generator
from typing import Any, NamedTuple

from drivers.store import base
from kernel import journal
from kernel.answer import ModelSpec
from kernel.books import take_groups
from kernel.errand import PAUSE
from kernel.journal import CtxEntry, Damaged, Head, ModelEntry, Reader, TaskEntry
from kernel.limits import unpack
from kernel.quota import watch
from kernel.standing import Standing
from kernel.system import System, host_part
from kernel.task import TaskState
from kernel.usage import Counters
from syscalls.abi import Restore
from syscalls.errors import ECORRUPT, ENOENT, KernelError

log = logging.getLogger(__name__)

SLICE = 128
"""Rows of the record that one turn takes in."""
EXPECTED = 4096
"""Contexts that one turn notes."""
BY_HAND = "llmos ctx saves shows them"

Steps = Generator[Any, Any, Any]


def read(k: System) -> Steps:
    """Read what there is, and take it in; nothing has changed if it cannot be read."""
    c, epoch = k.comeback, k.store.epoch
    try:
        yield from _read_record(k)
    except ENOENT:
        c.state = Restore.NONE
    except (ECORRUPT, Damaged) as wrong:
        why = wrong.message if isinstance(wrong, KernelError) else str(wrong)
        c.left = yield from _count_saves(k)
        c.state = Restore.FAILED
        log.error("the record of the kernel before is damaged (%s), and left where it is", why)
        log.error("%d of its contexts can be loaded by hand: %s", c.left, BY_HAND)
    except KernelError as error:
        if k.store.epoch == epoch:
            c.state = Restore.FAILED
            log.error("the record of the kernel before cannot be read: %s", error.message)


def _read_record(k: System) -> Steps:
    number = k.store.new_job()
    found: base.Found = yield base.OpenSave(number, k.uid, journal.RECORD, 0)
    if found.state == base.SaveState.STALE:
        yield base.CloseSave(number)
        raise Damaged("it is an old one, which was put back")
    try:
        record = yield from _rows(k, number, found.meta.length)
    except Damaged:
        yield base.CloseSave(number)
        raise
    yield base.CloseSave(number)
    yield from _take(k, record)


class Record(NamedTuple):
    """All rows of a record."""

    head: Head
    models: list[ModelEntry]
    tasks: list[TaskEntry]
    contexts: list[CtxEntry]


def _rows(k: System, number: int, length: int) -> Generator[Any, Any, Record]:
    """Read and check the rows of an open record; Damaged."""
    reader = Reader(4 * length, (k.uid, 0))
    rows: dict[type, list[Any]] = {ModelEntry: [], TaskEntry: [], CtxEntry: []}
    for start in range(0, length, base.MAX_IDS):
        count = min(base.MAX_IDS, length - start)
        part: base.Ids = yield base.ReadIds(number, start, count)
        for at, entry in enumerate(reader.feed(part.ids)):
            rows[type(entry)].append(entry)
            if at % SLICE == SLICE - 1:
                yield PAUSE
    head = reader.end()
    return Record(head, rows[ModelEntry], rows[TaskEntry], rows[CtxEntry])


def _count_saves(k: System) -> Steps:
    """Return how many contexts the kernel before has saved."""
    count, after, more = 0, "", True
    try:
        while more:
            saves: base.Saves = yield base.ListSaves(k.store.new_job(), k.uid, after)
            names = [row.name for row in saves.rows]
            count += sum(journal.is_kernels(journal.shown(name)) for name in names)
            after, more = (names[-1], saves.more) if names else ("", False)
    except KernelError:
        pass
    return count


# --- tasks ------------------------------------------------------------------------------------


def _take(k: System, record: Record) -> Steps:
    """Make the tasks of a record, and expect its contexts; or leave it alone."""
    c, head, contexts = k.comeback, record.head, record.contexts
    c.head = head
    k.tasks.skip(head.last_pid)
    if head.restored:
        c.back = contexts
        c.state = Restore.COMING
        return
    why = _why_not(k, head)
    if why:
        c.num_waiting, c.state = head.num_contexts, Restore.WAITING
        log.warning("%d contexts of %d tasks wait: %s", head.num_contexts, head.num_tasks, why)
        return
    standing = Standing(k.tasks)
    for at, entry in enumerate(record.tasks):
        _revive(k, entry, standing)
        if at % SLICE == SLICE - 1:
            yield PAUSE
    standing.settle()
    take_groups(k)
    for start in range(0, len(contexts), EXPECTED):
        c.expect(contexts[start : start + EXPECTED])
        yield PAUSE
    c.state = Restore.COMING
    _load_models(k, record.models)
    log.info("%d tasks of the kernel before are back, %d contexts come", *head[5:])


def _why_not(k: System, head: Head) -> str:
    """Say why nothing is brought back, and what to do; empty: it is."""
    if k.config.fresh:
        return f"this kernel was started with --fresh; llmos down, llmos up; {BY_HAND}"
    if head.num_tasks >= k.config.max_tasks:
        return f"--max-tasks is {k.config.max_tasks}; llmos down, llmos up with a higher one"
    if head.num_contexts > k.config.max_contexts:
        return f"--max-contexts is {k.config.max_contexts}; llmos down, llmos up with a higher one"
    return ""


def _revive(k: System, entry: TaskEntry, standing: Standing) -> None:
    now = k.clock()
    born, account = now - entry.age_s, standing.account(entry)
    task = k.tasks.revive(entry.pid, entry.parent, entry.uid, entry.name, born, account)
    task.untold = dict.fromkeys(entry.signals)
    task.token, task.connection = entry.token, entry.connection
    task.prompt_tokens, task.cached_tokens = entry.prompt_tokens, entry.cached_tokens
    task.output_tokens = entry.output_tokens
    task.account.before = Counters(*entry.counters[: len(Counters._fields)])
    task.account.begun = born
    unpack(task.account, entry.limits)
    watch(task.account, now)
    if entry.zombie:
        task.become(TaskState.ZOMBIE)
        task.status, task.reason, task.ended = entry.status, entry.reason, now
        standing.ended(account)
    else:
        task.become(TaskState.LIVE)
        task.lease = now + k.comeback.lease_s
        if entry.stopped:
            task.become(TaskState.STOPPED)


def _load_models(k: System, entries: list[ModelEntry]) -> None:
    """Have the models loaded that contexts need, and this kernel was not started with."""
    models, config = k.device.models, k.config
    for entry in entries:
        if models.find(entry.name) is None and len(models) < config.max_models:
            log.info("model %s is loaded for contexts of the kernel before", entry.name)
            models.add(ModelSpec(*entry[:9], host_part(config.host_bytes), *entry[9:]))
