"""Saves with real processes: what was saved outlives whatever is killed, and goes on as it was."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

import syscalls
from syscalls.errors import EIO, ENOENT, KernelError
from tests.helpers.daemon import NULL, Daemon, daemon, eventually, keeping
from tests.helpers.shell import talking

IDS = [(7 * n + 3) % 251 for n in range(200)]
OLD = [(5 * n + 1) % 251 for n in range(40)]


@contextmanager
def keeper(home: Path, *more: str) -> Iterator[Daemon]:
    """Run a kernel on the null driver that keeps saves."""
    with daemon(home, *NULL, "null:vocab=251", *keeping(home), *more) as kernel:
        with kernel.connect() as task:
            eventually(lambda: task.store().state in ("up", "failed"), "store")
        yield kernel


def answer(context: syscalls.Context, count: int = 20) -> tuple[list[int], int]:
    """Return the next ids of a context, and how many positions needed no computing."""
    stream = context.infer(max_tokens=count, temperature=0, ignore_eos=True, text=False)
    stream.read()
    assert stream.usage is not None
    return stream.ids, stream.usage.cached


def make(task: syscalls.Task, ids: list[int], name: str) -> syscalls.Context:
    """Save a context whose KV is computed."""
    context = task.alloc_ctx()
    context.append(ids)
    answer(context, 1)
    context.trim(len(ids))
    context.save(name)
    return context


@pytest.mark.parametrize("more", [(), ("--host-bytes", str(1 << 20))], ids=["device", "host tier"])
def test_an_answer_goes_on_after_kill_9_of_the_kernel_twice(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    with keeper(tmp_path, *more) as kernel, kernel.connect() as task:
        context = make(task, IDS, "n")
        expected, _ = answer(context)
        assert kernel.stop(signal.SIGKILL) < 0
        with pytest.raises(KernelError):
            context.save("m")
        task.abandon()
    for _ in range(2):
        with keeper(tmp_path, *more) as kernel, kernel.connect() as task:
            assert [(row.name, row.length) for row in task.saves()] == [("n", len(IDS))]
            loaded = task.load_ctx("n")
            assert loaded.loaded is not None and loaded.loaded.note == ""
            ids, cached = answer(loaded)
            assert (ids, cached) == (expected, 192), "and none of its full blocks is computed again"
            assert kernel.stop(signal.SIGKILL) < 0
            task.abandon()


KILLING = """
import sys
from drivers.store import host
from tests.helpers.disks import KillingFiles
host.main(KillingFiles({at}))
"""


def killed_in_a_save(home: Path, at: int) -> bool:
    """Save in a kernel whose store host is killed at a change of the disk; see whether it was."""
    program = home / "python"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, runpy, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n"
        "if sys.argv[1:3] == ['-m', 'drivers.store.host']:\n"
        "    sys.argv = sys.argv[2:]\n"
        f"    exec({KILLING.format(at=at)!r})\n"
        "else:\n"
        f"    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    )
    program.chmod(0o755)
    options = "--run-dir", str(home / "run"), *NULL, "null:vocab=251", *keeping(home)
    code = (
        "import sys; from kernel import main; "
        f"sys.executable = {str(program)!r}; sys.argv = ['llmosd', *{options!r}]; main.main()"
    )
    command = [sys.executable, "-c", code]
    with (
        patch("tests.helpers.daemon.command", lambda *_: command),
        daemon(home) as kernel,
        kernel.connect() as task,
    ):
        eventually(lambda: task.store().state != "opening", "store")
        before = task.store().epoch
        context = task.alloc_ctx()
        context.append(IDS)
        told = False
        try:
            context.save("n")
        except KernelError:
            told = True
        assert context.read() == IDS, "the context is as it was"
        answer(context, 1)
        died = task.store().epoch > before or task.store().state == "failed"
        assert died or not told
        return died


@pytest.mark.parametrize(
    "at", [9, *(pytest.param(at, marks=pytest.mark.full) for at in (1, 3, 6, 12, 15, 18))]
)
def test_a_store_host_that_is_killed_in_a_save_of_a_kernel(tmp_path: Path, at: int) -> None:
    """The kernel lives, and the old save or the new one is there (every operation: sim, unit)."""
    with keeper(tmp_path) as kernel, kernel.connect() as task:
        make(task, OLD, "n")
    assert killed_in_a_save(tmp_path, at)
    with keeper(tmp_path) as kernel, kernel.connect() as task:
        loaded = task.load_ctx("n")
        assert loaded.read() in (OLD, IDS)
        answer(loaded)


def test_a_store_host_that_is_killed_comes_back(tmp_path: Path) -> None:
    with keeper(tmp_path) as kernel, kernel.connect() as task:
        context = make(task, IDS, "n")
        for epoch in (2, 3):
            os.kill(task.store().host_pid, signal.SIGKILL)
            eventually(lambda: task.store().epoch == epoch and task.store().state == "up", "again")  # noqa: B023
            context.save(f"n{epoch}")
        assert [row.name for row in task.saves()] == ["n", "n2", "n3"]
        row = task.store()
        assert (row.saves, row.damaged, "SIGKILL" in row.note) == (3, 0, True)


def test_a_key_that_others_could_have_read(tmp_path: Path) -> None:
    """The kernel runs on without saves and says why; with the right key all is there again."""
    key = tmp_path / "keys" / "root.key"
    with keeper(tmp_path) as kernel, kernel.connect() as task:
        make(task, IDS, "n")
    key.chmod(0o644)
    with keeper(tmp_path) as kernel, kernel.connect() as task:
        row = task.store()
        assert (row.state, row.host_pid) == ("failed", 0)
        assert "mode 0644" in row.note and "chmod 600" in row.hint
        context = task.alloc_ctx()
        context.append(IDS)
        with pytest.raises(EIO, match="mode 0644") as caught:
            context.save("m")
        assert caught.value.hint == row.hint
        with pytest.raises(EIO):
            task.saves()
        answer(context)
    key.chmod(0o600)
    with keeper(tmp_path) as kernel, kernel.connect() as task:
        assert task.load_ctx("n").read() == IDS


def test_a_chat_goes_on_in_another_kernel(tmp_path: Path) -> None:
    with talking(tmp_path, keeps=True) as kernel, kernel.connect() as task:
        eventually(lambda: task.store().state == "up", "store")
        context = task.alloc_ctx(system="Be brief.")
        context.user("Hé?")
        context.infer(max_tokens=6, temperature=0).read()
        context.save("chat")
        turns = context.turns
        context.user("and then?")
        expected = context.infer(max_tokens=6, temperature=0).read()
    with talking(tmp_path, keeps=True) as kernel, kernel.connect() as task:
        eventually(lambda: task.store().state == "up", "store")
        loaded = task.load_ctx("chat")
        assert loaded.turns == turns
        loaded.user("and then?")
        assert loaded.infer(max_tokens=6, temperature=0).read() == expected
        loaded.trim(turns[1].length)
        assert loaded.turns == turns[:2]
        task.drop_save("chat")
        with pytest.raises(ENOENT):
            task.load_ctx("chat")
