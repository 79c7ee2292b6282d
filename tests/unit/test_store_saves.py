"""Saves by name and owner: what is written comes back, what replaces replaces whole, and nobody
else's is found. On a disk in memory and on a real one."""

from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from drivers.store import base, saves, wire
from drivers.store.base import FaultKind, SaveState
from drivers.store.files import Files
from tests.helpers.disks import MemoryFiles
from tests.helpers.store_client import (
    BLOCK_BYTES,
    KEYS,
    OWNER,
    STATE,
    Client,
    Refused,
    Window,
    client,
    content,
)

OTHER = OWNER + 1


@pytest.fixture
def window() -> Iterator[Window]:
    made = Window()
    yield made
    made.close()


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, window: Window, tmp_path: Path) -> Iterator[Client]:
    """An open store."""
    disk = request.param == "disk"
    with client(Files() if disk else MemoryFiles(), window) as made:
        made.open(*((f"{tmp_path}/state", f"{tmp_path}/keys") if disk else (STATE, KEYS)))
        yield made


@pytest.fixture
def files() -> MemoryFiles:
    return MemoryFiles()


def refused(kind: FaultKind, store: Client, message: Any) -> base.Fault:
    with pytest.raises(Refused) as caught:
        store.ask(message)
    assert caught.value.kind == kind, caught.value
    return caught.value.fault


# --- what comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_blocks", "length"), [(2, None), (0, 5), (0, 1), (3, 12), (1, 4)])
def test_what_was_saved_is_loaded(store: Client, num_blocks: int, length: int | None) -> None:
    what = content(1, num_blocks, length)
    saved = store.save("notes", what)
    loaded = store.load("notes")
    assert loaded.content == what and loaded.whole
    assert (loaded.state, loaded.generation) == (SaveState.CURRENT, saved.generation)
    assert store.rows() == [
        base.SaveRow(
            "notes", saved.generation, SaveState.CURRENT, "smollm2:135m", len(what.ids),
            num_blocks, saved.file_bytes, 1_000_000_000,
        )
    ]  # fmt: skip


def test_ids_and_blocks_come_in_chunks_and_any_order(store: Client) -> None:
    what = content(2, num_blocks=5)
    job = store.job()
    store.ask(base.BeginSave(job, OWNER, "n", what.meta))
    for number, block in enumerate(what.blocks):
        store.window.put(number * 1000, block)
    for first, count in ((3, 2), (0, 1), (1, 2)):
        offsets = tuple(n * 1000 for n in range(first, first + count))
        store.ask(base.AddBlocks(job, first, 0, offsets))
    for start in range(0, len(what.ids), 7):
        store.ask(base.AddIds(job, start, array("i", what.ids[start : start + 7]).tobytes()))
    store.ask(base.CommitSave(job))
    assert store.load("n").content == what
    job = store.job()
    store.ask(base.OpenSave(job, OWNER, "n", 0))
    middle = store.ask(base.ReadIds(job, 3, 9))
    assert tuple(array("i", middle.ids)) == what.ids[3:12]
    assert store.ask(base.ReadBlocks(job, 3, 0, (8,))).states == b"\0"
    assert store.window.take(8) == what.blocks[3]


def test_a_save_replaces_at_its_commit_and_not_before(store: Client) -> None:
    first = store.save("n", content(1))
    job = store.begin("n", content(2))
    assert store.load("n").content == content(1)
    second = store.commit(job)
    assert second.generation > first.generation
    assert store.load("n").content == content(2)
    assert len(store.rows()) == 1
    refusal = refused(
        FaultKind.NOT_FOUND, store, base.OpenSave(store.job(), OWNER, "n", first.generation)
    )
    assert f"generation {second.generation}, not {first.generation}" in refusal.message


def test_generations_rise_also_over_a_drop(store: Client) -> None:
    first = store.save("n", content(1))
    store.drop("n")
    assert store.rows() == []
    assert store.save("n", content(1)).generation > first.generation


