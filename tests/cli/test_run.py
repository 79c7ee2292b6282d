"""`llmos run`: a program as a task, which reads, writes, ends and is ended like any program."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.daemon import Daemon, daemon
from tests.helpers.shell import environment

RUN = (sys.executable, "-m", "userland.cli", "run")
AGENT = """
import sys, syscalls
with syscalls.connect() as task:
    ctx = task.alloc_ctx()
    ctx.append([1, 2, 3])
    row = task.stat()
    print(row.name, row.parent > 1, row.contexts, sys.argv[1:], sys.stdin.readline().strip())
"""
SLEEPER = """
import signal, sys, syscalls
def heard(number, frame):
    print("heard", number, flush=True)
    sys.exit(40 + number)
for number in (2, 15):
    if "deaf" not in sys.argv:
        signal.signal(number, heard)
task = syscalls.connect()
print("ready", task.pid, flush=True)
while True:
    signal.pause()
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("home")) as running:
        yield running


def write(folder: Path, name: str, text: str, mode: int = 0o644) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def run(home: Path, *words: str | Path, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*RUN, *map(str, words)], env=environment(home), input=text, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip


def start(home: Path, *words: str | Path) -> "tuple[subprocess.Popen[str], int]":
    """Start a program that says when it is a task; return the command and the task's pid."""
    process = subprocess.Popen(
        [*RUN, *map(str, words)], env=environment(home), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said, pid = process.stdout.readline().split()
    assert said == "ready"
    return process, int(pid)


def test_a_program_is_a_task_with_streams_arguments_and_a_name(home: Path, tmp_path: Path) -> None:
    agent = write(tmp_path, "my poet.py", AGENT)
    done = run(home, agent, "-v", "--", "--name", text="a line\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "my-poet True 1 ['-v', '--', '--name'] a line\n"
    done = run(home, "--name", "poet", "--", agent, text="\n")
    assert done.stdout == "poet True 1 [] \n"


def test_an_executable_is_run_as_it_is(home: Path, tmp_path: Path) -> None:
    script = write(tmp_path, "x", "#!/bin/sh\nread line; echo got $line $1; exit 7\n", 0o755)
    done = run(home, script, "a", text="it\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "got it a\n", "")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 137),
        ("import syscalls; syscalls.connect().exit(); raise SystemExit(5)", 5),
        ("import syscalls, time; syscalls.connect().exit(9)", 0),
    ],
)
def test_the_status_is_the_programs_own(home: Path, tmp_path: Path, code: str, status: int) -> None:
    assert run(home, write(tmp_path, "x.py", code)).returncode == status


@pytest.mark.parametrize(
    ("make", "status", "said"),
    [
        (lambda folder: folder / "none.py", 127, "no such file"),
        (lambda folder: folder, 126, "is a directory"),
        (lambda folder: write(folder, "x", "text"), 126, "chmod +x"),
        (lambda folder: write(folder, "x", "#!/no/such/program\n", 0o755), 126, "cannot start"),
    ],
)  # fmt: skip
def test_what_cannot_be_run(home: Path, tmp_path: Path, make, status: int, said: str) -> None:  # type: ignore[no-untyped-def]
    done = run(home, make(tmp_path))
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_the_programs(home: Path, tmp_path: Path, number: int) -> None:
    process, _ = start(home, write(tmp_path, "x.py", SLEEPER))
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (40 + number, f"heard {int(number)}\n")


def test_a_program_that_a_signal_ends(home: Path, tmp_path: Path) -> None:
    process, _ = start(home, write(tmp_path, "x.py", SLEEPER), "deaf")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_kill_ends_a_program_that_does_not_listen(
    kernel: Daemon, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched = "import syscalls.child; syscalls.child.LINGER_S = 0.1; from userland.cli import main"
    monkeypatch.setattr(sys.modules[__name__], "RUN", (sys.executable, "-c", f"{patched}; main()"))
    process, pid = start(home, "run", write(tmp_path, "x.py", SLEEPER), "deaf")
    with kernel.connect("killer") as task:
        task.kill(pid)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_key_of_the_terminal_is_not_passed_on(home: Path, tmp_path: Path) -> None:
    """The program has it from the terminal. Of two that wait the lower signal is passed on first,
    so one that should not have been would be seen before TERM."""
    telling = (
        "import subprocess as s; sent = s.Popen.send_signal\n"
        "def tell(self, number): print('passed on', int(number), flush=True); sent(self, number)\n"
        "s.Popen.send_signal = tell\n"
        "from userland.cli import main; main()\n"
    )
    counting = (
        "import signal, sys, syscalls\n"
        "signal.signal(2, lambda *_: print('heard 2', flush=True))\n"
        "signal.signal(15, lambda *_: (input(), sys.exit(7)))\n"  # else it may be lost
        "task = syscalls.connect()\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    path = write(tmp_path, "x.py", counting)
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover  a program of its own, with a terminal of its own
        os.execve(RUN[0], [RUN[0], "-c", telling, "run", str(path)], environment(home))
    said = b""

    def see(what: bytes) -> None:
        nonlocal said
        while what not in said:
            said += os.read(terminal, 4096)

    see(b"ready")
    os.write(terminal, b"\x03")
    see(b"heard 2")
    os.kill(pid, signal.SIGTERM)
    see(b"passed on 15")
    os.write(terminal, b"\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    os.close(terminal)
    assert b"passed on 2" not in said and said.count(b"heard 2") == 1


def test_a_program_goes_on_when_the_kernel_stops(tmp_path: Path) -> None:
    """The kernel's end is the program's to notice, and its own status counts."""
    with daemon(tmp_path) as kernel:
        process, _ = start(tmp_path, write(tmp_path, "x.py", SLEEPER))
        kernel.stop()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (55, "heard 15\n")


def test_kill_of_the_commands_own_task_is_ctrl_c(
    kernel: Daemon, home: Path, tmp_path: Path
) -> None:
    process, pid = start(home, write(tmp_path, "x.py", SLEEPER))
    with kernel.connect("killer") as task:
        task.kill(task.stat(pid).parent, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (42, "heard 2\n")
