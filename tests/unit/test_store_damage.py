"""Files that are not as they were written: cut, changed, exchanged, rolled back, of other versions.

What is authentic is used, what is not is told; nothing is ever a mix, and nobody's else."""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from drivers.store.base import BlockState, FaultKind, SaveState
from drivers.store.savefile import KEY_TENSOR, Sealer, Sizes, unwrap_key, wrap_key
from drivers.store.seal import NotAuthentic, Seal
from tests.helpers.disks import MemoryFiles
from tests.helpers.store_client import (
    KEYS,
    OWNER,
    STATE,
    Client,
    Loaded,
    Refused,
    Window,
    client,
    content,
)

OTHER = OWNER + 1
SAVES = f"{STATE}/saves"
CATALOGUE = f"{SAVES}/catalogue"


@pytest.fixture(scope="module")
def window() -> Iterator[Window]:
    made = Window()
    yield made
    made.close()


def saved(window: Window, *names: str, first: MemoryFiles | None = None) -> MemoryFiles:
    """Return a disk with saves; their seeds are their places."""
    files = first or MemoryFiles()
    with client(files, window) as store:
        store.open()
        for seed, name in enumerate(names, 1):
            store.save(name, content(seed))
    return files


def paths(files: MemoryFiles) -> list[str]:
    """Return the files of saves, oldest first."""
    found = [path for path in files.names_of if path.endswith(".safetensors")]
    return sorted(found, key=lambda path: files.names_of[path])


def read(files: MemoryFiles, path: str) -> bytes:
    return bytes(files.inodes[files.names_of[path]])


def put(files: MemoryFiles, path: str, raw: bytes) -> None:
    inode = files.names_of.setdefault(path, max(files.inodes, default=0) + 1)
    files.inodes[inode] = bytearray(raw)


def outcome(
    files: MemoryFiles, window: Window, name: str = "n", owner: int = OWNER
) -> Loaded | FaultKind:
    """Open the disk and load a save; return it, or how it was refused."""
    with client(files, window) as store:
        store.open()
        found: Loaded | FaultKind
        try:
            found = store.load(name, owner)
        except Refused as refused:
            assert refused.fault.hint or refused.kind == FaultKind.NOT_FOUND
            found = refused.kind
        assert not files.open_files, "a descriptor is left"
        return found


def is_told_apart(files: MemoryFiles, window: Window) -> Loaded | FaultKind:
    """What a damaged save of content(1) gives: its ids and true blocks, or nothing."""
    found = outcome(files, window)
    if isinstance(found, Loaded):
        assert found.ids == content(1).ids and found.extra == content(1).extra
        pairs = zip(found.states, found.blocks, content(1).blocks, strict=True)
        assert all(got == true for state, got, true in pairs if state == BlockState.OK)
    else:
        assert found == FaultKind.CORRUPT
    return found


def places(raw: bytes) -> dict[str, tuple[int, int]]:
    """Return where the tensors are in a file."""
    (length,) = struct.unpack("<Q", raw[:8])
    table = json.loads(raw[8 : 8 + length])
    return {
        name: tuple(8 + length + at for at in row["data_offsets"])
        for name, row in table.items()
        if name != "__metadata__"
    }


def steps(length: int, full: bool) -> Iterator[int]:
    """Yield every byte, or a sample with all that matters."""
    yield from range(length) if full else range(0, length, 13)


FULL = [False, pytest.param(True, marks=pytest.mark.full)]


@pytest.mark.parametrize("full", FULL)
def test_cut_at_every_byte(full: bool, window: Window) -> None:
    files = saved(window, "n")
    (path,) = paths(files)
    raw = read(files, path)
    first_block = places(raw)["block.0"][0]
    kinds = set()
    for length in steps(len(raw), full):
        put(files, path, raw[:length])
        found = is_told_apart(files, window)
        assert isinstance(found, Loaded) == (length >= first_block)
        if isinstance(found, Loaded):
            whole = sum(end <= length for name, (_, end) in places(raw).items() if "block" in name)
            assert list(found.states) == [0] * whole + [BlockState.CORRUPT] * (2 - whole)
            kinds.add(whole)
    assert kinds == {0, 1}


