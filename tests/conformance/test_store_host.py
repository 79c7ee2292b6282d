"""The process around the store: the same store as in loopback, dies alone, never outlives the
kernel, tells nobody its keys; killed at any moment it leaves the old save or the new one."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from drivers.store import base, wire
from drivers.store.base import SaveState
from drivers.store.files import Files
from kernel.process_link import LinkDown
from tests.helpers.rig import ROOT
from tests.helpers.store_client import (
    BLOCK_BYTES,
    OWNER,
    Client,
    Content,
    Refused,
    Window,
    client,
    content,
    host,
)

SOON_S = 10.0
AREA = base.Area(0, BLOCK_BYTES, b"\x17" * 32, "bfloat16", "l")
Start = Callable[..., Client]


@pytest.fixture
def window() -> Iterator[Window]:
    made = Window()
    yield made
    made.close()


@pytest.fixture
def start(window: Window, tmp_path: Path) -> Iterator[Start]:
    """Start a host on a folder of the test's; it is gone when the test ends."""
    with ExitStack() as stack:

        def start(opened: bool = True, **how: Any) -> Client:
            found = stack.enter_context(host(window, **how))
            if opened:
                open_on(found, tmp_path)
            return found

        yield start


def open_on(store: Client, folder: Path) -> base.Opened:
    return store.open(f"{folder}/state", f"{folder}/keys", swap_bytes=1 << 20)


def ended(link: Any) -> str:
    """Wait for a host's end; return what the link says of it."""
    with pytest.raises(LinkDown) as caught:
        while True:
            assert select.select([link.fileno()], [], [], SOON_S)[0], "it does not end"
            link.receive()
    return str(caught.value)


# --- the same store -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loopback", "process"])
def test_saves_and_swap_through_either_link(kind: str, window: Window, tmp_path: Path) -> None:
    with client(Files(), window) if kind == "loopback" else host(window) as store:
        opened = open_on(store, tmp_path)
        assert opened.swap_bytes == 1 << 20 and opened.epoch == 1
        assert (opened.host_pid == os.getpid()) == (kind == "loopback")
        store.save("n", content(1))
        store.save("n", content(2))
        assert store.load("n").content == content(2)
        window.put(0, b"a" * BLOCK_BYTES)
        block = base.Block(3, 0, OWNER, b"", 1)
        assert store.ask(base.SwapOut(store.job(), AREA, 0, (block,))).states == b"\0"
        window.put(0, bytes(BLOCK_BYTES))
        assert store.ask(base.SwapIn(store.job(), AREA, 0, (block,))).states == b"\0"
        assert window.take(0) == b"a" * BLOCK_BYTES
        with pytest.raises(Refused, match="no save of this name"):
            store.load("m")
        store.drop("n")
        assert store.rows() == []


def test_messages_may_be_sent_ahead_and_are_answered_in_order(start: Start) -> None:
    """A save in one go; the answers of a lane come in its order, and a fault faults the rest."""
    store = start()
    what = content(1)
    for number, block in enumerate(what.blocks):
        store.window.put(number * BLOCK_BYTES, block)
    block = base.Block(3, 0, OWNER, b"", 1)
    messages: list[Any] = [
        base.BeginSave(1, OWNER, "n", what.meta), base.AddBlocks(1, 0, 0, (0, BLOCK_BYTES)),
        base.SwapOut(2, AREA, 0, (block,)), base.AddIds(1, 0, bytes(44)), base.CommitSave(1),
        base.SwapIn(3, AREA, 0, (block,)), base.CommitSave(1), base.AddIds(1, 0, bytes(4)),
        base.OpenSave(4, OWNER, "n", 0), base.FreeSlots(5, AREA, (3,)),
    ]  # fmt: skip
    for message in messages:
        store.link.send(message)
    answers = [store.answer() for _ in messages]
    assert [(type(a).__name__, a.job) for a in answers if a.job in (1, 4)] == [
        ("Done", 1), ("Done", 1), ("Done", 1), ("Saved", 1), ("Fault", 1), ("Fault", 1),
        ("Found", 4),
    ]  # fmt: skip
    assert [(type(a).__name__, a.job) for a in answers if a.job in (2, 3, 5)] == [
        ("Blocks", 2), ("Blocks", 3), ("Done", 5),
    ]  # fmt: skip


def test_a_window_that_has_grown(start: Start) -> None:
    store = start()
    end = os.fstat(store.window.fd).st_size
    block = base.Block(0, end, OWNER, b"", 1)
    with pytest.raises(Refused, match=f"it has {end}"):
        store.ask(base.SwapOut(store.job(), AREA, 0, (block,)))
    os.ftruncate(store.window.fd, 2 * end)
    os.pwrite(store.window.fd, b"b" * BLOCK_BYTES, end)
    assert store.ask(base.SwapOut(store.job(), AREA, 0, (block,))).states == b"\0"
    os.pwrite(store.window.fd, bytes(BLOCK_BYTES), end)
    assert store.ask(base.SwapIn(store.job(), AREA, 0, (block,))).states == b"\0"
    assert os.pread(store.window.fd, BLOCK_BYTES, end) == b"b" * BLOCK_BYTES


