"""llmos limit and llmos usage, on a kernel with the null driver and on programs that run."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import syscalls
from syscalls import Task
from syscalls.session import Signalled
from tests.helpers.daemon import NULL, Daemon, daemon, eventually, keeping
from tests.helpers.shell import check_no_tasks, environment

LLMOS = (sys.executable, "-m", "userland.cli")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def task(kernel: Daemon) -> Iterator[Task]:
    with kernel.connect("agent") as holder:
        yield holder
    check_no_tasks(kernel)


def llmos(kernel: Daemon, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*LLMOS, *words], env=environment(kernel.run_dir.parent), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def test_an_agent_is_limited_from_outside(kernel: Daemon, task: Task) -> None:
    done = llmos(kernel, "limit", str(task.pid), "output_ids", "6", "--soft", "4")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    context = task.alloc_ctx()
    context.append([1, 2, 3])
    with pytest.raises(syscalls.EDQUOT) as refused:
        context.infer(max_tokens=20, temperature=0.0).read()
    assert dict(refused.value.details) == {"limit": 6, "used": 6, "account": task.pid}
    assert context.stat().length == 3 + 6
    assert Signalled(24) in task.caller.session.events
    shown = llmos(kernel, "limit").stdout.split()
    assert shown[-7:] == ["task", str(task.pid), "agent", "output_ids", "6", "4", "6"]
    rows = json.loads(llmos(kernel, "limit", "--json").stdout)["data"]
    assert [(row["pid"], row["used"], row["hard"]) for row in rows] == [(task.pid, 6, 6)]
    assert llmos(kernel, "limit", str(task.pid), "output_ids", "none").returncode == 0
    context.infer(max_tokens=20, temperature=0.0).read()
    assert context.stat().length == 3 + 6 + 20
    assert llmos(kernel, "limit").stdout.count("\n") == 1


def test_usage_of_a_user_is_that_of_its_tasks_and_of_those_that_have_gone(
    kernel: Daemon, task: Task
) -> None:
    context = task.alloc_ctx()
    context.append([5, 6, 7])
    context.infer(max_tokens=3, temperature=0.0).read()
    rows = json.loads(llmos(kernel, "usage", "--by", "task", "--json").stdout)["data"]
    (mine,) = (row for row in rows if row["pid"] == task.pid)
    assert (mine["input_ids"], mine["output_ids"], mine["requests"]) == (3, 3, 1)
    assert mine["device_blocks"] == 1 and mine["energy_uj"] is None
    owner, root = (
        next(row for row in json.loads(llmos(kernel, "usage", "--json").stdout)["data"]
             if row["kind"] == kind) for kind in ("owner", "root")
    )  # fmt: skip
    assert owner["output_ids"] == root["output_ids"] >= mine["output_ids"]
    assert task.stat().device_us == mine["device_us"] > 0
    assert "not measured" in llmos(kernel, "usage").stdout


def test_what_a_user_has_used_outlives_the_kernel(tmp_path: Path) -> None:
    options = *NULL, "null:vocab=251", *keeping(tmp_path)
    for count in (1, 2):
        with daemon(tmp_path, *options) as kernel:
            with kernel.connect("agent") as task:
                eventually(lambda: task.store().state == "up", "store")
                context = task.alloc_ctx()
                context.append([5, 6, 7])
                context.infer(max_tokens=3, temperature=0.0).read()
            rows = json.loads(llmos(kernel, "usage", "--json").stdout)["data"]
            owner = next(row for row in rows if row["kind"] == "owner")
            assert (owner["input_ids"], owner["output_ids"]) == (3 * count, 3 * count)
            if count == 1:
                assert llmos(kernel, "limit", "--mine", "output_ids", "8").returncode == 0
            assert llmos(kernel, "limit", "--no-headers").stdout.count("\n") == 1
            assert "no saves" in llmos(kernel, "ctx", "saves").stderr


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (("7",), "which limit?", 2),
        (("x", "output_ids", "5"), "not a pid", 2),
        (("1", "cookies", "5"), "no resource 'cookies'", 2),
        (("1", "output_ids", "many"), "no amount", 2),
        (("--group", "none", "output_ids", "5"), "no group none", 3),
        (("--mine", "--group", "x", "output_ids", "5"), "not of both", 2),
        (("--mine", "output_ids", "5", "--soft", "6"), "above the hard one", 1),
    ],
)
def test_what_is_wrong_is_said(
    kernel: Daemon, words: tuple[str, ...], said: str, code: int
) -> None:
    done = llmos(kernel, "limit", *words)
    assert said in done.stderr and done.returncode == code, done.stderr