@pytest.mark.parametrize("full", FULL)
def test_flip_every_byte(full: bool, window: Window) -> None:
    files = saved(window, "n")
    (path,) = paths(files)
    raw = read(files, path)
    where = places(raw)
    for at in steps(len(raw), full):
        bent = bytearray(raw)
        bent[at] ^= 1 << (at % 8)
        put(files, path, bytes(bent))
        found = is_told_apart(files, window)
        (part,) = [n for n, (start, end) in where.items() if start <= at < end] or ["header"]
        if part.startswith("block"):
            expected = [BlockState.CORRUPT if part == f"block.{n}" else 0 for n in range(2)]
            assert isinstance(found, Loaded) and list(found.states) == expected
        else:
            assert found == FaultKind.CORRUPT, part
    put(files, path, raw)
    assert is_told_apart(files, window)


def test_ids_that_were_cut_are_seen_when_the_store_is_opened(window: Window) -> None:
    files = saved(window, "n")
    (path,) = paths(files)
    raw = read(files, path)
    start, end = places(raw)["ids"]
    for length, damaged in ((start, 1), (end - 1, 1), (end, 0)):
        put(files, path, raw[:length])
        with client(files, window) as store:
            assert store.open().num_damaged == damaged
            assert store.rows()[0].state == (SaveState.DAMAGED if damaged else SaveState.CURRENT)


def test_more_than_was_written_is_not_read(window: Window) -> None:
    files = saved(window, "n")
    (path,) = paths(files)
    put(files, path, read(files, path) + b"more")
    found = is_told_apart(files, window)
    assert isinstance(found, Loaded) and found.whole


@pytest.mark.parametrize("one", ["key", "meta", "ids", "block.0", "block.1"])
def test_tensors_of_another_save_do_not_open(one: str, window: Window) -> None:
    """Of another save of the same owner, of the same sizes; also of the name's last generation."""
    for names in (("n", "m"), ("m", "n")):
        files = saved(window, *names)
        of = {outcome_name(files, window, path): path for path in paths(files)}
        raw, other = read(files, of["n"]), read(files, of["m"])
        start, end = places(raw)[one]
        put(files, of["n"], raw[:start] + other[start:end] + raw[end:])
        found = outcome(files, window)
        if one.startswith("block"):
            assert isinstance(found, Loaded) and found.states[int(one[-1])] == BlockState.CORRUPT
        else:
            assert found == FaultKind.CORRUPT


def outcome_name(files: MemoryFiles, window: Window, path: str) -> str:
    """Return the name under which a file was saved."""
    alone = files.copy()
    for other in paths(files):
        if other != path:
            del alone.names_of[other]
    with client(alone, window) as store:
        store.open()
        (name,) = [row.name for row in store.rows() if row.state == SaveState.CURRENT]
    return name