def test_a_reader_keeps_what_it_has_opened(store: Client) -> None:
    store.save("n", content(1))
    job = store.job()
    store.ask(base.OpenSave(job, OWNER, "n", 0))
    store.save("n", content(2))
    store.drop("n")
    assert store.ask(base.ReadBlocks(job, 1, 0, (0,))).states == b"\0"
    assert store.window.take(0) == content(1).blocks[1]
    store.ask(base.CloseSave(job))
    refused(FaultKind.NOT_FOUND, store, base.OpenSave(store.job(), OWNER, "n", 0))


def test_owners_do_not_see_each_other(store: Client) -> None:
    store.save("n", content(1), OWNER)
    store.save("n", content(2), OTHER)
    store.save("theirs", content(3), OTHER)
    assert store.load("n", OWNER).content == content(1)
    assert store.load("n", OTHER).content == content(2)
    assert [row.name for row in store.rows(OWNER)] == ["n"]
    absent = refused(FaultKind.NOT_FOUND, store, base.OpenSave(store.job(), OWNER, "nobody's", 0))
    theirs = refused(FaultKind.NOT_FOUND, store, base.OpenSave(store.job(), OWNER, "theirs", 0))
    assert theirs[1:] == absent[1:], "not yours and not there are the same"
    refused(FaultKind.NOT_FOUND, store, base.DropSave(store.job(), OWNER, "theirs"))
    store.drop("n", OWNER)
    assert store.load("n", OTHER).content == content(2)


def test_a_name_is_only_a_name(store: Client) -> None:
    for name in ("../../etc/passwd", "/", "..", "a\0b", "\n", "né 漢字 \u202e", "x" * 256):
        store.save(name, content(1, 0))
        assert store.load(name).ids == content(1, 0).ids
    assert len(store.rows()) == 7


def test_lists_are_paged(store: Client) -> None:
    names = sorted(f"save {n:04} {'x' * (n % 200)}" for n in range(base.MAX_ROWS + 40))
    for name in names:
        store.save(name, content(1, 0, 1))
    page = store.ask(base.ListSaves(store.job(), OWNER, ""))
    assert page.more and len(page.rows) <= base.MAX_ROWS
    assert [row.name for row in store.rows()] == names
    assert len(wire.encode(page)) < wire.MAX_MESSAGE


def test_a_new_store_finds_what_the_last_one_has_written(
    files: MemoryFiles, window: Window
) -> None:
    with client(files, window) as store:
        assert store.open().num_saves == 0
        sizes = [store.save(name, content(1)).file_bytes for name in ("a", "b")]
        store.save("a", content(2), OTHER)
        rows = store.rows()
    with client(files, window) as store:
        opened = store.open()
        assert (opened.num_saves, opened.num_damaged, opened.notes) == (3, 0, ())
        assert opened.saves_bytes == sum(sizes) + sizes[0]
        assert store.rows() == rows
        assert store.load("a", OTHER).content == content(2)
        assert store.stats()[-2:] == (3, opened.saves_bytes)


# --- what is refused ------------------------------------------------------------------------------


def test_a_save_that_is_not_complete_is_not_committed(store: Client, files: MemoryFiles) -> None:
    meta = content(1).meta
    for ids, blocks in ((0, 2), (11, 0), (11, 1), (10, 2)):
        job = store.job()
        store.ask(base.BeginSave(job, OWNER, "n", meta))
        if ids:
            store.ask(base.AddIds(job, 0, bytes(4 * ids)))
        if blocks:
            store.ask(base.AddBlocks(job, 0, 0, tuple(range(blocks))))
        fault = refused(FaultKind.INVALID, store, base.CommitSave(job))
        assert f"{2 - blocks} blocks and {11 - ids} ids" in fault.message
        refused(FaultKind.NO_JOB, store, base.CommitSave(job))
    assert store.rows() == []


