"""The journal's record: what is written is read, and what is damaged is refused."""

from typing import Any

import pytest

from kernel import journal


def record() -> list[bytes]:
    """Return the rows of a record that is right."""
    head = journal.Head(1, "0123456789abcdef", 9, False, 1, 2, 2)
    rows: list[Any] = [
        head,
        journal.ModelEntry("m", "/m", "f", 16, 8, 0, 0, False, 0, "", 16.0),
        journal.TaskEntry(4, 1, 1000, "a", False, False, bytes(32), 0, 1, 2, 3, 4.0, 0, ""),
        journal.TaskEntry(5, 4, 0, "b", True, False, bytes(32), 7, 1, 2, 3, 4.0, 0, ""),
        journal.CtxEntry(4, 1, 1000, "notes", "m", 70, False, False, 0.0),
        journal.CtxEntry(5, 1, 0, "", "m", 0, True, False, 5.0),
    ]
    return [journal.pack(row) for row in rows]


def _head(num_tasks: int, num_contexts: int) -> bytes:
    return journal.pack(journal.Head(1, "0" * 16, 9, False, 0, num_tasks, num_contexts))


def read(raw: bytes, part: int = 7) -> list[Any]:
    reader = journal.Reader(len(raw), (1000, 0))
    rows: list[Any] = []
    for start in range(0, len(raw), part):
        rows += reader.feed(raw[start : start + part])
    reader.end()
    return rows


def test_a_record_is_read_in_whatever_parts() -> None:
    raw = journal.padded(bytearray(b"".join(record())))
    assert len(raw) % 4 == 0
    for part in (1, 3, 64, len(raw)):
        rows = read(raw, part)
        assert [type(row).__name__ for row in rows] == [
            "ModelEntry", "TaskEntry", "TaskEntry", "CtxEntry", "CtxEntry"
        ]  # fmt: skip


def test_every_damaged_record_is_refused() -> None:
    """Cut, flipped and shuffled: Damaged, or rows that are right in themselves; nothing else."""
    raw = journal.padded(bytearray(b"".join(record())))
    refused = 0
    for at in range(len(raw)):
        for flip in (1, 0x80, 0xFF):
            bad = bytearray(raw)
            bad[at] ^= flip
            try:
                read(bytes(bad))
            except journal.Damaged:
                refused += 1
        if at < len(b"".join(record())):
            with pytest.raises(journal.Damaged):
                read(raw[:at])
    assert refused > len(raw)
    rows = record()
    twice = [*rows[:3], rows[2], *rows[4:]]
    orphan = [
        *rows[:4],
        rows[4],
        journal.pack(journal.CtxEntry(8, 1, 0, "", "m", 0, True, False, 0)),
    ]
    stranger = [
        *rows[:4],
        rows[4],
        journal.pack(journal.CtxEntry(5, 1, 1000, "", "m", 0, True, False, 0)),
    ]
    early = [rows[0], rows[1], rows[3], rows[2], *rows[4:]]
    task, context = rows[2], rows[4]
    tasks_twice = [_head(2, 0), task, task]
    contexts_twice = [_head(1, 2), task, context, context]
    for good in ([_head(1, 0), task], [_head(1, 1), task, context]):
        assert len(read(b"".join(good))) == len(good) - 1
    for wrong in (
        tasks_twice,
        contexts_twice,
        twice,
        orphan,
        stranger,
        early,
        rows[1:],
        [b"\xc1"],
        [rows[0], b"\x90" * 50],
    ):
        with pytest.raises(journal.Damaged):
            read(b"".join(wrong))
    with pytest.raises(journal.Damaged, match="form 2"):
        read(journal.pack(journal.Head(2, "0123456789abcdef", 9, False, 0, 0, 0)))
    with pytest.raises(journal.Damaged, match="limit"):
        journal.Reader(journal.MAX_BYTES + 1, (0,))
