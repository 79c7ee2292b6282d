"""Scan: what the folder of the saves holds, read at Open. The files are the truth.

A file is sound if its header, its key and its meta are: then its name, owner and generation are
known. Which of the sound ones counts, the catalogue says (drivers/store/catalogue.py). So:

    CURRENT  it is the one that the catalogue names, or was written when a crash came: then the
             catalogue is brought up to date, and the one before is removed
    STALE    an older one, while the last one is not there or not sound, or was dropped
    DAMAGED  the catalogue names it, and there is nothing sound of that name

Only two kinds of files are removed: saves that were not finished, and those that the catalogue has
dropped. What else cannot be used is left alone and told of, by the name of the file.
"""

from dataclasses import dataclass

from drivers.store.base import SaveRow, SaveState
from drivers.store.catalogue import Catalogue, Entry, Named, Table
from drivers.store.files import Files
from drivers.store.keyring import Keyring
from drivers.store.savefile import (
    KEY_TENSOR,
    SUFFIX,
    Facts,
    NotSound,
    SavePlace,
    Sealer,
    read_facts,
    read_place,
    unwrap_key,
)
from drivers.store.seal import NotAuthentic

TEMPORARY = ".tmp"


@dataclass(frozen=True, slots=True)
class Record:
    """One save as it can be listed. `facts` and `why` exclude each other."""

    id: str
    generation: int
    state: SaveState
    file_bytes: int
    facts: Facts | None = None
    why: str = ""

    def row(self, name: str) -> SaveRow:
        """Return it as it is listed."""
        row = SaveRow(name, self.generation, self.state, "", 0, 0, self.file_bytes, 0)
        if self.facts is None:
            return row
        meta = self.facts.meta
        return row._replace(
            model=meta.model, length=meta.length, num_blocks=meta.num_blocks,
            saved_unix=self.facts.saved_unix,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """A sound file."""

    id: str
    generation: int
    facts: Facts
    file_bytes: int

    @property
    def named(self) -> Named:
        return self.facts.owner, self.facts.name

    def record(self, state: SaveState) -> Record:
        return Record(self.id, self.generation, state, self.file_bytes, self.facts)


@dataclass(slots=True)
class Scan:
    """What was found."""

    records: dict[Named, Record]
    table: Table
    num_damaged: int
    notes: list[str]
    rewrite: bool = False  # the catalogue is damaged, or missing though there are saves


def scan(files: Files, folder: str, keyring: Keyring, catalogue: Catalogue) -> Scan:
    """Look at every file of the folder, change nothing but the unfinished ones; OSError."""
    found = Scan({}, Table(), 0, [])
    names = files.names(folder)
    known = _read_catalogue(catalogue, found)
    _remove_unfinished(files, folder, names, found)
    owners = {entry.id: owner for (owner, _), entry in catalogue.table.entries.items()}
    sound: dict[str, Seen] = {}
    unsound: dict[str, str] = {}
    for name in names:
        id = name.removesuffix(SUFFIX)
        if id == name or id in catalogue.table.dropped:
            continue
        try:
            sound[id] = _examine(files, folder, name, keyring, owners.get(id))
        except NotSound as error:
            unsound[id] = str(error)
        except OSError as error:
            unsound[id] = f"it cannot be read: {error.strerror}"
    if known:
        found.table = _adopted(catalogue.table, sound)
    else:
        found.table = _rebuilt(sound)
        if sound:
            found.rewrite = True
            found.notes.append(
                f"the catalogue was made again from {len(sound)} saves: whether an older one "
                "was put back cannot be told"
            )
    _match(found, sound, unsound)
    return found


def open_file(files: Files, folder: str, id: str) -> int:
    """Return the file of a save, for reading; OSError."""
    return files.open(f"{folder}/{id}{SUFFIX}")


def read_head(
    files: Files, fd: int, name: str, keyring: Keyring, hint: int | None
) -> tuple[SavePlace, Sealer, Facts]:
    """Read what makes a file sound; NotSound, OSError. `hint` is who its owner should be."""
    place = read_place(files, fd, name)
    sealed = files.read(fd, KEY_TENSOR, place.data)
    order = sorted(keyring.owners, key=lambda owner: owner != hint)
    for owner in order:
        seal = keyring.seal_of(owner)
        assert seal is not None
        try:
            sealer = unwrap_key(seal, owner, sealed, place.sizes)
        except NotAuthentic:
            continue
        facts = read_facts(files, fd, place, sealer)
        if facts.owner != owner:
            raise NotSound("it is not of the owner whose key it has")
        return place, sealer, facts
    raise NotSound("no owner's key opens it")


def _examine(files: Files, folder: str, name: str, keyring: Keyring, hint: int | None) -> Seen:
    fd = open_file(files, folder, name.removesuffix(SUFFIX))
    try:
        place, sealer, facts = read_head(files, fd, name, keyring, hint)
        size = files.fstat(fd).st_size
        if size < place.block(0):
            raise NotSound("it was cut")
        return Seen(place.sizes.id, sealer.generation, facts, size)
    finally:
        files.close(fd)


def _read_catalogue(catalogue: Catalogue, found: Scan) -> bool:
    try:
        return catalogue.read()
    except NotAuthentic:
        found.rewrite = True
        found.notes.append("the catalogue of the saves is damaged")
        return False


def _remove_unfinished(files: Files, folder: str, names: list[str], found: Scan) -> None:
    unfinished = [name for name in names if name.endswith(TEMPORARY)]
    for name in unfinished:
        files.remove(f"{folder}/{name}")
    if unfinished:
        many = f"{len(unfinished)} files that were" if len(unfinished) > 1 else "a file that was"
        found.notes.append(f"{many} not finished: removed")


def _adopted(table: Table, sound: dict[str, Seen]) -> Table:
    """Return the table with what a crash has kept it from having."""
    written, following = table.pending, table.next
    for seen in sorted(sound.values(), key=lambda seen: seen.generation):
        before = table.entries.get(seen.named)
        fresh = seen.generation >= following or seen.id in written
        if fresh and (before is None or before.generation < seen.generation):
            table = table.with_entry(seen.named, Entry(seen.id, seen.generation))
    return table


def _rebuilt(sound: dict[str, Seen]) -> Table:
    entries: dict[Named, Entry] = {}
    for seen in sorted(sound.values(), key=lambda seen: seen.generation):
        entries[seen.named] = Entry(seen.id, seen.generation)
    highest = max((seen.generation for seen in sound.values()), default=0)
    return Table(highest + 1, entries)


def _match(found: Scan, sound: dict[str, Seen], unsound: dict[str, str]) -> None:
    """Give every name its record: the entry's own, else the latest older one, else none."""
    older: dict[Named, Seen] = {}
    current = {entry.id for entry in found.table.entries.values()}
    spare = [s for s in sound.values() if s.id not in current | found.table.dropped]
    for seen in sorted(spare, key=lambda seen: seen.generation):
        older[seen.named] = seen
    for named, entry in found.table.entries.items():
        seen_it = sound.get(entry.id)
        if seen_it and (seen_it.named, seen_it.generation) == (named, entry.generation):
            found.records[named] = seen_it.record(SaveState.CURRENT)
            older.pop(named, None)
            continue
        why = unsound.get(entry.id, "its file is not there")
        found.notes.append(f"saves/{entry.id}{SUFFIX} cannot be used: {why}")
        if named not in older:
            state = SaveState.DAMAGED
            found.num_damaged += 1
            found.records[named] = Record(entry.id, entry.generation, state, 0, None, why)
    for named, seen in older.items():
        found.records[named] = seen.record(SaveState.STALE)
        found.notes.append(f"saves/{seen.id}{SUFFIX} is not the last save of its name")
    used = {record.id for record in found.records.values()}
    for seen in spare:
        if seen.id not in used:
            found.notes.append(
                f"saves/{seen.id}{SUFFIX} is older than the save of its name, and not used"
            )
    for id in sorted(unsound.keys() - current - found.table.dropped):
        found.num_damaged += 1
        found.notes.append(f"saves/{id}{SUFFIX} cannot be used: {unsound[id]}")
