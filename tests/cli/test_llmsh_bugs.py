"""A bug in the shell itself: it is kept for whoever looks into it, and costs nobody a context."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from userland.asking import Sampling
from userland.llmsh.builtins import BUILTINS, Leave
from userland.llmsh.person import turn
from userland.llmsh.prompt import Prompt
from userland.llmsh.script import run_script
from userland.llmsh.shell import Shell
from userland.llmsh.state import State


@pytest.fixture
def buggy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell in which pwd is broken."""

    def broken(*_: object) -> int:
        raise LookupError("broken")

    monkeypatch.setenv("LLMOS_HOME", str(tmp_path))
    monkeypatch.setitem(BUILTINS, "pwd", broken)
    return Shell(State(Sampling(0.0), io.StringIO(), io.StringIO()))


def check_bug(shell: Shell, home: Path) -> None:
    saved = home / "state" / "bugs"
    assert isinstance(shell.state.err, io.StringIO)
    said = f"llmsh: bug: LookupError: broken; saved at {saved}\n"
    assert shell.state.err.getvalue() == said
    assert "Traceback" in saved.read_text() and saved.stat().st_mode & 0o777 == 0o600


def test_a_bug_ends_a_script_and_is_kept(buggy: Shell, tmp_path: Path) -> None:
    assert run_script(buggy, ["pwd\n", "nosuchcommand\n"]) == 70
    check_bug(buggy, tmp_path)


def test_a_bug_does_not_end_a_persons_shell(buggy: Shell, tmp_path: Path) -> None:
    lines = iter(["pwd", "exit 7"])
    kept = SimpleNamespace(lines=[], add=lambda line: None)
    prompt = cast(Prompt, SimpleNamespace(read=lambda: next(lines), history=kept))
    turn(buggy.state, prompt)
    assert buggy.state.status == 70
    check_bug(buggy, tmp_path)
    with pytest.raises(Leave):
        turn(buggy.state, prompt)
