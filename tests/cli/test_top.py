"""top: the model from samples, and the screen on a terminal, which it always gives back."""

import os
import re
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pyte
import pytest
from rich.console import Console

from syscalls.abi import KernelRow
from tests.helpers.daemon import ROOT, eventually
from tests.helpers.fake_kernel import FakeKernel
from tests.helpers.scene import DEVICES, KERNEL, POOLS, TASKS, scene
from userland.proc import Usage, usage
from userland.rates import Sample, rates_of
from userland.topmodel import TopModel
from userland.topscreen import Screen

# --- the model ----------------------------------------------------------------------------------


def sample(seconds: float = 0.0, cpu_s: float | None = None, **risen: float) -> Sample:
    kernel = KERNEL._replace(
        uptime_s=KERNEL.uptime_s + seconds,
        **{name: getattr(KERNEL, name) + by for name, by in risen.items()},
    )
    used = None if cpu_s is None else Usage(cpu_s, 1 << 30)
    return Sample(1e9 + seconds, kernel, TASKS, POOLS, DEVICES, used)


def test_rates_are_of_the_time_between_two_samples() -> None:
    rates = rates_of(
        sample(4.0, 13.0, output_tokens=200, prefill_tokens=1000, decode_tokens=190, steps=100,
               step_seqs=250, step_us=2_000_000, prompt_tokens=800, cached_tokens=600,
               first_tokens=2, first_token_s=0.5, evicted_blocks=8, copied_blocks=4, calls=40,
               in_blocks=12, out_blocks=20, disk_in_blocks=24, disk_out_blocks=28, lost_tokens=32),
        sample(0.0, 10.0),
    )  # fmt: skip
    assert (rates.seconds, rates.output_tok_s, rates.prefill_tok_s) == (4.0, 50.0, 250.0)
    assert (rates.steps_s, rates.step_ms, rates.batch) == (25.0, 20.0, 2.5)
    assert (rates.step_prefill_tok, rates.step_decode_tok) == (10.0, 1.9)
    assert (rates.hit, rates.first_token_s, rates.cpu) == (0.75, 0.25, 0.75)
    assert (rates.evicted_s, rates.copied_s, rates.calls_s) == (2.0, 1.0, 10.0)
    assert (rates.in_s, rates.out_s, rates.disk_in_s, rates.disk_out_s) == (3.0, 5.0, 6.0, 7.0)
    assert rates.lost_tok_s == 8.0


def test_lower_tiers_have_lines_of_their_own_with_their_own_rates() -> None:
    disk = POOLS[1]._replace(tier="disk", total=4096, used=8, cached=0, free=4088)
    model = TopModel(2)
    model.feed(sample()._replace(pools=[*POOLS[:2], disk]))
    after = sample(2.0, in_blocks=10, out_blocks=20, disk_in_blocks=30, disk_out_blocks=40)
    model.feed(after._replace(pools=[*POOLS[:2], disk]))
    host, on_disk = (line for line in model.header(120, False) if line.startswith(("host", "disk")))
    assert host.startswith("host smollm2 [Pc....")
    assert host.endswith("24/1,024 blocks 2%   in 5/s out 10/s")
    assert on_disk.endswith("8/4,096 blocks <1%   in 15/s out 20/s")
    assert not any("lost" in line for line in model.header(120, False))
    model.feed(sample(4.0, lost_tokens=64)._replace(pools=POOLS))
    assert any(line.startswith("lost 32.0 tok/s") for line in model.header(80, False))


def test_nothing_happened_is_not_a_division_by_nothing() -> None:
    for seconds in (0.0, 2.0):
        rates = rates_of(sample(seconds), sample())
        assert (rates.output_tok_s, rates.step_ms, rates.batch) == (0.0, 0.0, 0.0)
        assert (rates.hit, rates.first_token_s, rates.cpu) == (None, None, None)


def test_another_kernel_has_no_rates_against_the_one_before() -> None:
    model = TopModel(2)
    model.feed(sample())
    restarted = sample()._replace(kernel=KernelRow(*(0,) * len(KernelRow._fields))._replace(pid=9))
    model.feed(restarted)
    assert model.rates_now is None


def test_the_order_and_who_is_selected() -> None:
    model = TopModel(2)
    model.feed(sample())
    grown = [t._replace(output_tokens=t.output_tokens + 10 * (t.pid == 43), age_s=t.age_s + 2)
             for t in TASKS]  # fmt: skip
    model.feed(sample(2.0)._replace(tasks=grown))
    orders = {}
    for key in "PMTN":
        model.sort = key
        orders[key] = [task.pid for task in model.tasks]
    assert orders["P"][0] == 43 and model.rates.of(43) == 5.0
    assert orders["M"] == [41, 42, 43, 57, 1]
    assert orders["T"] == [1, 41, 57, 42, 43]
    assert orders["N"] == [1, 41, 42, 43, 57]
    model.select(0)
    model.select(1)
    assert model.selected == 41
    model.sort = "M"
    model.select(1)
    assert model.selected == 42, "from where it was"
    model.select(-10)
    assert model.selected == 41
    model.select(99)
    assert model.selected == 1
    model.feed(sample(3.0)._replace(tasks=TASKS[2:]))
    assert model.selected_task() is None
    model.select(1)
    assert model.selected == 42, "whoever is first, if it has ended"