SIZES = Sizes("0" * 32, 100, 200, 3, 124)
FORGED: dict[str, dict[str, Any]] = {
    "owner": {"owner": OTHER}, "generation": {"generation": 6},
    "id": {"sizes": replace(SIZES, id="1" * 32)},
    "count": {"sizes": replace(SIZES, num_blocks=4)},
    "meta size": {"sizes": replace(SIZES, meta_bytes=101)},
    "ids size": {"sizes": replace(SIZES, ids_bytes=204)},
    "block size": {"sizes": replace(SIZES, block_bytes=125)},
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_every_fact_is_bound_even_under_the_same_key(what: str) -> None:
    true = Sealer(Seal(bytes(32)), OWNER, 5, SIZES)
    false = replace(true, **FORGED[what])
    sealed = true.close("block", 1, b"plain")
    assert true.open("block", 1, sealed) == b"plain"
    for sealer, kind, index in ((false, "block", 1), (true, "ids", 1), (true, "block", 0)):
        with pytest.raises(NotAuthentic):
            sealer.open(kind, index, sealed)


@pytest.mark.parametrize("what", ["owner", *list(FORGED)[2:]])
def test_every_fact_is_bound_to_the_key_of_a_save(what: str) -> None:
    owner = Seal(bytes(32))
    wrapped = wrap_key(owner, OWNER, b"k" * 32, 5, SIZES)
    assert unwrap_key(owner, OWNER, wrapped, SIZES).generation == 5
    forged = FORGED[what]
    with pytest.raises(NotAuthentic):
        unwrap_key(owner, forged.get("owner", OWNER), wrapped, forged.get("sizes", SIZES))


def test_blocks_of_one_save_cannot_change_places(window: Window) -> None:
    files = saved(window, "n")
    (path,) = paths(files)
    raw = read(files, path)
    (a, b), (c, d) = places(raw)["block.0"], places(raw)["block.1"]
    put(files, path, raw[:a] + raw[c:d] + raw[a:b])
    found = outcome(files, window)
    assert isinstance(found, Loaded) and list(found.states) == [BlockState.CORRUPT] * 2
    assert b == c and d == len(raw)


def test_a_file_under_another_ones_name(window: Window) -> None:
    files = saved(window, "n", "m")
    first, second = paths(files)
    raws = read(files, first), read(files, second)
    put(files, first, raws[1])
    put(files, second, raws[0])
    assert outcome(files, window) == FaultKind.CORRUPT
    assert outcome(files, window, "m") == FaultKind.CORRUPT


def test_saves_of_two_owners_exchanged(window: Window) -> None:
    files = MemoryFiles()
    with client(files, window) as store:
        store.open()
        store.save("n", content(1), OWNER)
        store.save("n", content(1), OTHER)
    mine, theirs = paths(files)
    raws = read(files, mine), read(files, theirs)
    key = places(raws[0])["key"][0]
    for raw, other, path in ((*raws, mine), (raws[1], raws[0], theirs)):
        put(files, path, raw[:key] + other[key : key + KEY_TENSOR] + raw[key + KEY_TENSOR :])
    assert outcome(files, window, owner=OWNER) == FaultKind.CORRUPT
    assert outcome(files, window, owner=OTHER) == FaultKind.CORRUPT


# --- rolled back ----------------------------------------------------------------------------------


def replaced(window: Window) -> tuple[MemoryFiles, str, bytes, str]:
    """Return a disk with a save that was replaced; the old file, by path and bytes; the new one."""
    files = saved(window, "n")
    (old,) = paths(files)
    raw = read(files, old)
    with client(files, window) as store:
        store.open()
        store.save("n", content(2))
    (new,) = paths(files)
    return files, old, raw, new


@pytest.mark.parametrize("remembered", [True, False])
def test_an_older_file_beside_the_last_one_is_not_used(remembered: bool, window: Window) -> None:
    """As long as the catalogue remembers that it was dropped, it goes again."""
    files, old, raw, _ = replaced(window)
    if not remembered:
        forgets(files, window)
    put(files, old, raw)
    with client(files, window) as store:
        notes = " ".join(store.open().notes)
    assert ("older than the save of its name" in notes) is not remembered
    assert (old in files.names_of) is not remembered
    found = outcome(files, window)
    assert isinstance(found, Loaded) and found.content == content(2)


def forgets(files: MemoryFiles, window: Window) -> None:
    """Have the catalogue forget what it has dropped: two more changes do."""
    with client(files, window) as store:
        store.open()
        for name in ("other", "another"):
            store.save(name, content(3))


@pytest.mark.parametrize("remembered", [True, False])
def test_an_older_file_instead_of_the_last_one_is_stale(remembered: bool, window: Window) -> None:
    files, old, raw, new = replaced(window)
    if not remembered:
        forgets(files, window)
    generation = 2
    del files.names_of[new]
    put(files, old, raw)
    found = outcome(files, window)
    if remembered:
        assert found == FaultKind.CORRUPT and old not in files.names_of, "it had been dropped"
        return
    assert isinstance(found, Loaded) and found.state == SaveState.STALE
    assert found.ids == content(1).ids and found.generation < generation
    assert set(found.states) == {BlockState.CORRUPT}, "its ids only"
    with client(files, window) as store:
        opened = store.open()
        assert (opened.num_stale, opened.num_damaged) == (1, 0)
        assert any("is not the last save of its name" in note for note in opened.notes)
        (row,) = [row for row in store.rows() if row.name == "n"]
        assert row.state == SaveState.STALE
        with pytest.raises(Refused, match=r"generation \d, not"):
            store.load("n", generation=generation)
        store.save("n", content(4))
        assert store.load("n").content == content(4) and old not in files.names_of


def test_an_older_file_under_the_id_of_the_last_one(window: Window) -> None:
    files, _, raw, new = replaced(window)
    put(files, new, raw)
    assert outcome(files, window) == FaultKind.CORRUPT
    with client(files, window) as store:
        opened = store.open()
        assert opened.num_damaged == 1 and "another save" in " ".join(opened.notes)
        (row,) = store.rows()
        assert (row.name, row.state) == ("n", SaveState.DAMAGED)
        store.drop("n")
        assert store.rows() == []
    with client(files, window) as store:
        assert store.open().notes == ()


def test_a_dropped_save_put_back_is_stale(window: Window) -> None:
    files = saved(window, "n")
    (old,) = paths(files)
    raw = read(files, old)
    with client(files, window) as store:
        store.open()
        store.drop("n")
    put(files, old, raw)
    assert outcome(files, window) == FaultKind.NOT_FOUND, "the catalogue still removes it"
    forgets(files, window)
    put(files, old, raw)
    found = outcome(files, window)
    assert isinstance(found, Loaded) and found.state == SaveState.STALE
    with client(files, window) as store:
        store.open()
        store.drop("n")
        assert old not in files.names_of


def test_a_rolled_back_catalogue_loses_nothing(window: Window) -> None:
    files = saved(window, "n")
    raw = read(files, CATALOGUE)
    with client(files, window) as store:
        store.open()
        store.save("n", content(2))
        store.save("m", content(3))
    put(files, CATALOGUE, raw)
    with client(files, window) as store:
        assert store.open().num_saves == 2
        assert store.load("n").content == content(2)
        assert store.load("m").content == content(3)
        assert store.save("o", content(4)).generation == 4


# --- the catalogue and the keys -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "damaged", "cut", "empty", "of another key"])
def test_the_table_is_rebuilt_by_a_scan(how: str, window: Window) -> None:
    files = saved(window, "n", "m")
    raw = read(files, CATALOGUE)
    match how:
        case "missing":
            del files.names_of[CATALOGUE]
        case "damaged":
            put(files, CATALOGUE, raw[:-1] + bytes([raw[-1] ^ 1]))
        case "cut":
            put(files, CATALOGUE, raw[: len(raw) // 2])
        case "empty":
            put(files, CATALOGUE, b"")
        case _:
            put(files, CATALOGUE, read(saved(window, "n"), CATALOGUE))
    with client(files, window) as store:
        opened = store.open()
        assert (opened.num_saves, opened.num_damaged) == (2, 0)
        assert any("made again from 2 saves" in note for note in opened.notes)
        assert store.load("n").content == content(1)
        assert store.load("m").content == content(2)
        assert store.save("n", content(3)).generation == 3
    with client(files, window) as store:
        assert store.open().notes == ()


def test_what_is_no_save_is_left_alone_and_told_of(window: Window) -> None:
    files = saved(window, "n")
    strangers = {
        f"{SAVES}/{'0' * 32}.safetensors": b"\x02\0\0\0\0\0\0\0{}",
        f"{SAVES}/model.safetensors": b"",
        f"{SAVES}/{'1' * 32}.safetensors": b"\xff" * 100,
        f"{SAVES}/{'2' * 32}.safetensors": struct.pack("<Q", 70_000) + b"[" * 70_000,
        f"{SAVES}/README": b"hello",
    }
    for path, raw in strangers.items():
        put(files, path, raw)
    with client(files, window) as store:
        opened = store.open()
        assert (opened.num_saves, opened.num_damaged) == (1, 4)
        assert sum("cannot be used" in note for note in opened.notes) == 4
        assert store.load("n").content == content(1)
        store.save("n", content(2))
    for path, raw in strangers.items():
        assert read(files, path) == raw


def header(raw: bytes, old: bytes, new: bytes) -> bytes:
    """Return a file with its header changed, its length too."""
    (length,) = struct.unpack("<Q", raw[:8])
    changed = raw[8 : 8 + length].rstrip().replace(old, new)
    changed += b" " * (-len(changed) % 8)
    return struct.pack("<Q", len(changed)) + changed + raw[8 + length :]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"llmos.save/1", b"llmos.save/2", "llmos.save/2, this version reads llmos.save/1"),
        (b"llmos.save/1", b"other.save/1", "no save of llmos"),
        (b'"block.1"', b'"block.2"', "not as it was written"),
        (b'"num_blocks":"2"', b'"num_blocks":"1"', "not as it was written"),
        (b'"num_blocks":"2"', b'"num_blocks":"-2"', "cannot be read"),
        (b'"num_blocks":"2"', b'"num_blocks":2', "cannot be read"),
        (b'"num_blocks":"2"', b'"num_blocks":"9999999999"', "cannot be read"),
    ],
)
def test_headers_that_say_something_else(old: bytes, new: bytes, said: str, window: Window) -> None:
    files = saved(window, "n")
    (path,) = paths(files)
    raw = read(files, path)
    put(files, path, header(raw, old, new))
    assert read(files, path) != raw
    with client(files, window) as store:
        assert said in " ".join(store.open().notes)
        with pytest.raises(Refused) as caught:
            store.load("n")
        assert caught.value.kind == FaultKind.CORRUPT and said in caught.value.fault.message


