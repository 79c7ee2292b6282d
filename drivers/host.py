"""Driver host: the process around one driver.

    python -m drivers.host --socket FD --bulk FD [--host FD] --device cpu0

It reads messages from an inherited SEQPACKET socket (one per packet), hands them to the driver and
sends what the driver emits. The driver's module is imported when Hello comes. The host lives no
longer than the kernel: the socket's end of file ends it at once, even in the middle of a step, and
so does the death of its parent (of the thread that started it, as Linux has it). While it owes an
answer it sends a Heartbeat about once a second; idle, it never wakes.

A DriverFault of Hello or Load goes to the kernel as a Fault of value 0, and the host goes on. Any
other exception is told as DEVICE_LOST, without its text, which may hold what a user wrote.

Exit codes: 0 the kernel closed the socket or sent Close, 2 bad arguments, 70 the driver failed in
a way that it does not know, 76 the kernel sent something that is no message of this ABI.
"""

import argparse
import logging
import mmap
import os
import signal
import socket
import sys
import threading
from typing import Any

from setproctitle import setproctitle

from drivers import base, process, registry, wire

log = logging.getLogger("drivers.host")


class Host:
    """One driver and its socket."""

    def __init__(
        self, sock: socket.socket, bulk: memoryview, host: int, device: str, heartbeat_s: float
    ) -> None:
        self._socket = sock
        self._bulk = bulk
        self._host = host
        self._device = device
        self._driver: base.Driver | None = None
        self._lock = threading.Lock()  # the driver's own threads and the heartbeat send too
        self._owed = process.Owed(self._beat, heartbeat_s)
        self._epoch = 0
        self._beside = False  # the driver can load beside other work
        self._models: set[int] = set()  # that it has loaded
        self._fence = (0, 0)  # queue and value of the last Submit, (0, 0) in other work

    def serve(self) -> int:
        """Handle messages until the kernel closes the socket; return the exit code."""
        process.end_with(self._socket)
        self._owed.start()
        while raw := process.receive(self._socket, wire.MAX_MESSAGE):
            try:
                message = wire.decode(raw)
                if isinstance(message, base.Close):
                    self._close()
                    return 0
                self._handle(message)
            except wire.BadMessage as error:
                log.error("the kernel sent no message of this ABI: %s", error)
                return os.EX_PROTOCOL
            except Exception as error:
                log.exception("the driver of %s failed", self._device)
                self._lost(error)
                return os.EX_SOFTWARE
        return 0

    def _handle(self, message: Any) -> None:
        if isinstance(message, base.Hello):
            self._epoch = message.epoch
        elif self._driver is None:
            raise wire.BadMessage(f"{type(message).__name__} before Hello")
        submitted = isinstance(message, base.Submit)
        later = submitted or isinstance(message, base.Compile)  # it is answered by what is emitted
        self._fence = (message.queue, message.value) if submitted else (0, 0)
        self._owed.change(1)
        try:
            answer = self._ask(message)
        except base.DriverFault as fault:
            model = message.model if isinstance(message, base.Load) else 0
            later = submitted
            answer = self._fault(fault, self._fence, model)
        if answer is not None:
            self._send(answer)
        if not later:
            self._owed.change(-1)

    def _ask(self, message: Any) -> Any:
        """Give a message to the driver; return the answer, if it is not emitted."""
        if self._driver is None:
            self._driver = registry.open_driver(self._device, self._emit, self._bulk, self._host)
        match message:
            case base.Hello():
                ready = self._driver.hello(message)
                self._beside = "load_beside" in ready.features
                return ready
            case base.Load() if self._beside and self._models:
                self._owed.change(1)
                threading.Thread(target=self._load_beside, args=(message,), daemon=True).start()
                return None
            case base.Load():
                return self._load(message)
            case base.Submit():
                return self._driver.submit(message)
            case base.Compile():
                return self._driver.compile(message)
            case base.Forget():
                return self._driver.forget(message)
            case base.Unload():
                self._models.discard(message.model)
                return self._driver.unload(message)
            case base.Stats():
                return self._driver.stats()
        raise wire.BadMessage(f"{type(message).__name__} goes from a driver to the kernel")

    def _load(self, load: base.Load) -> base.Loaded:
        assert self._driver is not None
        loaded = self._driver.load(load)
        self._models.add(load.model)
        log.info("%s: %s loaded, %d blocks", self._device, loaded.arch, loaded.num_blocks)
        return loaded

    def _load_beside(self, load: base.Load) -> None:
        """Load while the models that are there go on; a failure that is no Fault ends the host."""
        try:
            try:
                answer: Any = self._load(load)
            except base.DriverFault as fault:
                answer = self._fault(fault, (0, 0), load.model)
            self._send(answer)
        except Exception as error:
            log.exception("the driver of %s failed", self._device)
            self._lost(error)
            os._exit(os.EX_SOFTWARE)
        self._owed.change(-1)

    def _fault(self, fault: base.DriverFault, fence: tuple[int, int], model: int) -> base.Fault:
        story = process.sendable(fault.message, wire.MAX_TEXT)
        return base.Fault(self._epoch, *fence, fault.kind, story, fault.items, model)

    def _send(self, message: Any) -> None:
        raw = wire.encode(message)
        if len(raw) > wire.MAX_MESSAGE:
            name = type(message).__name__
            raise ValueError(f"{name} of {len(raw)} bytes, the limit is {wire.MAX_MESSAGE}")
        process.send(self._socket, self._lock, raw)
        later = isinstance(message, base.Complete | base.Fault) and message.value
        if later or isinstance(message, base.Compiled):
            self._owed.change(-1)

    def _emit(self, message: Any) -> None:
        """Send what the driver emits; its process ends with a device that is lost."""
        self._send(message)
        if isinstance(message, base.Fault) and message.kind == base.FaultKind.DEVICE_LOST:
            os._exit(os.EX_SOFTWARE)

    def _beat(self) -> None:
        self._send(base.Heartbeat(self._epoch, self._fence[1]))

    def _lost(self, error: Exception) -> None:
        fault = base.DriverFault(base.FaultKind.DEVICE_LOST, base.lost(error))
        self._send(self._fault(fault, self._fence, 0))

    def _close(self) -> None:
        if self._driver is not None:
            self._driver.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="drivers.host")
    parser.add_argument("--socket", type=int, required=True, help="inherited SEQPACKET socket")
    parser.add_argument("--bulk", type=int, required=True, help="inherited memfd")
    parser.add_argument("--host", type=int, default=-1, help="inherited memfd of host tiers")
    parser.add_argument("--device", required=True)
    parser.add_argument("--heartbeat", type=float, default=process.HEARTBEAT_S, help="seconds")
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the kernel decides
    options = _options()
    process.tie_to_parent()
    process.no_dumps(debuggers=True)
    setproctitle(f"llmos-driver {options.device}")
    # Read once by torch, when it is first asked for memory: large tensors lie on huge pages, which
    # makes what reads all weights for every token up to a twentieth faster.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for fd in (options.socket, options.bulk, options.host):
        if fd >= 0:
            os.set_inheritable(fd, False)  # a child that kept the socket would hide our death
    bulk = memoryview(mmap.mmap(options.bulk, 0))
    sock = socket.socket(fileno=options.socket)
    code = Host(sock, bulk, options.host, options.device, options.heartbeat).serve()
    os._exit(code)  # neither threads nor atexit hooks may hold it up


if __name__ == "__main__":
    main()
