"""A driver host that sends what is no message: killed, reaped, and told as the end of its epoch."""

import mmap
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from drivers import base, wire
from kernel.link import HostLink, LinkDown

SENDS = """
import socket, sys
peer = socket.socket(fileno=int(sys.argv[1]))
raw = bytes.fromhex(sys.argv[2])
peer.send(raw[:1] + raw[1:] * int(sys.argv[3]))
peer.recv(1)
peer.recv(1)
"""


class RawLink(HostLink):
    """Starts a program that sends given bytes instead of a driver host."""

    def __init__(self, raw: bytes, repeat: int = 1) -> None:
        super().__init__("null0", 4096)
        self.raw = raw
        self.repeat = repeat

    def _spawn(self, theirs: socket.socket) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-I", "-S", "-c", SENDS, str(theirs.fileno()), self.raw.hex()]
        self.spawned = subprocess.Popen([*command, str(self.repeat)], pass_fds=[theirs.fileno()])
        return self.spawned


@pytest.fixture
def links() -> Iterator[list[HostLink]]:
    opened: list[HostLink] = []
    yield opened
    for link in opened:
        link.close()


def first_message(link: HostLink) -> Any:
    link.start()
    fd = link.fileno()
    assert fd is not None
    assert select.select([fd], [], [], 30)[0], "the host says something"
    return link.receive()


COMPLETE = wire.encode(base.Complete(1, 0, 1, 2, 3, ()))
GARBAGE = {
    "truncated": (COMPLETE[:-1], 1),
    "two at once": (COMPLETE * 2, 1),
    "number -1": (msgpack.packb([-1, 0]), 1),
    "text": (b"GET / HTTP/1.1", 1),
    "zeros": (b"\0", 1),
    "larger than a message": (b"\x91\x00", wire.MAX_MESSAGE),
    "a long message and more": (b"\xc6\x00", wire.MAX_MESSAGE),
}


@pytest.mark.parametrize(("raw", "repeat"), GARBAGE.values(), ids=GARBAGE)
def test_garbage_ends_the_host(links: list[HostLink], raw: bytes, repeat: int) -> None:
    link = RawLink(raw, repeat)
    links.append(link)
    with pytest.raises(LinkDown, match=r"sent garbage .* ended \(signal SIGKILL\)"):
        first_message(link)
    assert link.host_pid == 0 and link.fileno() is None
    with pytest.raises(LinkDown):
        link.send(base.Stats())
    assert link.spawned.returncode == -signal.SIGKILL, "reaped"


def test_an_honest_message_arrives(links: list[HostLink]) -> None:
    link = RawLink(COMPLETE)
    links.append(link)
    assert first_message(link) == wire.decode(COMPLETE)


def test_a_host_that_cannot_be_started_is_down(
    links: list[HostLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = HostLink("null0", 4096)
    links.append(link)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(LinkDown, match="No such file"):
        link.start()
    link.kill()
    assert link.fileno() is None


def test_sockets_too_small_for_a_message_are_told_at_the_start(
    links: list[HostLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where net.core.wmem_max is small."""
    real = socket.socket.setsockopt

    def capped(self: socket.socket, level: int, name: int, value: int) -> None:
        real(self, level, name, min(value, 50_000))

    link = RawLink(COMPLETE)
    links.append(link)
    monkeypatch.setattr(socket.socket, "setsockopt", capped)
    told = r"holds 100000 bytes, a message may have 196608; .* net\.core\.wmem_max=196608"
    with pytest.raises(LinkDown, match=told):
        link.start()
    assert link.host_pid == 0 and link.fileno() is None


def test_a_message_that_the_socket_refuses_ends_the_host(links: list[HostLink]) -> None:
    link = RawLink(COMPLETE)
    links.append(link)
    link.start()
    assert link._socket is not None
    link._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    load = base.Load(0, "x" * 100_000, "float32", 16, 2, 0, 0, False, 0)
    with pytest.raises(LinkDown, match=r"cannot be sent 1000\d\d bytes \(Message too long\)"):
        link.send(load)
    assert link.host_pid == 0 and link.spawned.returncode == -signal.SIGKILL


def test_host_memory_is_that_of_all_epochs(links: list[HostLink]) -> None:
    """Two real hosts, one after the other: what the first has copied out, the second copies in."""
    size = 128  # of a null block of 16 slots
    link = HostLink("null0", 4096, host_bytes=8 * mmap.PAGESIZE)
    links.append(link)
    with mmap.mmap(link.host_fd, 0) as seen:
        assert not any(seen[:])
        begin(link)
        scribble = base.Import(base.ints([1]), 0)
        with mmap.mmap(link.bulk_fd, 0) as bulk:
            bulk[:size] = bytes(range(1, 1 + size))
        copy = base.Copy(base.Direction.D2H, base.ints([1]), base.ints([3]))
        ask(link, base.Submit(1, 0, 1, (), 0, (scribble, copy)))
        first = link.host_pid
        link.kill()
        at = mmap.PAGESIZE + 3 * size
        assert seen[at : at + size] == bytes(range(1, 1 + size)), "from the Load's offset on"
        assert not any(seen[:at]) and not any(seen[at + size :])
        begin(link)
        assert link.host_pid != first
        back = base.Copy(base.Direction.H2D, base.ints([3, 4]), base.ints([5, 6]))
        export = base.Export(base.ints([5, 6]), 0)
        ask(link, base.Submit(1, 0, 1, (), 0, (back, export)))
        with mmap.mmap(link.bulk_fd, 0) as bulk:
            assert bulk[: 2 * size] == bytes(range(1, 1 + size)) + bytes(size)
        link.zero_host([(at, size)])
        assert not any(seen[:])


def begin(link: HostLink) -> None:
    """Start a host with a model whose host tier begins on the second page."""
    link.start()
    assert isinstance(ask(link, base.Hello(*base.ABI, wire.schema(), 1, link.device)), base.Ready)
    load = base.Load(0, "null", "float32", 16, 8, 0, 0, False, 0)
    tier = {"host_bytes": 4 * mmap.PAGESIZE, "host_offset": mmap.PAGESIZE}
    assert isinstance(ask(link, load._replace(**tier)), base.Loaded)


def ask(link: HostLink, message: Any) -> Any:
    """Send a message; return its answer."""
    link.send(message)
    fd = link.fileno()
    assert fd is not None
    while True:
        assert select.select([fd], [], [], 30)[0], "the host answers"
        answer = link.receive()
        if not isinstance(answer, base.Estimate | base.Progress | base.Heartbeat | None):
            assert not isinstance(answer, base.Fault), answer
            return answer


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_link_closed_leaves_nothing_open() -> None:
    before = open_files()
    link = HostLink("null0", 4096, host_bytes=1 << 20)
    assert len(open_files()) == len(before) + 2
    begin(link)
    link.close()
    assert open_files() == before


def test_a_link_knows_whether_a_large_message_has_room(links: list[HostLink]) -> None:
    """The program says something and then reads no more than it has to."""
    link = RawLink(COMPLETE)
    links.append(link)
    assert not link.has_room, "nothing runs"
    first_message(link)
    large = base.Submit(1, 0, 1, (), 0, (base.Scrub(bytes(wire.MAX_MESSAGE - 100)),))
    sent = 0
    while link.has_room:
        link.send(large)  # LinkDown if there were none
        sent += 1
        assert sent < 1000
    assert sent > 2, "two are read, one waits"
