"""`llmos down --save` and `llmos up` while a shell waits at its prompt in another terminal."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from syscalls.abi import KernelRow
from tests.helpers.daemon import Daemon
from tests.helpers.shell import check_no_tasks, environment, talking, typing
from userland.bin.up import came_back


@contextmanager
def keeper(home: Path) -> Iterator[Daemon]:
    with talking(home, keeps=True) as running:
        yield running


def down(home: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "userland.cli", "down", *options],
        env=environment(home), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip


def test_a_shell_goes_on_with_the_next_kernel(tmp_path: Path) -> None:
    with typing(tmp_path) as person:
        with keeper(tmp_path) as first:
            person.prompt()
            person.type("set max=5; x=kept; ? hello\r")
            person.see("cut after 5 tokens")
            person.type("fork side\r")
            shown = person.prompt()
            (length,) = re.findall(r"main·(\d+)/8k \$$", shown)
            done = down(tmp_path, "--save", "--grace", "0")
            assert done.returncode == 0, done.stderr
            assert re.search(r"saved: 2 contexts of 1 tasks, \d+ tokens, .*llmos up", done.stderr)
            assert "saving contexts: 2 of 2" in done.stderr
            assert first.process.wait(30) == 0
        person.type("ctx\r")  # before there is a kernel again
        person.see("waiting 30 s for it")
        with keeper(tmp_path) as second:
            person.see("the kernel is back: @main, @side as before")
            row = person.see(re.compile(r"^\* main .*$", re.MULTILINE))
            assert re.search(rf"^\* main +{length} +1 ", row, re.MULTILINE)
            person.type("clear; echo x is $x; ctx use side; ? and now?\r")
            person.see("x is kept")
            person.see(re.compile(r"side·\d+/8k \$$"))
            person.type("ctx use main; undo\r")
            person.see(f"@main: {length} to 0 tokens")
            person.type("exit\r")
            assert person.leave() == 0
            check_no_tasks(second)


def test_chat_goes_on_and_a_kernel_without_its_task_says_so(tmp_path: Path) -> None:
    with typing(tmp_path, command=(sys.executable, "-m", "userland.cli", "chat")) as person:
        with keeper(tmp_path) as first:
            person.see("»")
            person.type("/set max=3\r")
            person.type("hello\r")
            person.see("cut after 3 tokens")
            assert down(tmp_path, "--save").returncode == 0
            assert first.process.wait(30) == 0
        with keeper(tmp_path):
            person.type("again\r")
            person.see("the kernel is back: @main as before")
            person.see(re.compile(r"cut after 3 tokens.*cut after 3 tokens", re.DOTALL))
            assert down(tmp_path).returncode == 0  # without --save
        with keeper(tmp_path):
            person.type("lost\r")
            person.see(re.compile(r"@main: gone with the kernel.*cut after 3.*» *$", re.DOTALL))
            person.ctrl("d")
            person.leave()


def test_a_kernel_that_cannot_save_goes_on(kernel: Daemon, home: Path) -> None:
    done = down(home, "--save")
    assert done.returncode != 0
    assert "the kernel was not stopped: this kernel keeps nothing on disk" in done.stderr
    assert down(home, "--replace").returncode == 2
    assert kernel.process.poll() is None
    with kernel.connect() as task:
        assert task.kernel().restore == ""


def test_what_up_says_of_the_kernel_before() -> None:
    row = KernelRow(1, "x", 0.0, *[0] * 12)
    assert came_back(row, 0) == ""
    row = row._replace(restore="done", restored=1200)
    assert came_back(row, 3) == "1,200 contexts are back; 3 tasks wait for programs\n"
    left = came_back(row._replace(unrestored=2), 3)
    assert left.endswith("2 contexts of the kernel before are not back: llmos dmesg\n")
    waiting = came_back(row._replace(restore="waiting", restored=0, unrestored=9), 0)
    assert waiting == (
        "9 contexts of the kernel before are not back: llmos down and llmos up, or llmos dmesg\n"
    )
