"""The process around a driver: it dies alone, is seen to die, and never outlives the kernel.

On the null driver: what is tested is the host, which is the same for all.
"""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drivers import base, wire
from drivers.base import FaultKind, ints
from tests.helpers.device import EPOCH, hello
from tests.helpers.plans import Part, step_ops
from tests.helpers.rig import ROOT, HostProcess

LOAD = base.Load(0, "null", "float32", 16, 64, 0, 0, True, 0)
SLOW = "null:step_us=30000000"
BEAT = ("--heartbeat", "0.05")
SOON_S = 5.0
"""Far less than SLOW takes; on a quiet machine it is milliseconds."""
Start = Callable[..., HostProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a host; it is gone when the test ends."""
    hosts: list[HostProcess] = []

    def start(*options: str, path: str = "", **how: Any) -> HostProcess:
        hosts.append(host := HostProcess("null0", *options, **how))
        if path:
            host.send(hello())
            assert isinstance(host.receive(), base.Ready)
            host.send(LOAD._replace(path=path))
            assert isinstance(host.receive(), base.Estimate)
            assert isinstance(host.receive(), base.Loaded)
        return host

    yield start
    for host in hosts:
        host.close()


def begin_step(host: HostProcess) -> None:
    """Send a step; with SLOW it takes half a minute."""
    ops = step_ops([Part([1], 0, [1])], 16)
    host.send(base.Submit(EPOCH, 0, 1, (), 0, ops))


def hung_up(sock: socket.socket, timeout_s: float) -> bool:
    """Whether the other end closes within the time."""
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    return bool(poller.poll(timeout_s * 1000))


def ended(pidfd: int, timeout_s: float) -> bool:
    """Whether a process ends within the time."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


# --- its end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["null", SLOW])
def test_a_killed_host_is_seen_as_end_of_file(start: Start, path: str) -> None:
    host = start(path=path)
    if path == SLOW:
        begin_step(host)
    host.process.kill()
    assert hung_up(host.socket, SOON_S)
    with pytest.raises(EOFError):
        host.receive(0)


@pytest.mark.parametrize("path", ["", "null", SLOW])
def test_the_kernels_end_ends_the_host_even_in_a_step(start: Start, path: str) -> None:
    host = start("--heartbeat", "60", path=path)  # which would notice, too
    if path == SLOW:
        begin_step(host)
    elif not path:
        host.send(hello())
        host.receive()
    host.socket.shutdown(socket.SHUT_RDWR)
    host.socket.close()
    assert host.exit_code(SOON_S) == 0


def test_the_host_dies_with_its_parent_though_the_socket_is_open(tmp_path: Path) -> None:
    """The kernel was killed, but somebody still holds its end of the socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memfd = os.memfd_create("bulk", os.MFD_CLOEXEC)
    os.ftruncate(memfd, 4096)
    fds = (theirs.fileno(), memfd)
    command = [
        sys.executable, "-m", "drivers.host", "--socket", str(fds[0]), "--bulk", str(fds[1]),
        "--device", "null0",
    ]  # fmt: skip
    script = (
        "import signal, subprocess\n"
        f"subprocess.Popen({command!r}, pass_fds={fds!r})\n"
        "signal.pause()\n"
    )
    with ours, theirs:
        middle = subprocess.Popen(
            [sys.executable, "-c", script], pass_fds=fds, cwd=ROOT, stdin=subprocess.DEVNULL
        )
        ours.send(wire.encode(hello()))
        ready = wire.decode(ours.recv(wire.MAX_MESSAGE))
        pidfd = os.pidfd_open(ready.host_pid)
        assert not ended(pidfd, 0)
        middle.kill()
        middle.wait()
        assert ended(pidfd, SOON_S)
    os.close(pidfd)
    os.close(memfd)


def test_close_finishes_what_was_submitted(start: Start) -> None:
    host = start(path="null:step_us=100000")
    begin_step(host)
    host.send(base.Close())
    assert isinstance(host.receive(), base.Complete)
    assert host.exit_code(SOON_S) == 0


@pytest.mark.parametrize(
    "raw", [b"\xc1", b"not a message", b"\x92\x01\x02", wire.encode(base.Stats())], ids=repr
)
def test_what_is_no_message_of_this_abi_ends_it(start: Start, raw: bytes) -> None:
    host = start()
    host.send_raw(raw)  # the last one is a message, but before Hello
    assert host.exit_code(5) == os.EX_PROTOCOL


def test_messages_of_the_wrong_direction_end_it(start: Start) -> None:
    host = start(path="null")
    host.send(base.Heartbeat(EPOCH, 1))
    assert host.exit_code(5) == os.EX_PROTOCOL


BROKEN = """
from drivers import host, null, registry

class Broken(null.NullDriver):
    def submit(self, submit):
        raise RuntimeError("the user wrote: my secret")

registry.open_driver = lambda device, emit, bulk, host: Broken(emit, bulk, host)
host.main()
"""


def test_an_unknown_exception_is_device_lost_without_its_text(start: Start) -> None:
    host = start(path="null", command=(sys.executable, "-c", BROKEN))
    begin_step(host)
    fault = host.receive()
    assert fault[:4] == (EPOCH, 0, 1, FaultKind.DEVICE_LOST)
    assert "RuntimeError" in fault.message
    assert "secret" not in fault.message
    assert host.exit_code(SOON_S) == os.EX_SOFTWARE


BROKEN_BESIDE = """
from drivers import host, lanes, null, registry

class Broken(null.NullDriver):
    def submit(self, submit):
        if not hasattr(self, "lanes"):
            self.lanes = lanes.Lanes(submit.epoch, self.fail, self._emit)
        self.lanes.submit(submit)

    def fail(self, submit):
        raise RuntimeError("the user wrote: my secret")

registry.open_driver = lambda device, emit, bulk, host: Broken(emit, bulk, host)
host.main()
"""


def test_so_is_one_in_a_thread_of_the_driver(start: Start) -> None:
    host = start(path="null", command=(sys.executable, "-c", BROKEN_BESIDE))
    host.send(base.Submit(EPOCH, base.Queue.COPY_OUT, 1, (), 0, (base.Scrub(ints([1])),)))
    fault = host.receive()
    assert fault[:4] == (EPOCH, base.Queue.COPY_OUT, 1, FaultKind.DEVICE_LOST)
    assert "RuntimeError" in fault.message and "secret" not in fault.message
    assert host.exit_code(SOON_S) == os.EX_SOFTWARE


HALF = """
from drivers import base, host, null, registry

class Half(null.NullDriver):
    def load(self, load):
        raise base.DriverFault(base.FaultKind.MODEL_LOAD, "no model in \\udcff.bin")

registry.open_driver = lambda device, emit, bulk, host: Half(emit, bulk, host)
host.main()
"""


def test_a_fault_that_quotes_a_name_that_is_no_utf8(start: Start) -> None:
    host = start(command=(sys.executable, "-c", HALF))
    host.send(hello())
    assert isinstance(host.receive(), base.Ready)
    host.send(LOAD)
    assert host.receive().message == "no model in \\udcff.bin"


def test_faults_of_hello_and_load_do_not_end_it(start: Start) -> None:
    host = start()
    host.send(hello()._replace(schema="x"))
    assert host.receive().kind == FaultKind.UNSUPPORTED
    host.send(hello())
    assert isinstance(host.receive(), base.Ready)
    host.send(LOAD._replace(path="llama"))
    assert host.receive()[:4] == (EPOCH, 0, 0, FaultKind.MODEL_LOAD)
    host.send(LOAD._replace(path="€" * (wire.MAX_TEXT // 3), model=7))
    fault = host.receive()
    assert (fault.kind, fault.model) == (FaultKind.MODEL_LOAD, 7)
    assert len(fault.message.encode()) in range(wire.MAX_TEXT - 3, wire.MAX_TEXT + 1)
    host.send(base.Stats())
    assert isinstance(host.receive(), base.StatsReply)


# --- its life ---------------------------------------------------------------------------------


def test_heartbeats_while_it_works_and_none_when_idle(start: Start) -> None:
    host = start(*BEAT, path="null:step_us=400000")
    come_to_rest(host)
    begin_step(host)
    beats = []
    while isinstance(message := host.receive_any(), base.Heartbeat):
        beats.append(message)
    assert isinstance(message, base.Complete)
    assert beats
    assert set(beats) == {base.Heartbeat(EPOCH, 1)}
    come_to_rest(host)


def come_to_rest(host: HostProcess) -> None:
    """See that it is silent; one beat may have been on its way when the work ended."""
    assert isinstance(host.receive_any(0.3), base.Heartbeat | None)
    assert host.receive_any(0.3) is None, "idle"


def test_a_stopped_host_sends_no_heartbeat(start: Start) -> None:
    host = start(*BEAT, path=SLOW)
    begin_step(host)
    assert isinstance(host.receive_any(), base.Heartbeat)
    host.process.send_signal(signal.SIGSTOP)
    os.waitpid(host.process.pid, os.WUNTRACED)  # now it has stopped
    while host.receive_any(0):
        pass
    assert host.receive_any(0.3) is None
    host.process.send_signal(signal.SIGCONT)
    assert isinstance(host.receive_any(), base.Heartbeat)


def test_an_idle_host_never_wakes(start: Start) -> None:
    host = start(*BEAT, path="null")

    def switches() -> int:
        tasks = Path(f"/proc/{host.process.pid}/task").iterdir()
        lines = "".join((task / "status").read_text() for task in tasks).splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))

    come_to_rest(host)
    for _ in range(20):  # until its threads have come to rest
        before = switches()
        assert host.receive_any(0.4) is None
        if switches() == before:
            return
    raise AssertionError("it wakes although there is nothing to do")


def test_the_bulk_window_is_shared(start: Start) -> None:
    host = start(path="null")
    begin_step(host)
    host.receive()
    host.send(base.Submit(EPOCH, 0, 2, (), 0, (base.Export(ints([1]), 256),)))
    assert isinstance(host.receive(), base.Complete)
    assert host.bulk[:256] == bytes(256)
    assert any(host.bulk[256:264])


def test_ctrl_c_is_the_kernels_business_and_sigterm_ends_it(start: Start) -> None:
    host = start(path="null")
    host.process.send_signal(signal.SIGINT)
    host.send(base.Stats())
    assert isinstance(host.receive(), base.StatsReply)
    host.process.terminate()
    assert host.exit_code(SOON_S) == -signal.SIGTERM


def test_what_ps_shows_and_what_it_may_not_do(start: Start) -> None:
    host = start(path="null")
    proc = Path(f"/proc/{host.process.pid}")
    assert proc.joinpath("cmdline").read_bytes().rstrip(b"\0") == b"llmos-driver null0"
    core = next(line for line in proc.joinpath("limits").read_text().splitlines() if "core" in line)
    assert core.split()[4:6] == ["0", "0"]
    maps = proc.joinpath("maps").read_text()
    assert "torch" not in maps and "numpy" not in maps


def test_a_device_without_a_driver() -> None:
    host = HostProcess("tpu0")
    host.send(hello())
    fault = host.receive()
    assert (fault.epoch, fault.value, fault.kind) == (EPOCH, 0, FaultKind.UNSUPPORTED)
    host.close()


BESIDE = """
from drivers import base, host, null, registry

class Half(null.NullDriver):
    def hello(self, hello):
        ready = super().hello(hello)
        return ready._replace(features=(*ready.features, "load_beside"))
    def load(self, load):
        if load.path == "fault":
            raise base.DriverFault(base.FaultKind.MODEL_LOAD, "no model in \\udcff.bin")
        if load.path == "bug":
            raise RuntimeError("the user wrote: my secret")
        return super().load(load)

registry.open_driver = lambda device, emit, bulk, host: Half(emit, bulk, host)
host.main()
"""


def test_a_load_beside_others_always_has_an_answer(start: Start) -> None:
    host = start(*BEAT, path="null", command=(sys.executable, "-c", BESIDE))
    host.send(LOAD._replace(path="fault", model=1))
    fault = host.receive()
    assert (fault.kind, fault.value, fault.model) == (FaultKind.MODEL_LOAD, 0, 1)
    come_to_rest(host)
    host.send(LOAD._replace(path="null", model=1))
    while not isinstance(message := host.receive(), base.Loaded):
        assert isinstance(message, base.Estimate)
    host.send(LOAD._replace(path="bug", model=2))
    lost = host.receive()
    assert lost.kind == FaultKind.DEVICE_LOST and "secret" not in lost.message
    assert host.exit_code(SOON_S) == os.EX_SOFTWARE