# --- its end --------------------------------------------------------------------------------------


def test_a_killed_host_is_told_and_can_be_started_again(start: Start, tmp_path: Path) -> None:
    store = start()
    store.save("n", content(1))
    block = base.Block(0, 0, OWNER, b"", 1)
    store.ask(base.SwapOut(store.job(), AREA, 0, (block,)))
    pid = store.link.host_pid
    os.kill(pid, signal.SIGKILL)
    assert f"store: store host {pid} ended (signal SIGKILL)" in ended(store.link)
    assert store.link.fileno() is None and store.link.host_pid == 0
    with pytest.raises(LinkDown, match="not running"):
        store.link.send(base.Stats(1))
    store.link.start()
    assert open_on(store, tmp_path).num_saves == 1
    assert store.load("n").content == content(1)
    states = store.ask(base.SwapIn(store.job(), AREA, 0, (block,))).states
    assert states == b"\1", "swap went with it"


def test_close_finishes_what_was_sent(start: Start) -> None:
    store = start()
    job = store.begin("n", content(1))
    store.link.send(base.CommitSave(job))
    store.link.send(base.Close())
    assert isinstance(store.answer(), base.Saved)
    assert "(exit 0)" in ended(store.link)


def test_the_kernels_end_ends_it(start: Start) -> None:
    store = start()
    pidfd = os.pidfd_open(store.link.host_pid)
    store.link._socket.shutdown(socket.SHUT_RDWR)
    assert select.select([pidfd], [], [], SOON_S)[0]
    os.close(pidfd)


