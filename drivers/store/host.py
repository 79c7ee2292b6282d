"""Store host: the process around the store. It alone touches the disk, it alone has keys.

    python -m drivers.store.host --socket FD [--window FD ...]

One thread reads the socket and never works; one works for each lane. How it lives and ends is as
with drivers (drivers/process.py); on top of that nobody may look into it. An exception that is no
fault of the store's is told as one of the disk without its text, and ends the process.

Exit codes: 0 the kernel closed the socket or sent Close, 2 bad arguments, 70 the store failed in a
way that it does not know, 76 the kernel sent something that is no message of this ABI.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from setproctitle import setproctitle

from drivers import process
from drivers.store import base, wire
from drivers.store.files import Files
from drivers.store.keys import CREDENTIALS_DIRECTORY
from drivers.store.store import Store

log = logging.getLogger("drivers.store.host")


class Host:
    """The store and its socket."""

    def __init__(
        self, sock: socket.socket, windows: Sequence[int], heartbeat_s: float, files: Files
    ) -> None:
        self._socket = sock
        self._lock = threading.Lock()  # lanes and heartbeat send too
        self._owed = process.Owed(self._beat, heartbeat_s)
        self._epoch = 0
        credentials = os.environ.get(CREDENTIALS_DIRECTORY, "")
        self._store = Store(self._answer, windows, files, credentials)
        self._lanes: tuple[SimpleQueue[Any], SimpleQueue[Any]] = SimpleQueue(), SimpleQueue()

    def serve(self) -> int:
        """Take messages until the kernel closes the socket; return the exit code."""
        process.end_with(self._socket)
        self._owed.start()
        lanes = [threading.Thread(target=self._work, args=(lane,)) for lane in self._lanes]
        for lane in lanes:
            lane.daemon = True
            lane.start()
        while raw := process.receive(self._socket, wire.MAX_MESSAGE):
            try:
                message = wire.decode(raw)
            except wire.BadMessage as error:
                log.error("the kernel sent no message of this ABI: %s", error)
                return os.EX_PROTOCOL
            if isinstance(message, base.Close):
                self._close(lanes)
                return 0
            self._take(message)
        return 0

    def _take(self, message: Any) -> None:
        self._owed.change(1)
        if isinstance(message, base.Open):
            # Alone: what the lanes work with is made by it, and nothing was sent before it.
            self._epoch = message.epoch
            self._handle(message)
        else:
            self._lanes[isinstance(message, base.SWAP_LANE)].put(message)

    def _work(self, lane: "SimpleQueue[Any]") -> None:
        while message := lane.get():
            self._handle(message)

    def _handle(self, message: Any) -> None:
        try:
            self._store.handle(message)
        except wire.BadMessage as error:
            log.error("the kernel sent no message of this ABI: %s", error)
            os._exit(os.EX_PROTOCOL)
        except Exception as error:
            log.exception("the store failed")
            what = f"{type(error).__name__} in the store; the log of the kernel has more"
            job = getattr(message, "job", 0)
            self._answer(base.Fault(job, base.FaultKind.IO, what, "llmos dmesg"))
            os._exit(os.EX_SOFTWARE)

    def _answer(self, message: Any) -> None:
        self._send(message)
        self._owed.change(-1)

    def _beat(self) -> None:
        self._send(base.Heartbeat(self._epoch))

    def _send(self, message: Any) -> None:
        raw = wire.encode(message)
        if len(raw) > wire.MAX_MESSAGE:
            name = type(message).__name__
            raise ValueError(f"{name} of {len(raw)} bytes, the limit is {wire.MAX_MESSAGE}")
        process.send(self._socket, self._lock, raw)

    def _close(self, lanes: list[threading.Thread]) -> None:
        for queue in self._lanes:
            queue.put(None)
        for lane in lanes:
            lane.join()
        self._store.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="drivers.store.host")
    parser.add_argument("--socket", type=int, required=True, help="inherited SEQPACKET socket")
    parser.add_argument(
        "--window", type=int, action="append", default=[], help="inherited memfd, in order"
    )
    parser.add_argument("--heartbeat", type=float, default=process.HEARTBEAT_S, help="seconds")
    return parser.parse_args()


def main(files: Files | None = None) -> None:
    """Entry point; tests bring a disk of their own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the kernel decides
    options = _options()
    process.tie_to_parent()
    process.no_dumps(debuggers=False)
    os.umask(0o077)
    setproctitle("llmos-store")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for fd in (options.socket, *options.window):
        os.set_inheritable(fd, False)
    sock = socket.socket(fileno=options.socket)
    code = Host(sock, options.window, options.heartbeat, files or Files()).serve()
    os._exit(code)  # neither threads nor atexit hooks may hold it up


if __name__ == "__main__":
    main()