WRONG: dict[str, Any] = {
    "no bytes of ids": lambda job: base.AddIds(job, 0, b""),
    "half an id": lambda job: base.AddIds(job, 0, b"12345"),
    "ids with a hole": lambda job: base.AddIds(job, 1, bytes(8)),
    "too many ids": lambda job: base.AddIds(job, 0, bytes(4 * 12)),
    "more than a message may have": lambda job: base.AddIds(job, 0, bytes(4 * base.MAX_IDS + 4)),
    "no blocks": lambda job: base.AddBlocks(job, 0, 0, ()),
    "a block too many": lambda job: base.AddBlocks(job, 1, 0, (0, 96)),
    "a block before the first": lambda job: base.AddBlocks(job, -1, 0, (0,)),
    "a window that is none": lambda job: base.AddBlocks(job, 0, 1, (0,)),
    "a place after the window": lambda job: base.AddBlocks(job, 0, 0, (1 << 16,)),
    "a place across its end": lambda job: base.AddBlocks(job, 0, 0, ((1 << 16) - 95,)),
    "a place before it": lambda job: base.AddBlocks(job, 0, 0, (-1,)),
    "too many blocks": lambda job: base.AddBlocks(job, 0, 0, (0,) * (base.MAX_BLOCKS + 1)),
    "another save's begin": lambda job: base.BeginSave(job, OWNER, "m", content(1).meta),
    "a read": lambda job: base.ReadIds(job, 0, 1),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_message_that_is_wrong_ends_the_job_and_nothing_else(store: Client, case: str) -> None:
    store.save("n", content(1))
    job = store.job()
    store.ask(base.BeginSave(job, OWNER, "n", content(2).meta))
    with pytest.raises(Refused) as caught:
        store.ask(WRONG[case](job))
    if case == "a read":
        assert caught.value.kind == FaultKind.NO_JOB
        store.ask(base.AbortSave(job))
    else:
        assert caught.value.kind == FaultKind.INVALID
    refused(FaultKind.NO_JOB, store, base.CommitSave(job))
    refused(FaultKind.NO_JOB, store, base.AbortSave(job))
    assert store.load("n").content == content(1)
    store.save("n", content(3))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "x" * 257}, {"digest": bytes(33)}, {"kv_dtype": "x" * 65}, {"extra": bytes(4097)},
        {"length": (1 << 24) + 1}, {"num_blocks": 3}, {"num_blocks": -1}, {"length": -1},
        {"block_bytes": (1 << 30) + 1}, {"block_size": -4}, {"layout": tuple(range(9))},
    ],
    ids=str,
)  # fmt: skip
def test_a_meta_that_is_too_large_is_refused(store: Client, change: dict[str, Any]) -> None:
    meta = content(1).meta._replace(**change)
    refused(FaultKind.INVALID, store, base.BeginSave(store.job(), OWNER, "n", meta))


@pytest.mark.parametrize(("owner", "name"), [(OWNER, ""), (OWNER, "x" * 257), (-1, "n")])
def test_owners_and_names_have_limits(store: Client, owner: int, name: str) -> None:
    refused(FaultKind.INVALID, store, base.BeginSave(store.job(), owner, name, content(1).meta))


def test_one_save_of_a_name_at_a_time(store: Client) -> None:
    job = store.begin("n", content(1))
    refused(FaultKind.BUSY, store, base.BeginSave(store.job(), OWNER, "n", content(2).meta))
    store.save("n", content(3), OTHER)
    store.commit(job)
    store.save("n", content(2))


def test_there_may_be_so_many_saves(store: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saves, "MAX_SAVES", 3)
    for name in ("a", "b"):
        store.save(name, content(1, 0))
    job = store.begin("c", content(1, 0))
    begin = base.BeginSave(store.job(), OWNER, "d", content(1).meta)
    assert "3 are the limit" in refused(FaultKind.NO_SPACE, store, begin).message
    store.commit(job)
    store.save("a", content(2, 0))
    store.drop("a")
    store.save("d", content(1, 0))