def test_sizes_that_agree_with_each_other_but_not_with_what_was_sealed(window: Window) -> None:
    """The header of a save with one block less, and the file cut to it: every tensor is bound."""
    files = saved(window, "n")
    (path,) = paths(files)
    raw = read(files, path)
    where = places(raw)
    about = json.loads(raw[8 : where["key"][0]])["__metadata__"]
    smaller = Sizes(about["id"], int(about["meta_bytes"]), int(about["ids_bytes"]), 1, 124)
    put(files, path, smaller.header + raw[where["key"][0] : where["block.0"][1]])
    assert outcome(files, window) == FaultKind.CORRUPT


def test_a_file_that_goes_while_the_store_is_open(window: Window) -> None:
    files = saved(window, "n")
    (path,) = paths(files)
    with client(files, window) as store:
        store.open()
        put(files, path, bytes(64))
        with pytest.raises(Refused) as caught:
            store.load("n")
        assert caught.value.kind == FaultKind.CORRUPT
        del files.names_of[path]
        with pytest.raises(Refused, match="not there"):
            store.load("n")
        store.save("n", content(2))
        assert store.load("n").content == content(2)


def test_one_damaged_save_is_one_damaged_save(window: Window) -> None:
    files = saved(window, "a", "b", "c")
    put(files, paths(files)[1], b"")
    with client(files, window) as store:
        opened = store.open()
        assert (opened.num_saves, opened.num_damaged) == (2, 1)
        states = {row.name: row.state for row in store.rows()}
        assert sorted(states.values()) == [0, 0, SaveState.DAMAGED]
        assert_all_others_load(store, states)


def assert_all_others_load(store: Client, states: dict[str, int]) -> None:
    for name, state in states.items():
        if state == SaveState.CURRENT:
            assert store.load(name).whole
        else:
            with pytest.raises(Refused):
                store.load(name)


def test_keys_of_another_machine_open_nothing(window: Window) -> None:
    files, other = saved(window, "n"), saved(window)
    for name in ("root.key", "keyring"):
        put(files, f"{KEYS}/{name}", read(other, f"{KEYS}/{name}"))
    with client(files, window) as store:
        opened = store.open()
        assert opened.num_saves == 0 and "no owner's key opens it" in " ".join(opened.notes)
        assert paths(files), "it is left alone"
