"""The links to a store: a host that sends garbage is gone; a loopback works when it is let."""

import select
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from drivers.store import base, wire
from kernel.process_link import LinkDown
from kernel.store import LoopbackStore, StoreLink
from tests.helpers.disks import MemoryFiles
from tests.helpers.store_client import KEYS, STATE, loopback

SENDS = """
import socket, sys
peer = socket.socket(fileno=int(sys.argv[1]))
peer.send(bytes.fromhex(sys.argv[2]))
peer.recv(1)
peer.recv(1)
"""
OPEN = base.Open(*base.ABI, wire.schema(), 1, STATE, KEYS, 0)


class RawLink(StoreLink):
    """Starts a program that sends given bytes instead of a store host."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self.raw = raw

    def _spawn(self, theirs: socket.socket) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-I", "-S", "-c", SENDS, str(theirs.fileno()), self.raw.hex()]
        return subprocess.Popen(command, pass_fds=[theirs.fileno()])


@pytest.mark.parametrize("raw", [b"\xc1", wire.encode(base.Done(1))[:-1], b"GET / HTTP/1.1"])
def test_garbage_ends_the_host(raw: bytes) -> None:
    link = RawLink(raw)
    link.start()
    fd = link.fileno()
    assert fd is not None and select.select([fd], [], [], 30)[0]
    with pytest.raises(LinkDown, match=r"store host \d+ sent garbage .* ended \(signal SIGKILL\)"):
        link.receive()
    assert link.host_pid == 0 and link.fileno() is None
    link.kill()


def test_a_host_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(LinkDown, match="cannot start a store host: No such file"):
        StoreLink().start()


@pytest.fixture
def store() -> Iterator[LoopbackStore]:
    made = loopback(MemoryFiles(), [])
    yield made
    made.kill()


def test_a_loopback_works_as_much_as_it_is_let(store: LoopbackStore) -> None:
    with pytest.raises(LinkDown, match="not started"):
        store.send(OPEN)
    store.start()
    assert store.fileno() is None
    for message in (OPEN, base.Stats(1), base.Stats(2)):
        store.send(message)
    assert store.receive() is None
    assert store.pump(2) == 2
    assert isinstance(store.receive(), base.Opened)
    assert store.receive()[0] == 1 and store.receive() is None
    assert store.pump() == 1 and store.receive()[0] == 2


def test_a_loopback_that_died_and_starts_again(store: LoopbackStore) -> None:
    store.start()
    store.send(OPEN)
    store.pump()
    store.send(base.Stats(1))
    store.die()
    for do in (store.receive, lambda: store.send(OPEN)):
        with pytest.raises(LinkDown, match="died"):
            do()
    store.start()
    assert store.receive() is None and store.pump() == 0
    store.send(OPEN)
    store.pump()
    assert isinstance(store.receive(), base.Opened)