def test_it_dies_with_its_parent_though_the_socket_is_open(window: Window) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "drivers.store.host", f"--socket={theirs.fileno()}"]
    script = (
        "import signal, subprocess\n"
        f"subprocess.Popen({command!r}, pass_fds=[{theirs.fileno()}])\n"
        "signal.pause()\n"
    )
    with ours, theirs:
        middle = subprocess.Popen(
            [sys.executable, "-c", script], pass_fds=[theirs.fileno()], cwd=ROOT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        ours.send(wire.encode(base.Open(*base.ABI, wire.schema(), 1, "", "", 0)))
        opened = wire.decode(ours.recv(wire.MAX_MESSAGE))
        pidfd = os.pidfd_open(opened.host_pid)
        assert not select.select([pidfd], [], [], 0)[0]
        middle.kill()
        middle.wait()
        assert select.select([pidfd], [], [], SOON_S)[0]
    os.close(pidfd)


@pytest.mark.parametrize(
    "raw", [b"\xc1", b"GET / HTTP/1.1", wire.encode(base.Done(1)), b"\x91\x63"], ids=repr
)
def test_what_is_no_message_of_this_abi_ends_it(start: Start, raw: bytes) -> None:
    store = start()
    store.link._socket.send(raw)
    assert f"(exit {os.EX_PROTOCOL})" in ended(store.link)


BROKEN = """
from drivers.store import host, saves
def begin(self, message):
    raise RuntimeError("the user wrote: my secret")
saves.Saves.begin = begin
host.main()
"""


def test_an_unknown_exception_is_told_without_its_text(start: Start) -> None:
    store = start(program=BROKEN)
    with pytest.raises(Refused) as caught:
        store.save("n", content(1))
    assert "RuntimeError" in caught.value.fault.message
    assert "secret" not in caught.value.fault.message
    assert f"(exit {os.EX_SOFTWARE})" in ended(store.link)


# --- its life -------------------------------------------------------------------------------------

SLOW = """
from pathlib import Path
from drivers.store import host
from tests.helpers.disks import Stepped
from drivers.store.files import Files

gate = Path({gate!r})

class Slow(Stepped):
    def step(self, name, args):
        if gate.exists():
            gate.read_bytes()
        return super().step(name, args)

host.main(Slow(Files(), ("sync",)))
"""


def test_heartbeats_while_it_works_and_swap_goes_on(start: Start, tmp_path: Path) -> None:
    """A disk that hangs in an fsync holds up the saves, and nothing else."""
    gate = tmp_path / "gate"
    store = start(program=SLOW.format(gate=str(gate)), heartbeat_s=0.05)
    job = store.begin("n", content(1))
    os.mkfifo(gate)
    store.link.send(base.CommitSave(job))
    block = base.Block(0, 0, OWNER, b"", 1)
    store.link.send(base.SwapOut(77, AREA, 0, (block,)))
    seen: list[str] = []
    while seen.count("Heartbeat") < 3 or "Blocks" not in seen:
        assert seen.count("Heartbeat") < 200, "swap waits for the save"
        assert select.select([store.link.fileno()], [], [], SOON_S)[0]
        seen.append(type(store.link.receive()).__name__)
    assert set(seen) == {"Heartbeat", "Blocks"}
    with gate.open("w"):  # it is being read from, so this does not block
        gate.unlink()
    assert isinstance(store.answer(), base.Saved)
    while select.select([store.link.fileno()], [], [], 0.2)[0]:
        assert isinstance(store.link.receive(), base.Heartbeat), "one may be on its way"


def test_what_ps_shows_and_who_may_look_in(start: Start) -> None:
    store = start()
    proc = Path(f"/proc/{store.link.host_pid}")
    assert proc.joinpath("cmdline").read_bytes().rstrip(b"\0") == b"llmos-store"
    limits = proc.joinpath("limits").read_text().splitlines()
    core = next(line for line in limits if "core" in line)
    assert core.split()[4:6] == ["0", "0"]
    maps = proc.joinpath("maps").read_text()
    assert "torch" not in maps and "numpy" not in maps
    assert "cryptography" in maps


DUMPABLE = """
import ctypes, os
from drivers.store import host
from drivers.store.store import Store

real = Store.open
def opened(self, message):
    found = real(self, message)
    dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
    return found._replace(notes=(f"dumpable {dumpable}", f"umask {os.umask(0o77):o}"))
Store.open = opened
host.main()
"""


def test_nobody_may_trace_it(start: Start, tmp_path: Path) -> None:
    store = start(opened=False, program=DUMPABLE)
    assert open_on(store, tmp_path).notes == ("dumpable 0", "umask 77")


def test_no_key_and_no_name_is_said_anywhere(
    window: Window, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with host(window) as store:
        opened = open_on(store, tmp_path)
        store.save("canary name", content(1))
        with pytest.raises(Refused) as caught:
            store.load("canary nam")
        proc = Path(f"/proc/{store.link.host_pid}")
        said = proc.joinpath("cmdline").read_bytes() + proc.joinpath("environ").read_bytes()
        store.link.kill()
    out, err = capfd.readouterr()
    said += f"{out}{err}{opened}{caught.value.fault}".encode()
    key = (tmp_path / "keys" / "root.key").read_bytes()
    for canary in (b"canary", key, key.hex().encode(), repr(key).encode()):
        assert canary not in said


LIMITED = """
import resource
from drivers.store import host
from drivers.store.store import Store

real = Store.open
def opened(self, message):
    found = real(self, message)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return found
Store.open = opened
host.main()
"""


def test_a_disk_that_takes_no_more(start: Start) -> None:
    """The system itself refuses to write beyond 4 KiB of any file."""
    store = start(program=LIMITED)
    store.save("small", content(1, num_blocks=1))
    with pytest.raises(Refused, match="File too large"):
        store.save("large", content(2, num_blocks=60))
    blocks = tuple(base.Block(slot, 0, OWNER, b"", 1) for slot in (0, 41, 42, 43, 9))
    answer = store.ask(base.SwapOut(store.job(), AREA, 0, blocks))
    assert list(answer.states) == [0, 0, 2, 2, 0] and answer.why == "File too large"
    states = store.ask(base.SwapIn(store.job(), AREA, 0, blocks)).states
    assert list(states) == [0, 0, 1, 1, 0]
    assert store.load("small").content == content(1, num_blocks=1)


# --- killed ---------------------------------------------------------------------------------------

KILLED = """
from drivers.store import host
from tests.helpers.disks import KillingFiles
host.main(KillingFiles({at}))
"""


def killed_at(at: int, folder: Path, window: Window) -> tuple[bool, bool]:
    """Replace a save in a host that is killed at an operation; return (killed, answered)."""
    answered = False
    with host(window, program=KILLED.format(at=at)) as store:
        try:
            open_on(store, folder)
            store.save("n", content(2))
            answered = True
            store.drop("m")
        except LinkDown as down:
            assert "SIGKILL" in str(down)
            return True, answered
    return False, answered


def check_after(at: int, answered: bool, folder: Path, window: Window) -> Content:
    """Open what a killed host has left; return which save there is."""
    with client(Files(), window) as store:
        opened = store.open(f"{folder}/state", f"{folder}/keys")
        assert (opened.num_damaged, opened.num_stale) == (0, 0), opened
        loaded = store.load("n")
        assert loaded.whole and loaded.state == SaveState.CURRENT
        assert loaded.content in ([content(2)] if answered else [content(1), content(2)]), at
        rows = {row.name for row in store.rows()}
        assert {"n"} <= rows <= {"n", "m"}
        names = [path.name for path in (folder / "state" / "saves").iterdir()]
        assert len(names) == len(rows) + 1, "nothing is left over"
        return loaded.content


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.full)])
def test_killed_at_every_write_of_a_save(step: int, window: Window, tmp_path: Path) -> None:
    """By SIGKILL, in the real process; afterwards the old save or the new one, never a mix."""
    seen: list[Content] = []
    at, killed = 1, True
    while killed:
        folder = tmp_path / str(at)
        with client(Files(), window) as store:
            store.open(f"{folder}/state", f"{folder}/keys")
            store.save("n", content(1))
            store.save("m", content(3))
        killed, answered = killed_at(at, folder, window)
        seen.append(check_after(at, answered, folder, window))
        at += step
    assert at > 25
    assert seen[0] == content(1) and seen[-1] == content(2)
    assert seen == sorted(seen, key=lambda what: what == content(2)), "from then on the new one"
