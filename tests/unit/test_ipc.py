"""The kernel's socket against a peer that sends what no client of ours would."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from kernel.ipc import MAX_FRAMES, MAX_SKIPPED, Arrival, Ipc, RunDir
from syscalls import wire


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Ipc]:
    run_dir = RunDir(tmp_path / "run")
    opened = Ipc(run_dir)
    yield opened
    opened.close()
    run_dir.close()


@pytest.fixture
def address(front: Ipc, tmp_path: Path) -> str:
    return f"ipc://{tmp_path / 'run' / 'kernel.sock'}"


@contextmanager
def dealing(address: str) -> Iterator["zmq.Socket[bytes]"]:
    """A connection, which is gone afterwards."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        yield socket


def arrivals(front: Ipc, count: int) -> tuple[list[Arrival], int]:
    """Return so many messages, and in how many turns with something to do they came."""
    poller = zmq.Poller()
    poller.register(front.fileno(), zmq.POLLIN)
    found: list[Arrival] = []
    turns = 0
    while len(found) < count:
        if not front.has_input():
            assert poller.poll(10_000), "nothing came"
        turns += front.has_input()
        found += front.receive()
    return found, turns


def test_a_message_of_very_many_frames_does_not_hold_a_turn(front: Ipc, address: str) -> None:
    with dealing(address) as dealer:
        dealer.send_multipart([b""] * 5 * MAX_SKIPPED)
        dealer.send_multipart([b"next"])
        (endless, following), turns = arrivals(front, 2)
    assert len(endless.frames) == MAX_FRAMES and following.frames == [b"next"]
    assert turns >= 5, "it was thrown away a part at a time"


def test_arrivals_name_the_process(front: Ipc, address: str) -> None:
    with dealing(address) as dealer:
        dealer.send(b"x")
        (arrival,), _ = arrivals(front, 1)
    assert (arrival.uid, arrival.pid) == (os.getuid(), os.getpid())


def test_a_connection_is_alive_until_it_is_closed(front: Ipc, address: str) -> None:
    with dealing(address) as dealer:
        dealer.send(b"x")
        (first,), _ = arrivals(front, 1)
        assert front.alive(first.route)
        assert dealer.poll(10_000), "it was asked, and may tell its program nothing"
        assert wire.unpack_events(dealer.recv()) == []
    with dealing(address) as dealer:
        dealer.send(b"x")
        (second,), _ = arrivals(front, 1)
        assert front.alive(second.route) and not front.alive(first.route)
