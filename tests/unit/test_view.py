"""Tables: all of it in a pipe, as much as fits on a terminal, and never a number that is cut."""

import io
import re

import pytest

from syscalls.abi import PoolRow
from userland import view
from userland.bin.free import columns
from userland.desk import Desk
from userland.view import Column


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def pool(**fields: object) -> PoolRow:
    values = dict.fromkeys(PoolRow._fields, 11_650) | {
        "device": "cpu0", "model": "smollm2", "tier": "device", "block_size": 16,
        "block_bytes": 368_640,
    }  # fmt: skip
    return PoolRow(**values | fields)  # type: ignore[arg-type]


def drawn(monkeypatch: pytest.MonkeyPatch, width: int, rows: list[PoolRow], human: bool) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    out, err = Terminal(), io.StringIO()
    view.draw(Desk(out, err), columns(human), rows, True, lambda row: "")
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()) + err.getvalue()


@pytest.mark.parametrize("human", [False, True])
def test_free_fits_into_80_columns_with_every_number_whole(
    monkeypatch: pytest.MonkeyPatch, human: bool
) -> None:
    header, row, note = drawn(monkeypatch, 80, [pool()], human).splitlines()
    assert max(len(header), len(row)) <= 80
    assert header.split()[:9] == (
        ["DEVICE", "MODEL", "TIER", "TOTAL", "USED", "CACHED", "FREE", "PINNED", "SAVED"]
    )
    assert "…" not in row and row.count("4.0 GiB" if human else "11,650") >= 6
    assert "BLOCK" not in header and "80 columns are too few for " in note and "BLOCK" in note


def test_a_wide_terminal_has_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    header, row = drawn(monkeypatch, 132, [pool()], False).splitlines()
    assert header.split()[-4:] == ["LIMBO", "RESERVED", "SHARED", "BLOCK"]
    assert row.endswith("16 tok = 360 KiB")


def test_words_are_cut_before_a_line_runs_over(monkeypatch: pytest.MonkeyPatch) -> None:
    long = [pool(model="a-model-with-a-long-name")]
    _, row, _ = drawn(monkeypatch, 60, long, False).splitlines()
    assert len(row) <= 60 and "a-mode" in row and "…" in row and "11,650" in row
    _, row, _ = drawn(monkeypatch, 40, long, False).splitlines()
    assert len(row) > 40 and row.count("11,650") == 4


def test_a_pipe_gets_everything() -> None:
    out = io.StringIO()
    view.draw(Desk(out, io.StringIO()), columns(True), [pool()], True, lambda row: "")
    assert out.getvalue().splitlines()[0].split()[-1] == "BLOCK"


@pytest.mark.parametrize(
    ("room", "expected"),
    [(99, [10, 9, 4]), (25, [10, 9, 4]), (24, [10, 9, 0]), (19, [9, 9, 0]), (3, [6, 9, 0])],
)
def test_what_gives_way_first(room: int, expected: list[int]) -> None:
    table = [
        Column("word", "WORD", str, left=True),
        Column("number", "NUMBER", str),
        Column("spare", "SPARE", str, spare=True),
    ]
    assert view.fit(table, [10, 9, 4], room) == expected
