"""Copies between the pool and the host tier, against plain memory copies of as many bytes.

On the real model, in a driver host of its own. Blocks are scattered on both sides, as they are
after a while, and are more than a cache holds. Copies out are measured where the pages of the host
memory are there, and where the kernel has given them back; then copies out and in beside decode
steps, and what that does to the steps.
"""

import ctypes
import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from random import Random
from statistics import median
from typing import Any

from bench.driver import MODEL, NUM_BLOCKS, Bare
from bench.record import Result
from drivers import base
from drivers.base import Direction, Queue, ints

HOST_BYTES = 256 << 20
BLOCKS = 500
ROUNDS = 5
BATCH, STEPS = 8, 12
PIECE = 32
"""Blocks of one copy beside steps."""
COPIES = (Queue.COPY_OUT, Queue.COPY_IN)


class Copier(Bare):
    """A driver host with a host tier."""

    def __init__(self) -> None:
        self._values = dict.fromkeys(COPIES, 0)
        self._beside = False  # each copy begins again when it has ended, until a step has
        self._at = 0
        self._rates: list[float] = []
        self._seconds: list[float] = []
        super().__init__(HOST_BYTES)
        random = Random(2)
        self._pool = random.sample(range(NUM_BLOCKS // 2, NUM_BLOCKS), BLOCKS)
        self._host = random.sample(range(self.loaded.num_host_blocks), BLOCKS)

    @property
    def num_bytes(self) -> int:
        """Of all blocks that are copied."""
        return BLOCKS * self.loaded.block_bytes

    def zero(self, keep: bool) -> None:
        """Zero the host blocks, as the kernel does."""
        size = self.loaded.block_bytes
        self._link.zero_host([(block * size, size) for block in self._host], keep)

    def copy(self, queue: Queue) -> float:
        """Copy all blocks out or in; return the bytes a second, by the driver's own clock."""
        self._send(queue, range(BLOCKS))
        return self.num_bytes / _took(self._receive(base.Complete))

    def step(self, beside: bool) -> tuple[float, float]:
        """Return the seconds of a decode step, and the rate of the copies beside it."""
        self._rates.clear()
        self._seconds.clear()
        self._beside = beside
        for queue in COPIES if beside else ():
            self._send(queue, self._next())
        self.decode(BATCH, STEPS)
        self._beside = False
        for _ in COPIES if beside else ():
            self._receive(base.Complete)
        return median(self._seconds[-STEPS:]), median(self._rates or [0.0])

    def _next(self) -> Sequence[int]:
        """Return the next piece, so that no cache has it from the last time."""
        self._at = (self._at + PIECE) % (BLOCKS - PIECE)
        return range(self._at, self._at + PIECE)

    def _send(self, queue: Queue, which: Sequence[int]) -> None:
        pool, host = ints(self._pool[at] for at in which), ints(self._host[at] for at in which)
        out = base.Copy(Direction.D2H, pool, host), base.Copy(Direction.H2D, host, pool)
        self._values[queue] += 1
        op = out[queue == Queue.COPY_IN]
        self._link.send(base.Submit(1, queue, self._values[queue], (), MODEL, (op,)))

    def _receive(self, kind: type[Any]) -> Any:
        """Return the next message of a kind; beside copies, the next answer of a step."""
        while True:
            answer = super()._receive(kind)
            if isinstance(answer, base.Complete) and answer.queue == Queue.COMPUTE:
                self._seconds.append(_took(answer))
            elif self._beside:
                self._rates.append(PIECE * self.loaded.block_bytes / _took(answer))
                self._send(Queue(answer.queue), self._next())
                continue
            return answer


def _took(complete: base.Complete) -> float:
    return (complete.end_us - complete.start_us) / 1e6


class Plain:
    """Memory of as many bytes that is copied in one piece, by one thread."""

    def __init__(self, num_bytes: int) -> None:
        self._size = num_bytes
        self._maps = [mmap.mmap(-1, num_bytes) for _ in range(2)]
        self._where = [ctypes.addressof(ctypes.c_char.from_buffer(m)) for m in self._maps]
        for where in self._where:
            ctypes.memset(where, 1, num_bytes)

    def copy(self) -> float:
        """Return the bytes a second."""
        start = time.perf_counter()
        ctypes.memmove(*self._where, self._size)
        return self._size / (time.perf_counter() - start)


def run() -> Iterator[Result]:
    """Measure copies alone, then beside steps."""
    with closing(Copier()) as host:
        plain = Plain(host.num_bytes)

        def out(keep: bool) -> float:
            host.zero(keep)
            return host.copy(Queue.COPY_OUT)

        yield against("out", plain, lambda: out(keep=True))
        yield against("out to pages given back", plain, lambda: out(keep=False))
        yield against("in", plain, lambda: host.copy(Queue.COPY_IN))
        yield from beside(host, plain)


def against(case: str, plain: Plain, copy: Callable[[], float]) -> Result:
    """Compare copies with plain ones in turns."""
    copy(), plain.copy()
    pairs = [(copy(), plain.copy()) for _ in range(ROUNDS)]
    ratios = [ours / other for ours, other in pairs]
    return Result(
        "copies", case, max(ours for ours, _ in pairs) / 1e9, "GB/s",
        median(ratios), "a plain memory copy", {"ratios": [round(r, 3) for r in ratios]},
    )  # fmt: skip


def beside(host: Copier, plain: Plain) -> Iterator[Result]:
    """Measure decode steps with copies out and in beside them all the time, and without."""
    host.step(beside=False)
    rounds = [(host.step(True), host.step(False), plain.copy()) for _ in range(ROUNDS)]
    rates = [busy[1] / other for busy, _, other in rounds]
    slower = [busy[0] / quiet[0] for busy, quiet, _ in rounds]
    yield Result(
        "copies", f"beside decode B={BATCH}", max(busy[1] for busy, _, _ in rounds) / 1e9, "GB/s",
        median(rates), "a plain memory copy with nothing beside it",
        {"ratios": [round(r, 3) for r in rates]},
    )  # fmt: skip
    yield Result(
        "copies", f"decode B={BATCH} beside them", median(busy[0] for busy, _, _ in rounds) * 1e3,
        "ms", median(slower), "the same step alone", {"ratios": [round(r, 3) for r in slower]},
    )  # fmt: skip