def test_a_tree_has_children_behind_their_parents_in_the_order_that_was_chosen() -> None:
    model = TopModel(2)
    model.feed(sample())
    model.tree = True
    for key, pids in (("N", [1, 41, 42, 43, 57]), ("M", [1, 41, 42, 43, 57])):
        model.sort = key
        assert [task.pid for task in model.tasks] == pids
    names = [line.split()[-1] for line in model.table(200)[1:]]
    assert names == ["init", "\\_llmsh", "\\_formal", "\\_casual", "\\_researcher"]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("fancy", [True, False])
def test_what_is_above_the_table_fits(width: int, fancy: bool) -> None:
    model = TopModel(2)
    model.feed(sample(0.0, 1.0))
    model.feed(sample(2.0, 2.0, output_tokens=1e6, prefill_tokens=1e7, steps=1, step_us=1e6))
    for line in model.header(width, fancy):
        assert len(line) <= width
        assert fancy or line.replace("…", "").isascii()
    if width >= 80:
        assert "cpu 50% of 2" in model.header(width, fancy)[0]
        assert max(map(len, model.table(width))) <= width


def test_many_pools_are_not_the_whole_screen() -> None:
    model = TopModel(2)
    model.feed(sample()._replace(pools=POOLS * 10))
    assert len(model.header(80, True)) < 12
    assert any("26 more pools" in line for line in model.header(80, True))


def test_a_process_of_the_host() -> None:
    mine = usage(os.getpid())
    assert mine is not None and mine.rss_bytes > 1 << 20 and mine.cpu_s > 0
    assert usage(2**22 + 1) is None


# --- the screen ---------------------------------------------------------------------------------


class Person:
    """Somebody in front of a terminal of 80 by 24 on which top runs."""

    def __init__(self, kernel: FakeKernel, home: Path, *options: str) -> None:
        words = ["-m", "userland.cli", "-H", kernel.address, "top", "-d", "0.2", *options]
        env = {k: v for k, v in os.environ.items() if not k.startswith("LLM")}
        env |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", "LLMOS_HOME": str(home)}
        env.pop("COLUMNS", None)
        env.pop("LINES", None)
        self.child = pexpect.spawn(
            sys.executable,
            words,
            env=env,
            cwd=str(ROOT),
            dimensions=(24, 80),
            timeout=60,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup make test
        )  # type: ignore[arg-type]
        self.before = termios.tcgetattr(self.child.fileno())
        self.raw = b""  # all that it has written
        self.mark = 0
        self._screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self._screen)

    def shown(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def _read(self) -> bool:
        try:
            chunk = self.child.read_nonblocking(65536, timeout=0.2)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += chunk
        self._stream.feed(chunk)
        return True

    def see(self, pattern: str) -> str:
        return self.watch(lambda: re.search(pattern, self.shown(), re.MULTILINE), pattern)

    def since(self) -> bytes:
        """What it has written since `mark` was set."""
        return self.raw[self.mark :]

    def watch(self, condition: Callable[[], Any], what: str) -> str:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, f"did not see {what} on\n{self.shown()}"
            assert self._read() or condition(), f"ended before {what} was on\n{self.shown()}"
        return self.shown()

    def ends(self) -> int:
        """Wait for the end; the terminal must be as it was."""
        while self._read():
            pass
        modes = termios.tcgetattr(self.child.fileno())
        self.child.close()
        assert modes == self.before, "the terminal's modes are as they were"
        assert self.raw.rindex(b"\x1b[?1049l") > self.raw.rindex(b"\x1b[?1049h")
        assert self.raw.rindex(b"\x1b[?25h") > self.raw.rindex(b"\x1b[?25l")
        assert b"Traceback" not in self.raw
        status = self.child.exitstatus
        return status if status is not None else -int(self.child.signalstatus or 0)


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    with scene() as standing:
        yield standing


@contextmanager
def sitting(kernel: FakeKernel, home: Path, *options: str) -> Iterator[Person]:
    person = Person(kernel, home, *options)
    try:
        yield person
    finally:
        if person.child.isalive():
            person.child.kill(signal.SIGKILL)
        person.child.close()


def test_keys(kernel: FakeKernel, tmp_path: Path) -> None:
    """One sitting: order, selection, pause, kill, and its refusal; then q."""
    with sitting(kernel, tmp_path) as person:
        shown = person.see(r"^  PID USER")
        assert "KV cpu0 smollm2 [▓█" in shown and "cuda0 is failed" in shown
        assert shown.splitlines()[-1].startswith("q quit")
        assert max(map(len, shown.splitlines())) <= 80
        person.see(r"decode .* tok/s +prefill")
        person.child.send("V")
        person.see(r"\\_llmsh.*\n.*  \\_")
        person.child.send("vT")
        person.see(r"PID USER.*\n    ?1 ")
        person.child.send("\x1b[B")
        person.see(r"^> +1 ")
        person.child.send("\x1b[B")
        person.see(r"^> +41 ")
        person.child.send("k")
        person.see(r"^End task 41 \(llmsh\) with TERM\? y or n")
        person.child.send("n")
        person.see(r"^q quit")
        assert not any(request.row.name == "kill" for request in kernel.requests)
        person.child.send("ky")
        person.see(r"^task 41 got TERM")
        killed = [request.args.pid for request in kernel.requests if request.row.name == "kill"]
        assert killed == [41]
        person.child.send(" ")
        person.see(r"^PAUSED")
        seen = len(kernel.requests)
        start = time.monotonic()
        person.watch(lambda: time.monotonic() > start + 0.4, "the time of two looks")
        person.child.send("Nx?\x1bOAh")  # some of these mean nothing here
        person.see(r"^> +1 ")
        assert len(kernel.requests) == seen, "nothing is asked while it is paused"
        person.child.send("q")
        assert person.ends() == 0


@pytest.mark.parametrize(
    ("end", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), ("\x03", 130)],
    ids=["INT", "TERM", "HUP", "Ctrl-C"],
)
def test_however_it_ends_the_terminal_is_as_it_was(
    kernel: FakeKernel, tmp_path: Path, end: Any, status: int
) -> None:
    with sitting(kernel, tmp_path) as person:
        person.see("researcher")
        if isinstance(end, str):
            person.child.send(end)
        else:
            person.child.kill(end)
        assert person.ends() == status


