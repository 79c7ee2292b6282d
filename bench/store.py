"""The store: encryption and its process, against plain reads and writes of the same bytes.

On a real store host, in a folder of the system's temporary directory: a save of 180 MiB, from
BeginSave to Saved, against a file that is allocated, written and fsynced; swap out and in, against
pwrite and pread of a file that is allocated. In turns, and both through the same memory.
"""

import os
import select
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench.pairs import Pair, in_turns
from bench.record import Result
from drivers.store import base, wire
from kernel.store import StoreLink

BLOCK_BYTES = 368_640
"""Of smollm2 in bfloat16."""
NUM_BLOCKS = 512
BATCH = 32
"""Blocks of one message: some 11 MiB."""
TOTAL = NUM_BLOCKS * BLOCK_BYTES
AREA = base.Area(0, BLOCK_BYTES, bytes(32), "bfloat16", "30,2,16,3,64")
META = base.SaveMeta(
    "smollm2", bytes(32), "bfloat16", (30, 2, 16, 3, 64), 16, BLOCK_BYTES, 16 * NUM_BLOCKS,
    NUM_BLOCKS, b"",
)  # fmt: skip


class Timed:
    """A store host and plain files in one folder, with one window of BATCH blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._job = 0
        self._window = os.memfd_create("bench")
        os.ftruncate(self._window, BATCH * BLOCK_BYTES)
        self._data = os.urandom(BATCH * BLOCK_BYTES)
        os.pwrite(self._window, self._data, 0)
        self._link = StoreLink([self._window])
        self._link.start()
        state, keys = str(folder / "state"), str(folder / "keys")
        self._ask(base.Open(*base.ABI, wire.schema(), 1, state, keys, TOTAL))
        self._plain = os.open(folder / "plain", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(self._plain, 0, TOTAL)

    def close(self) -> None:
        self._link.kill()
        os.close(self._plain)
        os.close(self._window)

    def _ask(self, *messages: Any) -> None:
        """Send all, then wait for all answers."""
        for message in messages:
            self._link.send(message)
        for _ in messages:
            while (answer := self._link.receive()) is None or isinstance(answer, base.Heartbeat):
                select.select([self._link.fileno()], [], [])
            if isinstance(answer, base.Fault) or any(getattr(answer, "states", b"")):
                raise RuntimeError(f"the store answers {answer}")

    def save(self) -> float:
        self._job += 1
        job = self._job
        places = tuple(n * BLOCK_BYTES for n in range(BATCH))
        blocks = [base.AddBlocks(job, n, 0, places) for n in range(0, NUM_BLOCKS, BATCH)]
        ids = base.AddIds(job, 0, bytes(4 * META.length))
        start = time.perf_counter()
        begin = base.BeginSave(job, 0, "bench", META)
        self._ask(begin, ids, *blocks, base.CommitSave(job))
        elapsed = time.perf_counter() - start
        self._ask(base.Stats(0))  # after the file of the save before has been removed
        return elapsed

    def write_and_sync(self) -> float:
        start = time.perf_counter()
        path = self._folder / "new"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.posix_fallocate(fd, 0, TOTAL)
        for n in range(NUM_BLOCKS // BATCH):
            os.pwrite(fd, self._data, n * len(self._data))
        os.fsync(fd)
        os.close(fd)
        elapsed = time.perf_counter() - start
        path.unlink()
        return elapsed

    def swap(self, kind: Any) -> float:
        """Swap all blocks out or in, a batch a message."""
        start = time.perf_counter()
        for first in range(0, NUM_BLOCKS, BATCH):
            self._job += 1
            blocks = tuple(
                base.Block(first + n, n * BLOCK_BYTES, 0, b"hash", 1) for n in range(BATCH)
            )
            self._ask(kind(self._job, AREA, 0, blocks))
        return time.perf_counter() - start

    def write(self) -> float:
        start = time.perf_counter()
        for n in range(NUM_BLOCKS):
            at = (n % BATCH) * BLOCK_BYTES
            block = memoryview(self._data)[at : at + BLOCK_BYTES]
            os.pwrite(self._plain, block, n * BLOCK_BYTES)
        return time.perf_counter() - start

    def read(self) -> float:
        start = time.perf_counter()
        buffer = bytearray(BLOCK_BYTES)
        for n in range(NUM_BLOCKS):
            os.preadv(self._plain, [buffer], n * BLOCK_BYTES)
        return time.perf_counter() - start


def run() -> Iterator[Result]:
    """Measure all three."""
    with tempfile.TemporaryDirectory() as folder:
        timed = Timed(Path(folder))
        try:
            yield _result("save", in_turns(timed.save, timed.write_and_sync), "write and fsync")
            yield _result(
                "swap out", in_turns(lambda: timed.swap(base.SwapOut), timed.write), "write"
            )
            yield _result("swap in", in_turns(lambda: timed.swap(base.SwapIn), timed.read), "read")
        finally:
            timed.close()


def _result(case: str, pairs: list[Pair], against: str) -> Result:
    best = min(ours for ours, _ in pairs)
    ratios = [other / ours for ours, other in pairs]
    detail = {"ratios": [round(ratio, 3) for ratio in ratios], "bytes": TOTAL}
    return Result("store", case, TOTAL / best / 1e9, "GB/s", median(ratios), against, detail)
