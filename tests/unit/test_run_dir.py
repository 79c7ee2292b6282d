"""The run directory: whose it must be, what may be in its way, and that one kernel holds it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel.config import Config
from kernel.ipc import Busy, RunDir, Unsafe


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "deep" / "run")
    assert run_dir.path.stat().st_mode & 0o7777 == 0o700
    run_dir.close()


def test_only_one_may_hold_it_and_the_holder_is_not_disturbed(tmp_path: Path) -> None:
    first = RunDir(tmp_path / "run")
    first.socket.write_text("the first one's")
    for _ in range(3):
        with pytest.raises(Busy, match=str(os.getpid())):
            RunDir(tmp_path / "run")
    assert first.socket.read_text() == "the first one's"
    assert (first.path / "kernel.lock").read_text() == str(os.getpid())
    first.close()
    RunDir(tmp_path / "run").close()


def test_what_a_dead_kernel_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    (path / "kernel.sock").write_text("stale")
    (path / "kernel.lock").write_text("1")  # init's pid: the file says nothing, the lock does
    run_dir = RunDir(path)
    assert not run_dir.socket.exists()
    run_dir.close()


def mode(bits: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        path.chmod(bits)

    return make


def a_file(path: Path) -> None:
    path.write_text("")


def a_link(path: Path) -> None:
    (path.parent / "mine").mkdir(mode=0o700)
    path.symlink_to(path.parent / "mine")


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


def lock_is_a_link(path: Path) -> None:
    path.mkdir(mode=0o700)
    (path / "kernel.lock").symlink_to(path.parent / "victim")


def socket_is_a_directory(path: Path) -> None:
    path.mkdir(mode=0o700)
    (path / "kernel.sock").mkdir()


UNSAFE = [
    mode(0o755), mode(0o750), mode(0o777), mode(0o701), mode(0o500), mode(0o1700),
    a_file, a_link, a_dangling_link, below_a_file, lock_is_a_link, socket_is_a_directory,
]  # fmt: skip


@pytest.mark.parametrize("make", UNSAFE)
def test_what_is_not_safe_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "home" / "run"
    path.parent.mkdir()
    make(path)
    with pytest.raises(Unsafe, match=str(tmp_path)) as refusal:
        RunDir(path)
    assert "\n" not in str(refusal.value)
    assert not (path.parent / "victim").exists()


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with pytest.raises(Unsafe, match=f"owner {mine} .* owner {mine + 1} "):
        RunDir(tmp_path / "run")


@pytest.mark.parametrize(
    "options",
    [
        ("--block-size", "0"), ("--prefill-chunk", "0"), ("--num-blocks", "-1"),
        ("--hang-s", "nan"), ("--step-s", "0"), ("--max-sessions", "0"), ("--nonsense", "1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_options_are_told_and_nothing_is_made(tmp_path: Path, options: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "kernel.main", "--run-dir", str(tmp_path / "run"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert options[0] in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_defaults_are_legal() -> None:
    Config(Path("/run"))  # raises ValueError if one is not
