"""`llmos` from outside: what it writes, where, and how it ends."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.models.store import default_root
from tests.helpers.daemon import ROOT, Daemon, daemon, eventually, processes_of
from userland.cli import COMMANDS, run
from userland.desk import Desk

LLMOS = (sys.executable, "-m", "userland.cli")


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LLMOS_")}
    # A process title would take the place of what /proc shows of the environment.
    ours = {"LLMOS_HOME": str(home), "PYTHONPATH": str(ROOT), "SPT_NOENV": "1"}
    return kept | ours


def llmos(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*LLMOS, *words],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def home(kernel: Daemon) -> Path:
    return kernel.run_dir.parent


@pytest.fixture
def furnished(tmp_path: Path) -> Path:
    """A home of its own with this machine's models in it."""
    (tmp_path / "models").symlink_to(default_root())
    return tmp_path


# --- no kernel ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["ps"], ["free"], ["status"], ["ping"], ["kill", "7"]])
def test_no_kernel_is_69_and_says_how_to_get_one(tmp_path: Path, words: list[str]) -> None:
    done = llmos(tmp_path, *words)
    assert (done.returncode, done.stdout) == (69, "")
    assert "no kernel is running" in done.stderr
    assert "try   llmos up" in done.stderr


def test_down_without_a_kernel_has_nothing_to_do(tmp_path: Path) -> None:
    done = llmos(tmp_path, "down")
    assert (done.returncode, done.stderr) == (0, "no kernel is running\n")


def test_errors_of_json_commands_are_json(tmp_path: Path) -> None:
    done = llmos(tmp_path, "ps", "--json")
    assert done.returncode == 69
    assert json.loads(done.stderr)["error"]["code"] == "ECONNRESET"


def test_up_without_the_model_says_what_to_pull(tmp_path: Path) -> None:
    done = llmos(tmp_path, "up", "-m", "smolm2")
    assert (done.returncode, done.stdout) == (3, "")
    assert "smolm2 is not installed" in done.stderr
    assert "llmos pull smollm2" in done.stderr


def test_up_without_a_directory_for_its_log(furnished: Path) -> None:
    (furnished / "state").touch()
    done = llmos(furnished, "up")
    assert (done.returncode, done.stdout) == (78, "")
    log = furnished / "state" / "kernel.log"
    assert done.stderr.startswith(f"llmos: cannot write the kernel's log {log}: ")
    assert "try   set LLMOS_HOME" in done.stderr


def test_pull_of_an_unknown_model(tmp_path: Path) -> None:
    done = llmos(tmp_path, "pull", "gpt-9")
    assert (done.returncode, done.stdout) == (3, "")
    assert "gpt-9" in done.stderr and "smollm2" in done.stderr


# --- words --------------------------------------------------------------------------------------


def test_a_typo_gets_a_proposal(tmp_path: Path) -> None:
    done = llmos(tmp_path, "stauts")
    assert done.returncode == 2
    assert "did you mean status?" in done.stderr


