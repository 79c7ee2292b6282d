"""docs/guide.md: every command in it runs, and prints what the page shows; README's Python runs.

    ```console        `$ ` commands of bash, `> ` goes on with one, then all that it prints
    ```llmsh          the same of one llmsh that reads them from stdin
    ```python         a program; the ```output block behind it is what it prints
    ```KIND not run: WHY

`…` stands for any text within a line, a line of `…` alone for any lines. Runs of blanks are equal,
for columns get wider with their numbers. Output is stdout and stderr together. A command that fails
fails the page, unless bash has `echo $?` next. Blocks run in order, in one home, on one kernel.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.daemon import ROOT, eventually, processes_of

GUIDE = ROOT / "docs" / "guide.md"
KINDS = ("console", "llmsh", "python", "output")
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "not run: "
STATUS = "echo $?"
MARK = "\x1e"


class Block(NamedTuple):
    """A fenced block of the page."""

    line: int
    kind: str
    note: str
    body: str


class Command(NamedTuple):
    """A command, and the lines that it is to print."""

    text: str
    shown: list[str]


def blocks(page: str) -> list[Block]:
    """Return the page's blocks; each is of a known kind, and if it is not run it says why."""
    found = [
        Block(page.count("\n", 0, m.start()) + 1, m[1], m[2].strip(), m[3])
        for m in FENCE.finditer(page)
    ]
    assert 2 * len(found) == len(re.findall(r"^```", page, re.MULTILINE)), "a fence is not closed"
    for block in found:
        assert block.kind in KINDS, block
        reason = block.note.removeprefix(NOT_RUN)
        assert not block.note or (block.note != reason and len(reason) > 10), block
    return found


def commands(block: Block) -> list[Command]:
    """Return a block's commands."""
    found: list[Command] = []
    for line in block.body.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], []))
        elif line.startswith("> ") and found and not found[-1].shown:
            found[-1] = Command(f"{found[-1].text}\n{line[2:]}", [])
        else:
            assert found, f"line {block.line}: {line!r} comes before any command"
            found[-1].shown.append(line)
    return found


def check(where: str, shown: list[str], printed: str) -> None:
    """Assert that what was printed is what the page shows."""
    pattern = "".join(
        r"(?:.*\n)*" if line.strip() == "…" else rf"{_line(line)}\n" for line in shown
    )
    lines = "".join(f"{' '.join(line.split())}\n" for line in printed.splitlines())
    assert re.fullmatch(pattern, lines), f"{where} prints\n{printed}\nand not\n" + "\n".join(shown)


def _line(line: str) -> str:
    """Return the pattern of a line; blanks beside an ellipsis are part of what it stands for."""
    parts = [re.escape(" ".join(part.split())) for part in line.split("…")]
    return ".*".join(parts)


class Person:
    """Somebody who types the page into a folder of their own."""

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LLM", "XDG_", "PYTHON"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        self._env = kept | {
            "LLMOS_HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), "SPT_NOENV": "1",
            "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        self._env.pop("NO_COLOR", None)

    def read(self, page: str) -> int:
        """Do all that the page says; return how many commands and programs that was."""
        count, printed = 0, ""
        for block in blocks(page):
            where = f"{GUIDE.name}:{block.line}"
            if block.note:
                continue
            match block.kind:
                case "console":
                    count += self._console(where, commands(block))
                case "llmsh":
                    count += self._llmsh(where, commands(block))
                case "python":
                    printed = self._run(where, [sys.executable, "-c", block.body], "")
                    count += 1
                case _:
                    check(where, block.body.splitlines(), printed)
        return count

    def _console(self, where: str, wanted: list[Command]) -> int:
        # `(exit N)` gives the next command the status of the one before.
        tell = f"status=$?; printf '{MARK}%s{MARK}' $status; (exit $status)"
        script = "\n".join(f"{command.text}\n{tell}" for command in wanted)
        output = self._run(where, ["bash", "-c", f"{script}\nexit 0\n"], "")
        parts = output.split(MARK)
        assert len(parts) == 2 * len(wanted) + 1, output
        asked = [*(command.text == STATUS for command in wanted[1:]), False]
        told = zip(wanted, parts[::2], parts[1::2], asked, strict=False)
        for command, printed, status, may_fail in told:
            check(f"{where}: {command.text}", command.shown, printed)
            assert status == "0" or may_fail, f"{where}: {command.text}: {status}\n{printed}"
        return len(wanted)

    def _llmsh(self, where: str, wanted: list[Command]) -> int:
        script = "".join(f"{text}\n" for text in ("set -e", *(command.text for command in wanted)))
        printed = self._run(where, ["llmsh"], script)
        check(where, [line for command in wanted for line in command.shown], printed)
        return len(wanted)

    def _run(self, where: str, program: list[str], stdin: str) -> str:
        done = subprocess.run(
            program, input=stdin, env=self._env, cwd=self._folder, timeout=300, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{where}: {done.returncode}\n{done.stdout}"
        return done.stdout


@pytest.fixture
def home(tmp_path: Path, smollm2: Path) -> Iterator[Path]:
    """A home with smollm2 and nothing else, in which nothing runs afterwards."""
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True, mode=0o700)
    (home / "models" / "smollm2").symlink_to(smollm2.parent)
    yield home
    left = processes_of(home)
    for process in left:
        process.kill()
    eventually(lambda: not processes_of(home), "every process gone")
    assert not left, left


@pytest.fixture
def person(home: Path, tmp_path: Path) -> Person:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "userland").symlink_to(ROOT / "userland")
    return Person(folder, home)


@pytest.mark.timeout(600)
def test_the_guide_is_true(person: Person) -> None:
    tour, end = GUIDE.read_text().split("\n## The end\n")
    assert person.read(tour) > 50
    assert person.read((ROOT / "README.md").read_text()) == 1
    assert person.read(end) > 2


WRONG = {
    "an output that differs": "```console\n$ echo one\ntwo\n```\n",
    "a line too many": "```console\n$ echo one\n```\n",
    "a line too few": "```console\n$ echo one\none\n…\ntwo\n```\n",
    "a command that fails": "```console\n$ false\n$ echo one\none\n```\n",
    "a status that differs": "```console\n$ (exit 3)\n$ echo $?\n4\n```\n",
    "a command of llmsh that is none": "```llmsh\n$ ctx bush\n…\n$ echo one\none\n```\n",
    "a command of llmsh that fails": "```llmsh\n$ cat nothing\n…\n$ echo one\n…\n```\n",
    "a program that fails": "```python\nraise SystemExit(1)\n```\n",
    "a program that prints else": "```python\nprint(1)\n```\n```output\n2\n```\n",
    "a reason that is missing": "```console not run\n$ false\n```\n",
    "a kind that nobody runs": "```shell\n$ false\n```\n",
    "a fence that is open": "```console\n$ true\n",
}


@pytest.mark.parametrize("page", WRONG.values(), ids=WRONG)
def test_what_is_wrong_in_a_page_is_found(page: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        Person(tmp_path, tmp_path).read(page)


def test_what_is_right_passes(tmp_path: Path) -> None:
    page = (
        "```console\n$ printf 'a   1\\nb\\nc\\n'\na …\n…\n$ cat <<E\n> text\n> E\ntext\n"
        "$ (exit 3)\n$ echo $?\n3\n$ echo err >&2\nerr\n```\n"
        "```llmsh\n$ echo one\none\n```\n```python\nprint(1)\n```\n```output\n1\n```\n"
        "```console not run: it needs a terminal\n$ false\n```\n"
    )
    assert Person(tmp_path, tmp_path).read(page) == 7
