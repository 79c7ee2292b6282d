"""A raw ZeroMQ peer: a ROUTER that answers every message with one of a given size.

    python -m bench.echo ADDRESS BYTES

It is what a round trip costs when nobody does anything: no msgpack, no checks, no tables. An
empty message ends it.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import zmq

ROOT = Path(__file__).resolve().parents[1]


def serve(address: str, size: int) -> None:
    """Answer until an empty message comes."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(address)
        answer = bytes(size)
        while True:
            route, body = router.recv_multipart()
            if not body:
                return
            router.send_multipart((route, answer))


@contextmanager
def echo(size: int) -> Iterator["zmq.Socket[bytes]"]:
    """Run a peer; yield a DEALER that is connected to it."""
    with TemporaryDirectory(prefix="llmos-bench-") as home:
        address = f"ipc://{home}/echo.sock"
        command = [sys.executable, "-m", "bench.echo", address, str(size)]
        peer = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
        try:
            with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
                dealer.setsockopt(zmq.LINGER, 1000)
                dealer.connect(address)
                yield dealer
                dealer.send(b"")
                peer.wait(10)
        finally:
            peer.kill()
            peer.wait()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
