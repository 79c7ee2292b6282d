"""The engine: prefill and decode on the real model, through system calls.

One client with as many streams as the batch has, as an agent with forks would have; what the client
itself costs is in the numbers. Each is compared with the bare linear layers of the same shapes
(`bench.linear`): the part of the time that no kernel and no driver can save.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from bench.booted import Booted, booted, smollm2
from bench.linear import Linears
from bench.pairs import BATCHES, CTX, compare, compare_prefill
from bench.record import Result
from syscalls import Context, Task

NUM_BLOCKS = 1200
LATE = 4
"""Steps by which the first stream of a batch may be ahead of the last."""


class Served:
    """A kernel and one client of it; an engine of `bench.pairs`."""

    def __init__(self, kernel: Booted, task: Task) -> None:
        self.kernel = kernel
        self._task = task
        self._vocab = task.models()[0].vocab
        self._random = Random(1)
        self._decoding: list[Context] = []

    def prefill(self, prompt: int) -> float:
        """Return the seconds from a new prompt to its first id."""
        ids = self._ids(prompt)
        with self._task.alloc_ctx() as ctx:
            start = time.perf_counter()
            ctx.append(ids)
            next(ctx.infer(max_tokens=1, temperature=0, ignore_eos=True, text=False))
            return time.perf_counter() - start

    def decode(self, batch: int, steps: int) -> float:
        """Return the seconds of a step; those in which streams still join or end do not count."""
        while len(self._decoding) < batch:
            self._decoding.append(self._task.alloc_ctx())
            self._decoding[-1].append(self._ids(CTX))
        count, work = 1 + steps + LATE, self._decoding[:batch]
        streams = [
            ctx.infer(max_tokens=count, temperature=0, ignore_eos=True, text=False) for ctx in work
        ]
        times = []
        for _ in range(count):
            for stream in streams:
                next(stream)
            times.append(time.perf_counter())
        for stream, ctx in zip(streams, work, strict=True):
            stream.read()
            ctx.trim(CTX)
        return (times[steps] - times[0]) / steps

    def _ids(self, count: int) -> list[int]:
        return [self._random.randrange(self._vocab) for _ in range(count)]


@contextmanager
def served() -> Iterator[Served]:
    """Run a kernel with the real model, and a client."""
    with (
        booted(*smollm2(), "--num-blocks", str(NUM_BLOCKS)) as kernel,
        kernel.connect() as task,
    ):
        yield Served(kernel, task)


def run() -> Iterator[Result]:
    """Measure prefill, and decode of several batches."""
    linears = Linears()
    with served() as engine:
        yield compare_prefill("prefill", engine, linears, "bare linear layers")
        for batch in BATCHES:
            yield compare("decode", engine, linears, "bare linear layers", batch)
