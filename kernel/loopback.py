"""Loopback: a driver in the kernel's process, for tests and the simulator, which lets it work.

Messages go through their bytes all the same. A death loses what the driver had; the host memory
stays, as it would with a host process.
"""

import mmap
import os
from collections import deque
from collections.abc import Iterable
from random import Random
from threading import Semaphore
from typing import Any

from drivers import base, registry, wire
from kernel.host_memory import HostMemory
from kernel.link import LinkDown


class LoopbackLink:
    """A driver in this process. `pump` makes it work; without it messages only queue up.

    With `beside`, each message that `pump` takes is any queue's oldest whose waits have passed, as
    if every queue had a thread of its own (feature "copy_queues"); without, they go as they came.
    """

    def __init__(
        self,
        device: str,
        bulk_bytes: int = 1 << 20,
        host_bytes: int = 0,
        beside: Random | None = None,
    ) -> None:
        self.device = device
        self.host_pid = os.getpid()
        self._window = HostMemory(f"{device}-bulk", bulk_bytes)
        self._bulk = mmap.mmap(self._window.fd, bulk_bytes)
        self._host = HostMemory(device, host_bytes)
        self._beside = beside
        self._driver: base.Driver | None = None
        self.inbox: deque[Any] = deque()
        self.outbox: deque[bytes] = deque()
        self._dead = ""
        self._answered = Semaphore(0)

    def start(self) -> None:
        self.inbox.clear()
        self.outbox.clear()
        self._dead = ""
        window = memoryview(self._bulk)
        self._driver = registry.open_driver(self.device, self._take, window, self.host_fd)

    @property
    def bulk_fd(self) -> int:
        """The bulk window, which is the same for all epochs."""
        return self._window.fd

    @property
    def host_fd(self) -> int:
        return self._host.fd

    def zero_host(self, ranges: Iterable[tuple[int, int]], keep: bool = False) -> None:
        self._host.zero(ranges, keep)

    def zero_bulk(self, offset: int, length: int) -> None:
        self._window.zero([(offset, length)], keep=True)

    def _take(self, message: Any) -> None:
        self._emit(message)
        if isinstance(message, base.Complete | base.Fault | base.Compiled):
            self._answered.release()

    def _emit(self, message: Any) -> None:
        self.outbox.append(wire.encode(message))

    def fileno(self) -> int | None:
        return None

    def send(self, message: Any) -> None:
        if self._dead:
            raise LinkDown(self._dead)
        self.inbox.append(wire.decode(wire.encode(message)))

    @property
    def has_room(self) -> bool:
        return True

    def receive(self) -> Any | None:
        if self._dead:
            raise LinkDown(self._dead)
        if not self.outbox:
            return None
        try:
            return wire.decode(self.outbox.popleft())
        except wire.BadMessage as error:
            self.die()
            raise LinkDown(f"{self.device}: sent garbage ({error})") from None

    def pump(self, count: int = 1 << 30) -> int:
        """Let the driver work on up to `count` messages; return how many it did."""
        done = 0
        while self.inbox and done < count:
            self._handle(self._next())
            done += 1
        return done

    def _next(self) -> Any:
        """Take the message that runs next."""
        if self._beside is None:
            return self.inbox.popleft()
        oldest: dict[int, int] = {}  # by queue; what is no Submit goes with COMPUTE
        for place, message in enumerate(self.inbox):
            oldest.setdefault(getattr(message, "queue", base.Queue.COMPUTE), place)
        # the first of all waits for nothing, so there is always one
        place = self._beside.choice([p for p in oldest.values() if not self._waits(p)])
        message = self.inbox[place]
        del self.inbox[place]
        return message

    def _waits(self, place: int) -> bool:
        """Whether a message must run after one that came before it and has not run yet."""
        message = self.inbox[place]
        before = [self.inbox[p] for p in range(place)]
        submits = [other for other in before if isinstance(other, base.Submit)]
        if isinstance(message, base.Unload):
            return any(other.model == message.model for other in submits)
        waits = set(message.waits) if isinstance(message, base.Submit) else set()
        return any((other.epoch, other.queue, other.value) in waits for other in submits)

    def _handle(self, message: Any) -> None:
        driver = self._driver
        assert driver is not None
        try:
            if isinstance(message, base.Hello):
                self._emit(self._ready(driver.hello(message)))
            elif isinstance(message, base.Load):
                self._emit(driver.load(message))
            elif isinstance(message, base.Submit):
                driver.submit(message)
                self._answered.acquire()  # an asynchronous driver emits it from another thread
            elif isinstance(message, base.Compile):
                driver.compile(message)
                self._answered.acquire()
            elif isinstance(message, base.Forget):
                driver.forget(message)
            elif isinstance(message, base.Unload):
                driver.unload(message)
            elif isinstance(message, base.Stats):
                self._emit(driver.stats())
        except base.DriverFault as fault:
            self._emit(base.Fault(0, 0, 0, fault.kind, fault.message, fault.items))

    def _ready(self, ready: base.Ready) -> base.Ready:
        added = ("copy_queues",) if self._beside else ()
        return ready._replace(features=ready.features + added)

    def die(self) -> None:
        """Lose the driver and all that it had, as a crash would (fault injection)."""
        self._driver = None
        self.inbox.clear()
        self.outbox.clear()
        self._dead = f"{self.device}: loopback driver died"

    def kill(self) -> None:
        self.die()