def test_reads_outside_of_a_save(store: Client) -> None:
    store.save("n", content(1))
    wrong: list[Any] = [
        base.ReadIds(0, 0, 12), base.ReadIds(0, -1, 1), base.ReadIds(0, 0, 0),
        base.ReadIds(0, 0, base.MAX_IDS + 1), base.ReadBlocks(0, 2, 0, (0,)),
        base.ReadBlocks(0, -1, 0, (0,)), base.ReadBlocks(0, 0, 0, ()),
        base.ReadBlocks(0, 0, 9, (0,)), base.ReadBlocks(0, 0, 0, (1 << 16,)),
        base.AddIds(0, 0, bytes(4)),
    ]  # fmt: skip
    for message in wrong:
        job = store.job()
        store.ask(base.OpenSave(job, OWNER, "n", 0))
        with pytest.raises(Refused):
            store.ask(message._replace(job=job))


def test_jobs_that_end_leave_no_file(files: MemoryFiles, window: Window) -> None:
    with client(files, window) as store:
        store.open()
        store.save("n", content(1))
        names = files.names(f"{STATE}/saves")
        job = store.begin("m", content(2))
        assert files.open_files == 1
        store.ask(base.AbortSave(job))
        job = store.job()
        store.ask(base.OpenSave(job, OWNER, "n", 0))
        store.ask(base.CloseSave(job))
        assert files.names(f"{STATE}/saves") == names
        assert not files.open_files
        store.begin("m", content(2))
    assert not files.open_files, "also when the store dies"
    assert len(files.names(f"{STATE}/saves")) == len(names) + 1, "but what it wrote is there"
    with client(files, window) as store:
        assert "a file that was not finished" in store.open().notes[0]
        assert files.names(f"{STATE}/saves") == names


def test_nothing_is_done_before_open_or_without_what_it_takes(window: Window) -> None:
    area = base.Area(0, 96, b"", "", "")
    messages: list[Any] = [
        base.ListSaves(1, 0, ""), base.Stats(1), base.FreeSlots(1, area, (0,)),
        base.OpenSave(1, 0, "n", 0),
    ]  # fmt: skip
    with client(MemoryFiles(), window) as store:
        for message in messages:
            refused(FaultKind.INVALID, store, message)
        opened = store.open(keys="")
        assert (opened.num_saves, opened.swap_bytes) == (0, 0)
        refused(FaultKind.UNSUPPORTED, store, messages[0])
        refused(FaultKind.UNSUPPORTED, store, messages[2])
        refused(FaultKind.INVALID, store, base.Open(1, 0, wire.schema(), 1, STATE, "", 0))


def test_a_kernel_that_speaks_another_abi(window: Window) -> None:
    with client(MemoryFiles(), window) as store:
        right = base.Open(1, 0, wire.schema(), 1, STATE, KEYS, 0)
        refused(FaultKind.UNSUPPORTED, store, right._replace(major=2))
        refused(FaultKind.UNSUPPORTED, store, right._replace(schema="x"))
        store.ask(right._replace(minor=9))


# --- the file -------------------------------------------------------------------------------------


def test_the_file_is_safetensors_and_all_of_it_is_ciphertext(
    tmp_path: Path, window: Window
) -> None:
    what = replace(content(1), extra=b"the kernel's own words")
    with client(Files(), window) as store:
        store.open(f"{tmp_path}/state", f"{tmp_path}/keys")
        saved = store.save("my secret name", what)
    (path,) = (tmp_path / "state" / "saves").glob("*.safetensors")
    assert path.stat().st_size == saved.file_bytes and path.stat().st_mode & 0o777 == 0o600
    with safe_open(path, "np") as opened:
        about = opened.metadata()
        assert about["format"] == "llmos.save/1" and about["id"] == path.stem
        assert sorted(opened.keys()) == ["block.0", "block.1", "ids", "key", "meta"]
        sizes = {name: opened.get_tensor(name).shape[0] for name in opened.keys()}  # noqa: SIM118
    assert sizes["block.0"] == BLOCK_BYTES + 28 and sizes["ids"] == 4 * len(what.ids) + 28
    raw = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    ids = array("i", what.ids).tobytes()
    secrets = [b"my secret name", b"smollm2", b"bfloat16", what.extra, *what.blocks]
    for secret in secrets + [ids[n : n + 8] for n in range(0, len(ids) - 8, 4)]:
        assert secret not in raw
    assert raw.count(path.stem.encode()) == 1, "not even its own id, but in the header"
