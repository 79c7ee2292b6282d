"""Catalogue: which save is the last one under its name. One sealed file beside the saves.

The saves' own files are the truth about what a save is. What no file can say of itself is whether
a later one has taken its place; so an old file that is put back would pass. The catalogue says it:

    next        the generation that the next save gets; one counter for all, so it never falls
    entries     (owner, name) -> id and generation
    pending     ids of saves that were being written: such a file is the last one if it is there
    dropped     ids of files that are to be removed, until that is durable

It is written whole, after the file of a save is in place: that is the moment at which the save
counts. A database would do as much, but not through `files`, where every state that a crash leaves
can be tried; and it is small, some 100 bytes a save. A whole state directory that is rolled back,
catalogue and all, is a restored backup: nobody can tell, and none of it is refused.
"""

from dataclasses import dataclass, field, replace

from drivers.store.files import Files, Unsynced
from drivers.store.savefile import SUFFIX
from drivers.store.seal import NotAuthentic, open_rows, seal_rows

CATALOGUE = "catalogue"
MAGIC = b"llmos catalogue 1\n"
MAX_BYTES = 256 << 20

Named = tuple[int, str]
"""Owner and name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The save that counts under a name."""

    id: str
    generation: int


@dataclass(frozen=True, slots=True)
class Table:
    """What the catalogue says."""

    next: int = 1
    entries: dict[Named, Entry] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()

    def with_entry(self, named: Named, entry: Entry) -> "Table":
        """Return it with another save under a name; the one before is dropped."""
        return replace(
            self.without(named),
            entries=self.entries | {named: entry},
            next=max(self.next, entry.generation + 1),
        )

    def without(self, named: Named) -> "Table":
        """Return it without a name; the save under it is dropped."""
        before = self.entries.get(named)
        if before is None:
            return self
        entries = {who: entry for who, entry in self.entries.items() if who != named}
        return replace(self, entries=entries, dropped=self.dropped | {before.id})


class Catalogue:
    """The table in memory, and its file in the folder of the saves."""

    def __init__(self, files: Files, folder: str, key: bytes) -> None:
        self._files = files
        self._folder = folder
        self._path = f"{folder}/{CATALOGUE}"
        self._key = key
        self._unlinked: frozenset[str] = frozenset()
        self.removable: frozenset[str] = frozenset()
        self.table = Table()

    def read(self) -> bool:
        """Read the file; False if there is none. NotAuthentic if it is damaged; OSError."""
        try:
            raw = self._files.read_whole(self._path, MAX_BYTES)
        except FileNotFoundError:
            return False
        try:
            following, entries, pending, dropped = open_rows(MAGIC, self._key, raw)
        except ValueError:
            raise NotAuthentic from None
        self.table = Table(
            following,
            {(owner, name): Entry(id, generation) for owner, name, id, generation in entries},
            frozenset(pending),
            frozenset(dropped),
        )
        return True

    def write(self, table: Table) -> None:
        """Make a table durable; the files that it has dropped may be removed then.

        OSError: nothing has changed. Unsynced: it counts from now on, but a crash may undo it, so
        no file may be removed.
        """
        unlinked = self._unlinked & table.dropped
        try:
            self._files.write_whole(self._path, self._pack(table))
        except Unsynced:
            self.table, self.removable = table, frozenset()
            raise
        # The folder was synced after those were unlinked: nobody needs to know of them any more.
        self.table = replace(table, dropped=table.dropped - unlinked)
        self.removable = self.table.dropped - self._unlinked

    def remove_dropped(self) -> None:
        """Remove files that the durable table has dropped; what the disk refuses is tried again.

        That may take long: large files do.
        """
        gone = set(self._unlinked)
        for id in self.removable:
            try:
                self._files.remove(f"{self._folder}/{id}{SUFFIX}")
                gone.add(id)
            except OSError:
                continue
        self._unlinked = frozenset(gone) & self.table.dropped
        self.removable = frozenset()

    def _pack(self, table: Table) -> bytes:
        entries = [
            (owner, name, entry.id, entry.generation)
            for (owner, name), entry in table.entries.items()
        ]
        rows = [table.next, entries, sorted(table.pending), sorted(table.dropped)]
        return seal_rows(MAGIC, self._key, rows)