def test_no_command_is_answered_with_the_help(tmp_path: Path) -> None:
    done = llmos(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: llmos")


@pytest.mark.parametrize("address", ["foo", "ipc://relative", "tcp://host:1", ""])
def test_an_address_that_is_none_is_a_usage_error(tmp_path: Path, address: str) -> None:
    done = llmos(tmp_path, "-H", address, "ps")
    assert (done.returncode, done.stdout) == (2, "")
    assert "it is like ipc:///path/to/kernel.sock" in done.stderr
    assert "LLMOS_HOST" not in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_purpose_and_examples(tmp_path: Path, name: str) -> None:
    done = llmos(tmp_path, name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Examples:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_commands_are_grouped(tmp_path: Path) -> None:
    done = llmos(tmp_path, "--help")
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert set(COMMANDS) <= listed


@pytest.mark.parametrize("words", [["ps"], ["free"], ["status"], ["--help"]])
def test_commands_load_no_heavy_library(home: Path, words: list[str]) -> None:
    program = (
        "import sys; from userland.cli import run; from userland.desk import Desk\n"
        f"assert run(Desk(sys.stdout, sys.stderr), {words!r}) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'jinja2', 'prompt_toolkit'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


# --- with a kernel ------------------------------------------------------------------------------


def rows(done: "subprocess.CompletedProcess[str]") -> list[dict[str, str]]:
    """Read a table whose cells have no blanks."""
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines = done.stdout.splitlines()
    return [dict(zip(header.split(), line.split(), strict=True)) for line in lines]


def test_ps_and_free_agree_on_what_is_used(kernel: Daemon, home: Path) -> None:
    with kernel.connect("holder") as task:
        first, second = task.alloc_ctx(), task.alloc_ctx()
        first.append(range(100))
        second.append(range(40))
        for ctx in (first, second, first.fork()):
            list(ctx.infer(max_tokens=2, text=False))
        table = rows(llmos(home, "ps"))
        holder = next(row for row in table if row["NAME"] == "holder")
        assert (int(holder["PID"]), int(holder["CTX"])) == (task.pid, 3)
        pool = json.loads(llmos(home, "free", "--json").stdout)["data"][0]
        tasks = json.loads(llmos(home, "ps", "--json").stdout)["data"]
        assert sum(row["blocks"] for row in tasks) == pytest.approx(pool["used"])
        assert pool["used"] > 0
        states = ("free", "cached", "used", "limbo", "reserved")
        assert sum(pool[state] for state in states) == pool["total"]


def test_ps_takes_columns_and_an_order(kernel: Daemon, home: Path) -> None:
    with kernel.connect("aa"), kernel.connect("zz"):
        done = llmos(home, "ps", "-o", "name,pid", "--sort", "-name", "--no-headers")
        names = [line.split()[0] for line in done.stdout.splitlines()]
        assert names == sorted(names, reverse=True)
        assert {"aa", "zz", "init"} <= set(names)


@pytest.mark.parametrize("words", [["-o", "pid,bogus"], ["--sort", "bogus"]])
def test_ps_refuses_a_column_that_is_none(home: Path, words: list[str]) -> None:
    done = llmos(home, "ps", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "bogus" in done.stderr and "pid,ppid" in done.stderr


def test_ps_as_json_has_an_order_and_every_field(kernel: Daemon, home: Path) -> None:
    with kernel.connect("aa"), kernel.connect("zz"):
        found = json.loads(llmos(home, "ps", "--json", "--sort", "-name").stdout)["data"]
        names = [row["name"] for row in found]
        assert names == sorted(names, reverse=True)
    refused = llmos(home, "ps", "--json", "-o", "pid")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "every field" in json.loads(refused.stderr)["error"]["message"]
    assert llmos(home, "ps", "--json", "--sort", "bogus").returncode == 2


def test_kill_ends_a_task(kernel: Daemon, home: Path) -> None:
    with kernel.connect("victim") as task:
        ctx = task.alloc_ctx()
        ctx.append(range(50))
        assert llmos(home, "kill", "-KILL", str(task.pid)).returncode == 0
        assert all(row["NAME"] != "victim" for row in rows(llmos(home, "ps")))
        task.abandon()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["kill", "999999"], 3, "999999"),
        (["kill", "-TERM", "1"], 77, "pid 1"),
        (["kill", "-WINCH", "7"], 2, "STOP 19"),
        (["kill", "-63", "1"], 1, "63"),
        (["kill", "seven"], 2, "seven"),
        (["kill"], 2, "PID"),
        (["kill", "-KILL"], 2, "pid"),
    ],
)
def test_kill_refuses(home: Path, words: list[str], code: int, said: str) -> None:
    done = llmos(home, *words)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr


def test_kill_goes_on_after_a_task_that_is_not_there(kernel: Daemon, home: Path) -> None:
    with kernel.connect("victim") as task:
        done = llmos(home, "kill", "-KILL", "999998", str(task.pid), "999999")
        assert done.returncode == 3
        said = done.stderr.splitlines()
        assert [line.startswith("llmos: ") for line in said if "99999" in line] == [True, True]
        assert all(row["NAME"] != "victim" for row in rows(llmos(home, "ps")))
        task.abandon()


def test_free_draws_the_pool(home: Path) -> None:
    done = llmos(home, "free")
    assert done.returncode == 0
    header, line = done.stdout.splitlines()
    assert header.split()[:4] == ["DEVICE", "MODEL", "TIER", "TOTAL"]
    assert line.split()[:4] == ["null0", "null", "device", "4,096"]
    human = llmos(home, "free", "-h").stdout.splitlines()[1]
    assert "KiB" in human


def test_status_and_ping(kernel: Daemon, home: Path) -> None:
    done = llmos(home, "status")
    assert f"pid {kernel.process.pid}" in done.stdout
    assert "null0 is up" in done.stdout
    facts = json.loads(llmos(home, "status", "--json").stdout)["data"]
    assert facts["kernel"]["pid"] == kernel.process.pid
    assert json.loads(llmos(home, "ping", "-c", "3", "--json").stdout)["data"]["count"] == 3


def test_up_leaves_a_running_kernel_alone(kernel: Daemon, furnished: Path) -> None:
    done = llmos(furnished, "--host", kernel.address, "up")
    assert done.returncode == 0
    assert f"kernel {kernel.process.pid} is up already" in done.stderr


@pytest.mark.parametrize("command", ["ps", "down", "up"])
def test_a_kernel_that_hangs_is_not_taken_for_none(
    kernel: Daemon, furnished: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syscalls.client.HELLO_S", 0.2)
    monkeypatch.setenv("LLMOS_HOME", str(furnished))
    err = io.StringIO()
    kernel.process.send_signal(signal.SIGSTOP)
    try:
        code = run(Desk(io.StringIO(), err), ["--host", kernel.address, command])
    finally:
        kernel.process.send_signal(signal.SIGCONT)
    assert code == 124
    assert "did not answer within 0.2 s (ETIMEDOUT)" in err.getvalue()
    assert f"kill -9 {kernel.process.pid} " in err.getvalue()


def test_up_says_what_a_running_kernel_does_not_get(kernel: Daemon, furnished: Path) -> None:
    done = llmos(furnished, "--host", kernel.address, "up", "--kv-mem", "1G", "--deterministic")
    assert done.returncode == 0
    assert "--deterministic, --kv-mem not applied (llmos down stops it)" in done.stderr
    assert "not applied" not in llmos(furnished, "--host", kernel.address, "up").stderr


def test_up_refuses_a_model_that_a_running_kernel_has_not(kernel: Daemon, furnished: Path) -> None:
    done = llmos(furnished, "--host", kernel.address, "up", "-m", "smollm2")
    assert done.returncode == 75
    pid = kernel.process.pid
    assert f"kernel {pid} is up already, with null and not smollm2 (EBUSY)" in done.stderr


def test_output_into_a_closed_pipe_is_no_traceback(home: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*LLMOS, "ps"],
        env=environment(home),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_as_good_as_dev_null(home: Path, closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *LLMOS, "ps"],
        env=environment(home),
        capture_output=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, b"")


# --- up and down on the real model --------------------------------------------------------------


def test_up_and_down(furnished: Path) -> None:
    up = llmos(furnished, "up", "--kv-mem", "64M", "--dtype", "float32")
    assert (up.returncode, up.stdout) == (0, ""), up.stderr
    try:
        assert re.search(
            r"is up after .* s: smollm2 on cpu0\n"
            r"its KV pool takes 6[34]\.\d MiB \(--kv-mem changes it\)\n",
            up.stderr,
        )
        models = json.loads(llmos(furnished, "status", "--json").stdout)["data"]["models"]
        assert [(m["name"], m["dtype"]) for m in models] == [("smollm2", "float32")]
    finally:
        down = llmos(furnished, "down")
    assert (down.returncode, down.stdout) == (0, "")
    assert "has stopped" in down.stderr
    eventually(lambda: not processes_of(furnished), "every process gone")
    assert not (furnished / "run" / "kernel.sock").exists()


def test_ctrl_c_while_the_kernel_comes_up_leaves_nothing(furnished: Path) -> None:
    up = subprocess.Popen(
        [*LLMOS, "up", "--kv-mem", "64M"],
        env=environment(furnished),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert up.stderr is not None
    while "loading" not in up.stderr.readline():
        assert up.poll() is None
    up.send_signal(signal.SIGINT)
    assert up.wait(60) == 130
    up.stderr.close()
    eventually(lambda: not processes_of(furnished), "every process gone")
    assert not (furnished / "run" / "kernel.sock").exists()


def test_up_says_why_a_kernel_ended(furnished: Path) -> None:
    done = llmos(furnished, "up", "--kv-mem", "1K")
    assert done.returncode == 1, done.stderr
    assert "does not fit" in done.stderr and "kv_bytes can be" in done.stderr
    assert "Traceback" not in done.stderr
    eventually(lambda: not processes_of(furnished), "every process gone")


@pytest.mark.parametrize("size", ["-1", "0", "1T", "12Q", "nan", "inf", "1e400"])
def test_up_refuses_a_size_that_is_none(furnished: Path, size: str) -> None:
    done = llmos(furnished, "up", f"--kv-mem={size}")
    assert done.returncode == 2
    assert size in done.stderr
