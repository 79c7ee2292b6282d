"""`llmos explain`: every code that a person can meet has its entry."""

import errno
import json
import re
from io import StringIO
from pathlib import Path

import pytest

from syscalls.errors import Errno
from userland import exits
from userland.catalogue import ENTRIES, EXITS, OTHERS, number_of
from userland.cli import COMMANDS, run
from userland.desk import Desk

ROOT = Path(__file__).resolve().parents[2]


def explain(*words: str) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    code = run(Desk(out, err), ["explain", *words])
    return code, out.getvalue(), err.getvalue()


def test_every_errno_and_exit_code_is_there() -> None:
    assert list(ENTRIES) == [*(code.name for code in Errno), *OTHERS]
    sources = [*(ROOT / "userland").rglob("*.py"), *(ROOT / "drivers" / "models").rglob("*.py")]
    said = {name for path in sources for name in re.findall(r'"(E[A-Z0-9]{3,})"', path.read_text())}
    said &= {*errno.errorcode.values(), *(code.name for code in Errno)}
    assert {"ENOENT", "ENETUNREACH"} <= said <= ENTRIES.keys()
    assert {exits.code_of(name) for name in ENTRIES} <= EXITS.keys()
    documented = re.findall(r"(?<![\w.])(\d+)(?= \w)", (exits.__doc__ or "").replace("126,", ""))
    assert {int(code) for code in documented} <= EXITS.keys()
    for entry in ENTRIES.values():
        assert entry.causes and entry.steps


@pytest.mark.parametrize("name", ENTRIES)
def test_an_error_is_explained_with_cause_and_next_step(name: str) -> None:
    code, out, err = explain(name)
    assert (code, err) == (0, "")
    assert out.startswith(f"{name} (errno {number_of(name)}): ")
    assert "\n  why   " in out and "\n  try   " in out
    assert out.endswith(f"\n  exit  {exits.code_of(name)}\n")
    assert explain(name.lower())[1] == out


def test_an_exit_code_names_its_errors() -> None:
    code, out, _ = explain("75")
    assert code == 0 and out.startswith("75: try again")
    assert "EAGAIN: Not now" in out and "ENOMEM" in out and "ENOENT" not in out
    assert explain("143")[1] == "143: ended by signal 15\n"
    assert explain("1001")[1].startswith("EBADCTX (errno 1001)")


def test_a_number_may_be_a_task_as_well() -> None:
    assert explain("75")[2] == "a task of that number: explain -p 75\n"
    assert explain("75", "--json")[2] == explain("EIO")[2] == ""


def test_a_code_that_is_none() -> None:
    code, out, err = explain("ENOMEMM")
    assert (code, out) == (3, "") and "llmos explain ENOMEM" in err
    assert json.loads(explain("--json", "EXX")[2])["error"]["code"] == "ENOENT"


def test_the_list_has_all() -> None:
    _, out, _ = explain()
    assert {line.split()[0] for line in out.splitlines()} == {*ENTRIES, *map(str, EXITS)}


def test_what_one_is_told_to_try_can_be_tried() -> None:
    said = [*EXITS.values(), *(step for entry in ENTRIES.values() for step in entry.steps)]
    named = {name for text in said for name in re.findall(r"\bllmos (\w+)", text)}
    assert named and named <= COMMANDS.keys()
