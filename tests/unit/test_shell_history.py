"""Lines of the history: what ! stands for, and the file."""

import os
import stat
from multiprocessing import get_context
from pathlib import Path

import pytest

from userland.exits import Failure
from userland.llmsh.history import append, expanded, load, make_private

LINES = ["ls -l", "git log", "echo a", "git diff"]


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("!!", "git diff"), ("!! | wc", "git diff | wc"), ("!1", "ls -l"), ("!-2", "echo a"),
        ("!git l", "git diff l"), ("!ec b", "echo a b"), ("a; !ls", "a; ls -l"),
        ("x | !!", "x | git diff"), ("'!!' \"!!\"", "'!!' \"!!\""), ("\\!!", "\\!!"),
        ("a!!b", "a!!b"), ("! true", "! true"), ("!", "!"), ("!= x", "!= x"),
        ("? hey !!", "? hey !!"),
        ("@a ? hey !!", "@a ? hey !!"), ("$(!ls)", "$(ls -l)"), ("echo 'a\n!!'", "echo 'a\n!!'"),
        ("'open !!", "'open git diff"),
    ],
)  # fmt: skip
def test_expansion(line: str, becomes: str) -> None:
    assert expanded(line, LINES) == becomes


@pytest.mark.parametrize("line", ["!9", "!0", "!-5", "!nosuch", "a && !x"])
def test_what_there_is_not(line: str) -> None:
    with pytest.raises(Failure, match="there is no such line"):
        expanded(line, LINES)
    with pytest.raises(Failure):
        expanded("!!", [])


def test_lines_of_several_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    make_private(path)
    lines = ["one", "two\nrows", "+plus", "", "naïve \udcff"]
    for line in lines:
        append(path, line)
    assert load(path) == [*lines[:-1], "naïve ?"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"\xff\n+a\n#\n\n+b")  # whatever is in it
    assert load(path) == ["a", "b"]


def fill(path: Path, name: str) -> None:
    for number in range(200):
        append(path, f"{name} {number}\n{'x' * 500}")


def test_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history"
    context = get_context("fork")
    writers = [context.Process(target=fill, args=(path, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [line.split("\n")[0] for line in load(path)]
    assert sorted(found) == sorted(f"{name} {number}" for name in "abc" for number in range(200))
    assert os.stat(path).st_mode & 0o077 == 0  # noqa: PTH116
