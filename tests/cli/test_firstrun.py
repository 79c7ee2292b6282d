"""`make run` after its installation: from a model's file to an answer, and back to nothing."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from drivers.models.store import default_root
from tests.helpers.daemon import ROOT, daemon, eventually, processes_of
from userland import firstrun

FIRSTRUN = (sys.executable, "-m", "userland.firstrun", "--kv-mem", "64M")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of its own with this machine's models in it."""
    (tmp_path / "models").symlink_to(default_root())
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LLMOS_")}
    # A process title would take the place of what /proc shows of the environment.
    ours = {"LLMOS_HOME": str(home), "PYTHONPATH": str(ROOT), "SPT_NOENV": "1"}
    return kept | ours


def nothing_left(home: Path) -> None:
    eventually(lambda: not processes_of(home), "every process gone")
    assert not (home / "run" / "kernel.sock").exists()


def run(home: Path, script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        FIRSTRUN,
        env=environment(home),
        input=script,
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_a_script_from_nothing_to_an_answer(home: Path) -> None:
    """What the README promises, the installation aside."""
    done = run(home, '"What is the capital of France? One word."\nps\nfree\n')
    assert done.returncode == 0, done.stderr
    answer, tables = done.stdout.split("\n", 1)
    assert "Paris" in answer
    ps, free = tables.split("DEVICE")
    assert ps.split()[:3] == ["PID", "PPID", "USER"] and "llmsh" in ps
    assert free.split()[0] == "MODEL" and "smollm2" in free
    assert "loading" in done.stderr and "stopping kernel" in done.stderr
    nothing_left(home)


def test_the_script_decides_the_status(home: Path) -> None:
    done = run(home, "echo before\nexit 7\necho after\n")
    assert (done.returncode, done.stdout) == (7, "before\n")
    nothing_left(home)


def test_hints_can_be_followed_in_its_shell(home: Path) -> None:
    done = run(home, "llmos status\n")
    assert done.returncode == 0, done.stderr
    assert "cpu0 is up" in done.stdout


def start(home: Path) -> "subprocess.Popen[str]":
    """Start it with a script that does not end, and wait until its kernel is up."""
    process = subprocess.Popen(
        FIRSTRUN,
        env=environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    while "is up after" not in process.stderr.readline():
        assert process.poll() is None
    return process


def test_a_kernel_that_is_up_is_used_as_it_is_and_left(home: Path) -> None:
    with daemon(home) as kernel:
        done = run(home, "ps --no-headers -o name\n")
        assert done.stdout.splitlines()[-1] == "llmsh"
        said = f"kernel {kernel.process.pid} is up already, at {kernel.address}"
        assert done.stderr.startswith(f"{said}; --kv-mem not applied (llmos down stops it)\n")
        assert "stopping" not in done.stderr and kernel.process.poll() is None


def test_a_kernel_that_is_busy_hears_both_signals(capfd: pytest.CaptureFixture[str]) -> None:
    """Signals of a kind merge while they wait: the one that ends the grace would be lost."""
    busy = (
        "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, {2, 15}); print(flush=True)\n"
        "while len(signal.sigpending()) < 2: os.sched_yield()"
    )
    before = signal.getsignal(signal.SIGINT)
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as kernel:
        assert kernel.stdout is not None
        kernel.stdout.readline()
        try:
            firstrun._stop(kernel.pid)
        finally:
            signal.signal(signal.SIGINT, before)
            kernel.kill()
    assert capfd.readouterr().err == f"stopping kernel {kernel.pid}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_signal_leaves_a_kernel_behind(home: Path, number: int) -> None:
    process = start(home)
    os.killpg(process.pid, number)
    assert process.wait(60) != 0
    assert process.stdin is not None and process.stderr is not None
    process.stdin.close()
    process.stderr.close()
    nothing_left(home)


def test_a_terminal_that_goes_away_leaves_nothing(home: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        FIRSTRUN,
        env=environment(home) | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    while b"is up after" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    process.wait(60)
    nothing_left(home)


def test_a_person_leaves_with_0_whatever_the_last_command_gave(home: Path) -> None:
    """Else make would say that the run has failed."""
    program, *options = FIRSTRUN
    env = environment(home) | {"TERM": "xterm"}
    typist = pexpect.spawn(
        program, options, env=env, timeout=60, dimensions=(24, 80), encoding="utf-8"
    )
    typist.expect_exact("8k")
    typist.send("false\r")
    typist.expect_exact("\u2717")
    typist.send("\x04")
    typist.expect(pexpect.EOF)
    assert typist.wait() == 0
    nothing_left(home)