def test_a_terminal_that_takes_nothing_is_left_as_it_was() -> None:
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    handler = signal.getsignal(signal.SIGWINCH)
    with open(os.devnull) as out, pytest.raises(OSError), Screen(out, Console(file=out), theirs):
        raise AssertionError("it was entered")
    assert termios.tcgetattr(theirs) == before
    assert signal.getsignal(signal.SIGWINCH) is handler
    os.close(ours)
    os.close(theirs)


def test_a_kernel_that_goes_away(kernel: FakeKernel, tmp_path: Path) -> None:
    with sitting(kernel, tmp_path) as person:
        person.see("researcher")
        kernel.replace["snapshot"] = lambda _: "die"
        assert person.ends() == 69
        assert b"ECONNRESET" in person.raw.split(b"\x1b[?1049l")[-1], "said where it can be read"


def test_a_size_that_changes(kernel: FakeKernel, tmp_path: Path) -> None:
    with sitting(kernel, tmp_path, "-d", "60") as person:
        person.see(r"^decode")  # the second look, and the last one for a minute
        person.mark = len(person.raw)
        person.child.setwinsize(10, 60)
        person.watch(lambda: b"\x1b[J" in person.since(), "a frame of the new size")
        last = person.since().split(b"\x1b[H")[-1].decode()
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last).split("\r\n")
        assert len(lines) == 10 and max(map(len, lines)) <= 60
        assert "USER" not in last and "MODEL" not in last, "they give way"
        person.child.setwinsize(3, 20)
        person.mark = len(person.raw)
        person.child.send("+")
        person.watch(lambda: b"\x1b[J" in person.since(), "a frame of three lines")
        person.child.send("q")
        assert person.ends() == 0


def test_ctrl_z_gives_the_terminal_back_for_a_while(kernel: FakeKernel, tmp_path: Path) -> None:
    with sitting(kernel, tmp_path) as person:
        person.see("researcher")
        person.child.kill(signal.SIGTSTP)
        person.watch(lambda: b"\x1b[?1049l" in person.since(), "the old screen")
        process = psutil.Process(person.child.pid)
        eventually(lambda: process.status() == psutil.STATUS_STOPPED, "stopped")
        assert termios.tcgetattr(person.child.fileno()) == person.before
        person.mark = len(person.raw)
        person.child.kill(signal.SIGCONT)
        person.watch(lambda: b"\x1b[?1049h" in person.since(), "the screen again")
        person.child.send("q")
        assert person.ends() == 0


def test_first_paint_comes_before_any_wait(kernel: FakeKernel, tmp_path: Path) -> None:
    """With an hour between two looks there is a picture all the same, and it can be left."""
    with sitting(kernel, tmp_path, "-d", "3600") as person:
        person.see("researcher")
        person.child.send("q")
        assert person.ends() == 0


def test_frames_end_by_themselves(kernel: FakeKernel, tmp_path: Path) -> None:
    with sitting(kernel, tmp_path, "-n", "2") as person:
        assert person.ends() == 0
        assert person.raw.count(b"\x1b[H") == 2
