"""README.md: what it says of commands, folders and files is there; what is not yet, is not."""

import re
from pathlib import Path

import click
import pytest

from userland import cli
from userland.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
NOT_YET = "not yet"
GROUPS = ("Daily", "Kernel", "Tasks", "Memory", "Devices", "Models", "Setup")


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "README.md").read_text()


def dictionary(page: str, title: str) -> list[tuple[str, str]]:
    """Return the rows of a section's table."""
    section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [(theirs.strip(), ours.strip()) for theirs, ours in rows[2:]]


def test_commands_of_the_overview_are_those_of_the_help(page: str) -> None:
    listed = {
        group: re.findall(r"\S+", words)
        for group, words in re.findall(rf"({'|'.join(GROUPS)}) {{2,}}((?:[a-z]+ ?)+)", page)
    }
    assert set(listed) == set(GROUPS)
    assert sorted(name for names in listed.values() for name in names) == sorted(COMMANDS)
    shown = cli.llmos.get_help(click.Context(cli.llmos, info_name="llmos"))
    for group, names in listed.items():
        part = shown.split(f"{group}:\n")[1].split("\n\n")[0]
        assert re.findall(r"^  (\S+)", part, re.MULTILINE) == names


@pytest.mark.parametrize("title", ["If you know Linux", "If you know Ollama"])
def test_the_dictionaries_name_commands_that_are_there(page: str, title: str) -> None:
    rows = dictionary(page, title)
    named = {name for _, ours in rows for name in re.findall(r"`llmos ([a-z]+)", ours)}
    assert len(rows) > 10 and named
    assert named <= set(COMMANDS)


def test_what_is_not_yet_there_is_not(page: str) -> None:
    rows = dictionary(page, "If you know Linux")
    absent = [theirs for theirs, ours in rows if ours.startswith(NOT_YET)]
    words = {word for theirs in absent for word in re.findall(r"[a-z]+", theirs)}
    assert {"strace", "lsmod", "jobs"} <= words
    assert not words & set(COMMANDS)


def test_folders_and_files_are_there(page: str) -> None:
    layout = page.split("\n## Layout\n")[1].split("\n## ")[0]
    lines = [line for line in layout.splitlines() if line.startswith("    ")]
    folders = [name for line in lines for name in re.findall(r" ([a-z]+)/", line)]
    assert folders == ["syscalls", "kernel", "drivers", "userland", "tests", "bench", "docs"]
    named = folders + re.findall(r"(?:docs|kernel|drivers|bench)/[\w/]+(?:\.\w+)?", page)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_picture_is_of_no_machine_in_particular() -> None:
    picture = (ROOT / "docs" / "run.svg").read_text()
    assert picture.startswith("<svg") and "@italy" in picture
    assert not re.search(r"/(?:tmp|home|root|usr|var)\b", picture)
    assert set(re.findall(r"https?://[\w.]+", picture)) <= {
        "http://www.w3.org",
        "https://www.textualize.io",
    }
