"""pmap, top, lsdev and dmesg on a kernel that runs, from the host's shell and in llmsh."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.daemon import Daemon
from tests.helpers.json_schema import check_document
from tests.helpers.shell import Typist, check_no_tasks, environment, llmsh, typing

LLMOS = (sys.executable, "-m", "userland.cli")


def llmos(home: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*LLMOS, *words], env=environment(home), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=100,
    )  # fmt: skip


@pytest.fixture
def home(kernel: Daemon) -> Path:
    return kernel.run_dir.parent


def test_pictures_and_pool_agree(kernel: Daemon, home: Path) -> None:
    with kernel.connect("holder") as task:
        first = task.alloc_ctx(name="main")
        first.append(range(1000))
        list(first.infer(max_tokens=2, text=False))
        for fork in first.fork(3):
            list(fork.infer(max_tokens=40, text=False))
        done = llmos(home, "pmap", str(task.pid), "--json")
        assert (done.returncode, done.stderr) == (0, "")
        maps = json.loads(done.stdout)
        check_document(maps)
        assert len(maps["data"]) == 4
        runs = [run for found in maps["data"] for run in found["runs"]]
        shares = sum(run["blocks"] / run["refs"] for run in runs if run["refs"])
        pool = json.loads(llmos(home, "free", "--json").stdout)["data"][0]
        assert shares == pytest.approx(pool["used"])
        assert maps["data"][0]["num_sharers"] == 3
        named = llmos(home, "pmap", "@main").stdout.splitlines()
        assert named[0].split()[:3] == ["PID", "CTX", "START"] and named[1].endswith("main")


def test_the_library_has_them(kernel: Daemon) -> None:
    with kernel.connect("owner") as owner, kernel.connect("other") as other:
        ctx = owner.alloc_ctx(name="mine")
        ctx.append(range(100))
        list(ctx.infer(max_tokens=1, text=False))
        found = other.pmap(ctx.handle, owner.pid)
        assert found == owner.pmap(ctx.handle)
        assert (found.name, found.length) == ("mine", 101)
        rows = owner.log()
        assert [row.number for row in rows] == list(range(rows[0].number, rows[-1].number + 1))
        assert owner.log(rows[-1].number) == rows[-1:]


def test_the_log_tells_of_the_boot(kernel: Daemon, home: Path) -> None:
    done = llmos(home, "dmesg")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.match(rf"\[ +\d\.\d{{6}}\] kern  info kernel {kernel.process.pid} up, ", lines[0])
    assert any(re.search(r"drv   info device null0: epoch 1 begins", line) for line in lines)
    assert any(re.search(r"model info null: up on null0 in epoch 1", line) for line in lines)
    documents = json.loads(llmos(home, "dmesg", "--json", "-f", "model").stdout)
    check_document(documents)
    assert documents["data"] and {row["facility"] for row in documents["data"]} == {"model"}


def test_a_log_that_is_followed(kernel: Daemon, home: Path) -> None:
    """A driver dies while somebody watches; Ctrl-C ends the watch."""
    watch = subprocess.Popen(
        [*LLMOS, "dmesg", "-w", "--json", "-f", "drv"], env=environment(home),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watch.stdout is not None
    seen = [json.loads(watch.stdout.readline())]
    os.kill(kernel.host_pid(), signal.SIGKILL)
    while "begins" not in seen[-1]["data"]["text"] or len(seen) < 2:
        seen.append(json.loads(watch.stdout.readline()))
    for document in seen:
        check_document(document)
    ended = next(d["data"] for d in seen if "ended" in d["data"]["text"])
    assert ended["level"] == "err" and "SIGKILL" in ended["text"]
    watch.send_signal(signal.SIGINT)
    assert watch.wait(60) == 130
    watch.communicate()
    kernel.host_pid()  # it is up again


def test_without_a_kernel_dmesg_says_where_the_last_one_wrote(tmp_path: Path) -> None:
    done = llmos(tmp_path, "dmesg")
    assert (done.returncode, done.stdout) == (69, "") and "try   llmos up\n" in done.stderr
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "kernel.log").touch()
    assert f"cat {tmp_path / 'state' / 'kernel.log'}" in llmos(tmp_path, "dmesg").stderr


def test_lsdev_and_top_in_a_pipe(kernel: Daemon, home: Path) -> None:
    header, row = llmos(home, "lsdev").stdout.splitlines()
    assert header.split() == ["DEV", "DRIVER", "MODEL", "MEM", "BLOCKS", "DTYPE", "STATE", "NOTE"]
    assert row.split()[:3] == ["null0", "null", "null"]
    document = json.loads(llmos(home, "lsdev", "--json").stdout)
    check_document(document)
    done = llmos(home, "top")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("llmos 0.1.0") == 1 and "\x1b" not in done.stdout
    frames = llmos(home, "top", "-b", "-n", "2", "-d", "0.1").stdout.split("\n\nllmos ")
    assert len(frames) == 2 and "step" in frames[1]
    for line in llmos(home, "top", "--json", "-n", "2", "-d", "0.1").stdout.splitlines():
        check_document(json.loads(line))


def test_top_into_a_reader_that_has_had_enough(home: Path) -> None:
    words = " ".join([*LLMOS, "top", "-b", "-d", "0.1"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words} | head -n 1"],
        env=environment(home), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")
    assert done.stdout.startswith("llmos 0.1.0")


# --- in llmsh -----------------------------------------------------------------------------------


def test_the_shell_sees_its_own_contexts_first(kernel: Daemon, home: Path) -> None:
    with kernel.connect("elsewhere") as task:
        ctx = task.alloc_ctx(name="main")
        ctx.append(range(50))
        script = 'set max=5\n"hello" > /dev/null\nfork formal\npmap\npmap @main\npmap @formal -x\n'
        done = llmsh(
            home, script + "ps --contexts -o name,pid\nlsdev\ndmesg -n 1\ntop | head -n 2\n"
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    heads = [at for at, line in enumerate(lines) if line.split()[:2] == ["PID", "CTX"]]
    assert len(heads) == 3
    tables = [lines[a + 1 : b] for a, b in zip(heads, [*heads[1:], None], strict=True)]
    assert {line.split()[-1] for line in tables[0]} == {"main", "formal"}
    assert {line.split()[-1] for line in tables[1]} == {"main"}
    assert f" {task.pid} " not in "\n".join(tables[0] + tables[1])
    assert any(line.startswith("null0") for line in lines)
    assert lines[-2].startswith("llmos 0.1.0") and lines[-1].startswith("tasks ")


def test_a_mistake_in_the_shell_is_its_status(home: Path) -> None:
    done = llmsh(home, "pmap @nowhere\n")
    assert done.returncode == 3 and "llmsh: there is no context 'nowhere'" in done.stderr


@pytest.fixture
def person(kernel: Daemon, home: Path) -> Iterator[Typist]:
    with typing(home) as typist:
        typist.prompt()
        yield typist
    check_no_tasks(kernel)


def test_top_in_the_shell_gives_the_prompt_back(person: Typist) -> None:
    person.type("set max=5; ? hello\r")
    person.prompt()
    person.type("pmap @main\r")
    shown = person.see("█")
    assert re.search(r"ctx \d+ main · pid \d+ · \d+ tok", shown)
    person.type("top -d 0.2\r")
    person.see("step 0.0 ms")
    assert "llmsh" in person.screen()
    person.type("q")
    person.prompt()
    person.type("top -d 0.2 --sort age\r")
    person.see(re.compile(r"PID USER.*\n +1 "))
    person.ctrl("c")
    person.prompt(130)
    person.type("ps -o name --no-headers\r")
    person.see(re.compile("^init$", re.MULTILINE))
    person.prompt()
