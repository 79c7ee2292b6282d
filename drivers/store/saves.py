"""Saves: contexts kept under a name, by owner. The table of them, and the jobs on them.

A save is committed in this order, each step durable before the next: its file under a temporary
name; its name; the catalogue, which is the moment at which it counts; then the one before goes. A
crash leaves the old save or the new one. What fails before that moment has changed nothing.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from drivers.store import base
from drivers.store.base import (
    MAX_ROWS,
    MAX_SAVES,
    FaultKind,
    SaveRow,
    SaveState,
    StoreFault,
    invalid,
)
from drivers.store.catalogue import Catalogue, Entry, Named, Table
from drivers.store.faults import disk_errors, disk_fault
from drivers.store.files import Files, Unsynced
from drivers.store.keyring import Keyring
from drivers.store.savefile import SUFFIX, Facts, NotSound, check_words
from drivers.store.savejob import Loaded, Means, ReadJob, WriteJob, corrupt
from drivers.store.scan import Record, Scan, open_file, read_head, scan
from drivers.store.seal import NotAuthentic, Scratch
from drivers.store.windows import Windows

LIST_BYTES = 128 * 1024
"""Of the rows of one Saves."""


class Saves:
    """The saves of one state directory."""

    def __init__(
        self, files: Files, windows: Windows, folder: str, keyring: Keyring,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """Read what is there, and finish what a crash has cut short; IO."""
        self._files = files
        self._means = Means(files, windows, folder, Scratch())
        self._folder = folder
        self._keyring = keyring
        self._clock = clock
        self._catalogue = Catalogue(files, folder, keyring.catalogue_key)
        self._jobs: dict[int, WriteJob | ReadJob] = {}
        with disk_errors(f"read {folder}"):
            found = scan(files, folder, keyring, self._catalogue)
            # What a killed process has renamed is there; now it also stays.
            files.sync_dir(folder)
        self._records = found.records
        self._next = found.table.next
        self.num_damaged = found.num_damaged
        self.notes = found.notes
        self._tidy(found)

    def _tidy(self, found: Scan) -> None:
        before, table = self._catalogue.table, found.table
        self._catalogue.table = replace(table, pending=frozenset())
        try:
            if table != before or found.rewrite:
                self._catalogue.write(self._catalogue.table)
            else:
                self._catalogue.removable = before.dropped
            self._catalogue.remove_dropped()
        except OSError as error:
            # Nothing is lost: the next Open finds the same. Until then nothing is removed.
            self.notes.append(f"the catalogue could not be written: {error.strerror}")

    def clean(self) -> None:
        """Remove the files that the last message has left over; nobody waits for that."""
        self._catalogue.remove_dropped()

    # --- what there is ------------------------------------------------------------------------

    def count(self, state: SaveState) -> int:
        return sum(record.state == state for record in self._records.values())

    @property
    def file_bytes(self) -> int:
        return sum(record.file_bytes for record in self._records.values())

    def listed(self, message: base.ListSaves) -> base.Saves:
        """Return the saves of an owner, sorted by name."""
        names = sorted(
            name for owner, name in self._records if owner == message.owner and name > message.after
        )
        rows: list[SaveRow] = []
        size = 0
        for name in names[:MAX_ROWS]:
            row = self._records[message.owner, name].row(name)
            size += len(name.encode()) + len(row.model.encode()) + 64
            if size > LIST_BYTES:
                break
            rows.append(row)
        return base.Saves(message.job, tuple(rows), len(rows) < len(names))

    # --- writing ------------------------------------------------------------------------------

    def begin(self, message: base.BeginSave) -> None:
        self._new(message.job)
        wrong = check_words(message.meta, message.name)
        meta = message.meta
        if wrong or not message.name:
            raise invalid(wrong or "a save needs a name")
        named = message.owner, message.name
        numbers = (message.owner, meta.length, meta.num_blocks, meta.block_bytes, meta.block_size)
        if min(numbers) < 0 or meta.block_size * meta.num_blocks > meta.length:
            raise invalid(f"{meta.num_blocks} blocks of {meta.block_size} in {meta.length} ids")
        if any(job.named == named for job in self._writing()):
            raise StoreFault(FaultKind.BUSY, "a save of this name is being written")
        full = len(self._records) + len(self._writing()) >= MAX_SAVES
        if full and named not in self._records:
            what = f"there are {len(self._records):,} saves, and {MAX_SAVES:,} are the limit"
            raise StoreFault(FaultKind.NO_SPACE, what, "drop some")
        facts = Facts(message.owner, message.name, int(self._clock()), meta)
        owner = self._keyring.ensure(message.owner)
        self._jobs[message.job] = WriteJob(self._means, owner, facts, self._next)
        self._next += 1

    def add_ids(self, message: base.AddIds) -> None:
        self._write_job(message.job).add_ids(message.start, message.ids)

    def add_blocks(self, message: base.AddBlocks) -> None:
        self._write_job(message.job).add_blocks(message.first, message.window, message.offsets)

    def commit(self, message: base.CommitSave) -> base.Saved:
        job = self._write_job(message.job)
        temporary = job.finish()
        path = f"{self._folder}/{job.id}{SUFFIX}"
        with disk_errors("write a save"):
            self._files.rename(temporary, path)
        del self._jobs[message.job]  # the file is the catalogue's from here on
        entry = Entry(job.id, job.generation)
        try:
            with disk_errors("write a save"):
                self._files.sync_dir(self._folder)
            self._change(self._succeeded(job.named).with_entry(job.named, entry))
        except StoreFault as fault:
            if fault.kind == FaultKind.UNSURE:
                self._enter(job)
            elif not self._removed(job.id, path):
                fault.kind = FaultKind.UNSURE
            raise
        self._enter(job)
        return base.Saved(message.job, job.generation, job.file_bytes)

    def drop(self, message: base.DropSave) -> None:
        named: Named = (message.owner, message.name)
        self._find(named)
        try:
            self._change(self._succeeded(named).without(named))
        except StoreFault as fault:
            if fault.kind == FaultKind.UNSURE:
                del self._records[named]
            raise
        del self._records[named]

    def _succeeded(self, named: Named) -> Table:
        """Return the table with the file of a name dropped, if there is one, stale ones too."""
        table, record = self._catalogue.table, self._records.get(named)
        return replace(table, dropped=table.dropped | {record.id}) if record else table

    def _enter(self, job: WriteJob) -> None:
        size = job.file_bytes
        record = Record(job.id, job.generation, SaveState.CURRENT, size, job.facts)
        self._records[job.named] = record

    def _removed(self, id: str, path: str) -> bool:
        """Remove a save that does not count; False if a crash could still bring it back."""
        table = self._catalogue.table
        self._catalogue.table = replace(table, dropped=table.dropped | {id})
        try:
            self._files.remove(path)
            self._files.sync_dir(self._folder)
        except OSError:
            return False
        return True

    def _change(self, table: Table) -> None:
        """Make a table durable; UNSURE, IO and NO_SPACE if nothing has changed."""
        pending = frozenset(job.id for job in self._writing())
        try:
            self._catalogue.write(replace(table, next=self._next, pending=pending))
        except Unsynced as error:
            fault = disk_fault("be sure of the catalogue", error)
            raise StoreFault(FaultKind.UNSURE, fault.message, fault.hint) from None
        except OSError as error:
            raise disk_fault("write the catalogue", error) from None

    # --- reading ------------------------------------------------------------------------------

    def open(self, message: base.OpenSave) -> base.Found:
        self._new(message.job)
        named = message.owner, message.name
        record = self._find(named)
        if message.generation not in (0, record.generation):
            what = f"the save has generation {record.generation}, not {message.generation}"
            raise StoreFault(FaultKind.NOT_FOUND, what)
        if record.facts is None:
            raise corrupt(record.why)
        try:
            self._jobs[message.job] = self._open_job(named, record)
        except NotSound as error:
            raise corrupt(str(error)) from None
        except NotAuthentic:
            raise corrupt("its ids are not as they were written") from None
        except FileNotFoundError:
            raise corrupt("its file is not there") from None
        except OSError as error:
            raise disk_fault("read a save", error) from None
        facts = record.facts
        return base.Found(
            message.job, record.generation, record.state, facts.saved_unix, facts.meta
        )

    def _open_job(self, named: Named, record: Record) -> ReadJob:
        """Open and check a file as if it had never been seen."""
        fd = open_file(self._files, self._folder, record.id)
        try:
            place, sealer, facts = read_head(
                self._files, fd, record.id + SUFFIX, self._keyring, named[0]
            )
            current = record.state == SaveState.CURRENT
            loaded = Loaded(place, sealer, facts.meta, with_blocks=current)
            return ReadJob(self._means, fd, loaded)
        except (NotSound, NotAuthentic, OSError):
            with suppress(OSError):
                self._files.close(fd)
            raise

    def read_ids(self, message: base.ReadIds) -> base.Ids:
        raw = self._read_job(message.job).ids(message.start, message.num_ids)
        return base.Ids(message.job, message.start, raw)

    def read_blocks(self, message: base.ReadBlocks) -> base.Blocks:
        job = self._read_job(message.job)
        return base.Blocks(message.job, *job.blocks(message.first, message.window, message.offsets))

    # --- jobs ---------------------------------------------------------------------------------

    def end(self, job: int) -> None:
        """End a job, if it lives; what it wrote is gone."""
        match self._jobs.pop(job, None):
            case WriteJob() as writing:
                writing.abandon()
            case ReadJob() as reading:
                reading.close()

    def close(self, crashed: bool) -> None:
        """End all jobs; `crashed`: what they have written stays, as if the process were killed."""
        for job in self._jobs.values():
            if isinstance(job, WriteJob) and not crashed:
                job.abandon()
            else:
                job.close()
        self._jobs.clear()

    def abort(self, message: base.AbortSave) -> None:
        self._write_job(message.job)
        self.end(message.job)

    def close_job(self, message: base.CloseSave) -> None:
        self._read_job(message.job)
        self.end(message.job)

    def _new(self, job: int) -> None:
        if job in self._jobs:
            raise invalid(f"job {job} was there already")

    def _writing(self) -> list[WriteJob]:
        return [job for job in self._jobs.values() if isinstance(job, WriteJob)]

    def _write_job(self, number: int) -> WriteJob:
        job = self._jobs.get(number)
        if not isinstance(job, WriteJob):
            raise StoreFault(FaultKind.NO_JOB, f"no job {number} writes a save")
        return job

    def _read_job(self, number: int) -> ReadJob:
        job = self._jobs.get(number)
        if not isinstance(job, ReadJob):
            raise StoreFault(FaultKind.NO_JOB, f"no job {number} reads a save")
        return job

    def _find(self, named: Named) -> Record:
        record = self._records.get(named)
        if record is None:
            raise StoreFault(FaultKind.NOT_FOUND, "there is no save of this name")
        return record
