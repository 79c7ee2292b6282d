"""nice, renice, group, and kill of trees and groups: the commands, on a real kernel."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from syscalls import Signalled, Task
from syscalls.abi import Sig
from tests.helpers.daemon import NULL, Daemon, daemon
from tests.helpers.shell import environment
from userland import cli
from userland.desk import Desk

SHOW = """
import sys, syscalls
with syscalls.connect() as task:
    row = task.stat()
    print(row.nice, row.group or "-", row.name, sys.argv[1:])
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("home"), *NULL, "null:vocab=251") as running:
        running.host_pid()
        yield running


@pytest.fixture
def home(kernel: Daemon) -> Path:
    return kernel.run_dir.parent


@pytest.fixture
def task(kernel: Daemon) -> Iterator[Task]:
    with kernel.connect() as task:
        yield task


def llmos(home: Path, *words: str) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with patch.dict(os.environ, environment(home), clear=True):
        code = cli.run(Desk(out, err), list(words))
    return code, out.getvalue(), err.getvalue()


def started(home: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "userland.cli", *words], env=environment(home),
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ps(home: Path, *words: str) -> list[list[str]]:
    code, out, err = llmos(home, "ps", "-o", "pid,ni,group,s,name", "--no-headers", *words)
    assert code == 0, err
    return [line.split() for line in out.splitlines()]


def test_groups_and_nices_are_changed_and_shown(home: Path, kernel: Daemon, task: Task) -> None:
    with kernel.connect("other") as other:
        mine, hers = str(task.pid), str(other.pid)
        assert llmos(home, "group", "lab", mine, hers)[2] == f"{mine}: in lab\n{hers}: in lab\n"
        assert llmos(home, "renice", "-n", "-5", mine)[2] == f"{mine}: nice 0 to -5\n"
        assert llmos(home, "renice", "-n", "7", "-g", "lab")[2] == "group lab: nice 0 to 7\n"
        assert llmos(home, "-q", "renice", "-n", "3", "-g", "lab") == (0, "", "")
        rows = ps(home, "-g", "lab", "--sort", "pid")
        assert rows == [[mine, "-5", "lab", "S", "test"], [hers, "0", "lab", "S", "other"]]
        assert llmos(home, "group", "--out", hers)[2] == f"{hers}: in no group\n"
        assert [row[0] for row in ps(home, "-g", "lab")] == [mine]
    document = json.loads(llmos(home, "ps", "--json")[1])
    assert {row["group"] for row in document["data"]} == {"", "lab"}


def test_kill_reaches_trees_and_groups(home: Path, kernel: Daemon, task: Task) -> None:
    child = task.spawn("child")
    with kernel.connect(ticket=child.ticket) as program:
        grandchild = program.spawn("grandchild")
        code, _, err = llmos(home, "kill", "-STOP", "--tree", str(task.pid))
        assert (code, err) == (0, "")
        states = {row[0]: row[3] for row in ps(home)}
        assert [states[str(t.pid)] for t in (task, program)] == ["T", "T"]
        llmos(home, "group", "lab", str(task.pid))
        llmos(home, "kill", "-CONT", "-g", "lab")
        assert {row[3] for row in ps(home)} == {"S"}
        llmos(home, "kill", "-HUP", str(program.pid))
        program.stat()
        assert program.events() == [Signalled(Sig.HUP)]
        tree = ps(home, "--tree", "-p", f"{task.pid},{program.pid},{grandchild.pid}")
        assert [row[-1] for row in tree] == ["test", "\\_child", "\\_grandchild"]
        assert llmos(home, "kill", "--tree", str(program.pid))[0] == 0
    assert child.wait().reason == "TERM"
    assert [row[-1] for row in ps(home, "-g", "lab")] == ["test"]


def test_programs_start_with_a_nice_and_in_a_group(home: Path, tmp_path: Path) -> None:
    show = tmp_path / "show.py"
    show.write_text(SHOW)
    assert started(home, "nice", str(show), "-x") == "10 - show ['-x']"
    assert started(home, "nice", "-n", "-5", "--name", "poet", str(show)) == "-5 - poet []"
    assert started(home, "run", "-g", "jobs", str(show)) == "0 jobs show []"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("renice", "7"), 2, "-n"),
        (("renice", "-n", "20", "7"), 2, "20"),
        (("renice", "-n", "5"), 2, "needs a pid"),
        (("renice", "-n", "5", "x"), 2, "'x' is no pid"),
        (("renice", "-n", "5", "999999"), 3, "999999"),
        (("renice", "-n", "5", "-g", "none"), 3, "group none"),
        (("renice", "-n", "5", "-g", "a b"), 2, "'a b'"),
        (("renice", "-n", "5", "1"), 77, "pid 1"),
        (("group",), 2, "needs a name"),
        (("group", "lab"), 2, "needs a name"),
        (("group", "--out"), 2, "needs a name"),
        (("group", "a/b", "7"), 2, "'a/b'"),
        (("group", "lab", "x"), 2, "'x' is no pid"),
        (("group", "lab", "999999"), 3, "999999"),
        (("kill", "-g", "none"), 3, "group none"),
        (("kill", "--tree"), 2, "needs a pid"),
        (("nice", "-n", "99", "x.py"), 2, "99"),
        (("nice", "/none.py"), 127, "no such file"),
    ],
)
def test_mistakes_are_said(home: Path, words: tuple[str, ...], code: int, said: str) -> None:
    got, out, err = llmos(home, *words)
    assert (got, out) == (code, "") and said in err, err


def test_the_others_get_theirs_after_a_mistake(home: Path, task: Task) -> None:
    code, _, err = llmos(home, "renice", "-n", "4", "999998", str(task.pid), "999999")
    assert code == 3 and "999998" in err and "999999" in err and f"{task.pid}: nice 0 to 4" in err
    code, _, err = llmos(home, "group", "lab", "999998", str(task.pid), "999999")
    assert code == 3 and "999998" in err and "999999" in err and task.stat().group == "lab"
