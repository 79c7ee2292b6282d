"""The agent programs: how a text is cut, and both on the real model; nothing is left of them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.daemon import ROOT, Daemon, daemon
from tests.helpers.shell import environment
from tests.helpers.smollm2 import kernel_options
from userland.agents.map_reduce import cut

BEST, MAP = "userland/agents/best_of_n.py", "userland/agents/map_reduce.py"
PANEL = "userland/agents/panel.py"
BOAT = "Name a boat that is always late."
RIVERS = " ".join(f"River {n} is {n} miles long and very cold in winter." for n in range(60))


def words(text: str) -> int:
    return max(1, len(text) // 4)


@given(st.text(st.sampled_from("ab. \n!"), max_size=400), st.integers(5, 60))
def test_parts_are_small_enough_and_nothing_is_lost(text: str, limit: int) -> None:
    try:
        parts = cut(text, limit, words)
    except ValueError:
        assert max(map(len, text.split())) > 4 * limit, "only a word may be too long"
        return
    assert "".join(parts) == text
    assert all(words(part) <= limit or len(part.split()) <= 1 for part in parts)


def test_a_text_is_cut_where_a_reader_would() -> None:
    text = "One. Two.\nThree.\n\nFour is a longer sentence. Five.\n\nSix."
    assert cut(text, 14, len) == [
        "One. Two.\n", "Three.\n\nFour ", "is a longer ", "sentence. ", "Five.\n\nSix.",
    ]  # fmt: skip
    assert cut(text, 40, len) == [
        "One. Two.\nThree.\n\n",
        "Four is a longer sentence. Five.\n\nSix.",
    ]
    with pytest.raises(ValueError, match="10 ids in one word"):
        cut("a sentence. b", 5, len)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("home"), *kernel_options()) as running:
        yield running


def run(home: Path, *words: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "userland.cli", "run", *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment(home), input=stdin or "", capture_output=True, text=True
    )


def test_best_of_n_writes_the_best_and_shows_all(home: Path) -> None:
    done = run(home, BEST, "-n", "3", "--max-tokens", "12", "--seed", "1", "-v", BOAT)
    assert done.returncode == 0, done.stderr
    header, *rows, shared = done.stderr.splitlines()
    scores = [float(row.split()[0]) for row in rows]
    assert header.split() == ["score", "ids", "answer"] and len(rows) == 3
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    assert done.stdout.split()[:3] == rows[0].split()[2:5]
    assert shared == "2 blocks of the question were shared by 3"
    again = run(home, BEST, "-n", "3", "--max-tokens", "12", "--seed", "1", BOAT)
    assert (again.stdout, again.stderr) == (done.stdout, "")


def test_a_judge_gives_parts_of_one(home: Path) -> None:
    how = ("-n", "2", "--max-tokens", "8", "--seed", "1", "-v", "--judge", "Is that a name?")
    done = run(home, BEST, *how, BOAT)
    assert done.returncode == 0, done.stderr
    scores = [float(row.split()[0]) for row in done.stderr.splitlines()[1:3]]
    assert all(0 < score < 1 for score in scores), scores


def test_a_file_longer_than_a_part(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "rivers.txt"
    file.write_text(RIVERS, encoding="utf-8")
    how = ("-v", "--part", "160", "--note", "16", "--max-tokens", "12")
    done = run(home, MAP, *how, "How long is river 7?", str(file))
    assert done.returncode == 0, done.stderr
    rounds = done.stderr.splitlines()
    assert rounds[0].startswith("round 1: ") and "parts" in rounds[0]
    assert done.stdout.strip()
    piped = run(home, MAP, *how, "How long is river 7?", stdin=RIVERS)
    assert piped.stdout == done.stdout


def test_a_panel_is_forks_of_one_reader(kernel: Daemon, home: Path) -> None:
    how = ("--max-tokens", "8", "--seed", "1", "-r", "a lawyer", "-r", "a child")
    done = run(home, PANEL, *how, "Is that cold?", stdin=RIVERS[:200])
    assert done.returncode == 0, done.stderr
    said = [line.partition(":") for line in done.stdout.splitlines() if ":" in line]
    assert [role for role, _, _ in said] == ["a lawyer", "a child"] and all(a for *_, a in said)
    with kernel.connect() as task:
        assert len(task.ps()) == 2 and not task.contexts(), "nothing is left"


@pytest.mark.parametrize(
    ("words", "stdin", "why"),
    [
        ((MAP, "What?", "/nowhere.txt"), None, "No such file"),
        ((MAP, "What?"), " \n", "is empty"),
        ((MAP, "--note", "100", "--part", "150", "What?"), "text", "no longer than two notes"),
        ((BEST, "-n", "0", "What?"), None, "not in the range"),
        ((PANEL, "What?"), " \n", "is empty"),
    ],
)
def test_mistakes_are_usage_errors(
    home: Path, words: tuple[str, ...], stdin: str | None, why: str
) -> None:
    done = run(home, *words, stdin=stdin)
    assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr
