"""Driver host: the process around one driver.

    python -m drivers.host --socket FD --bulk FD --device cpu0

It reads messages from an inherited SEQPACKET socket (one per packet), hands them to the driver and
sends what the driver emits. It lives no longer than the kernel: the socket's end of file ends it
at once, even in the middle of a step, and so does the death of its parent. While a Load or Submit
is being worked on, it sends a Heartbeat about once a second; idle, it never wakes.

Exit codes: 0 the kernel closed the socket, 65 the kernel sent no message of this ABI, 70 the
driver failed in a way it does not know (the kernel was told DEVICE_LOST).
"""

import argparse
import ctypes
import logging
import mmap
import os
import resource
import select
import signal
import socket
import sys
import threading
from typing import Any

from setproctitle import setproctitle

from drivers import base, registry

log = logging.getLogger("drivers.host")

HEARTBEAT_S = 1.0
PR_SET_PDEATHSIG = 1


class Host:
    """One driver and its socket."""

    def __init__(self, sock: socket.socket, bulk: memoryview, device: str) -> None:
        self._socket = sock
        self._driver = registry.open_driver(device, self._send, bulk)
        self._sending = threading.Lock()  # Heartbeats and a driver's own threads send too
        self._busy = threading.Event()
        self._epoch = 0
        self._value = 0

    def serve(self) -> int:
        """Handle messages until the kernel closes the socket; return the exit code."""
        for watcher in (self._watch_hangup, self._heartbeat):
            threading.Thread(target=watcher, daemon=True).start()
        while raw := self._socket.recv(base.MAX_MESSAGE):
            try:
                message = base.decode(raw)
            except base.BadMessage as error:
                log.error("%s", error)
                return 65
            self._busy.set()
            try:
                self._handle(message)
            except base.DriverFault as fault:
                self._send(base.Fault(self._epoch, 0, 0, fault.kind, fault.message, fault.items))
            except Exception as error:  # noqa: BLE001 - the last resort: tell the kernel and go
                log.exception("driver failed")
                what = f"{type(error).__name__} in the driver"
                lost = base.FaultKind.DEVICE_LOST
                self._send(base.Fault(self._epoch, 0, self._value, lost, what, ()))
                return 70
            finally:
                self._busy.clear()
        return 0

    def _handle(self, message: Any) -> None:
        self._value = 0
        match message:
            case base.Submit():
                self._value = message.value
                self._driver.submit(message)
            case base.Hello():
                self._epoch = message.epoch
                self._send(self._driver.hello(message))
            case base.Load():
                self._send(self._driver.load(message))
            case base.Unload():
                self._driver.unload(message)
            case base.Stats():
                self._send(self._driver.stats())
            case base.Close():
                self._driver.close()
                self._socket.shutdown(socket.SHUT_RD)

    def _send(self, message: Any) -> None:
        raw = base.encode(message)
        with self._sending:
            self._socket.send(raw)

    def _heartbeat(self) -> None:
        pause = threading.Event()
        while True:
            self._busy.wait()
            pause.wait(HEARTBEAT_S)
            if self._busy.is_set():
                self._send(base.Heartbeat(self._epoch, self._value))

    def _watch_hangup(self) -> None:
        """End the process as soon as the kernel's end of the socket is closed."""
        poller = select.poll()
        poller.register(self._socket, select.POLLRDHUP)  # data does not wake it
        poller.poll()
        os._exit(0)


def _tie_to_parent() -> None:
    """Die with the kernel, also if it is killed before it can close anything."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(0)  # it died in between


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="drivers.host")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--bulk", type=int, required=True)
    parser.add_argument("--device", required=True)
    options = parser.parse_args()
    _tie_to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the kernel decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    setproctitle(f"llmos-driver {options.device}")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    bulk = mmap.mmap(options.bulk, 0)
    with socket.socket(fileno=options.socket) as sock:
        try:
            code = Host(sock, memoryview(bulk), options.device).serve()
        except BrokenPipeError:
            code = 0  # the kernel has gone
    os._exit(code)  # the watchers never return


if __name__ == "__main__":
    main()
