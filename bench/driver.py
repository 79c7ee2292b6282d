"""A driver host without a kernel: the bare loop that the kernel is compared with.

`Bare` starts the same process as the kernel does, over the same socket, and gives it the same
steps: the same batch, chunks, block order and greedy sampling. There are no clients, no checks and
no tables but these.

As a bench it is compared with the bare linear layers (`bench.linear`).
"""

import select
import time
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bench.booted import UP_S, model_dir
from bench.linear import Linears
from bench.pairs import BATCHES, CTX, compare, compare_prefill
from bench.record import Result
from drivers import base, wire
from drivers.base import ints, reals, seeds
from kernel.link import HostLink

DEVICE, DTYPE, MODEL = "cpu0", "bfloat16", 1
BLOCK_SIZE = 16
NUM_BLOCKS = 1200
BULK = 1 << 20
CHUNK = 512
"""Of a prefill, as in kernel/config.py."""


@dataclass(eq=False)
class Seq:
    """Ids with KV: how many, in which blocks; and the id that comes next."""

    slot: int
    length: int = 0
    next_id: int = 0
    blocks: "array[int]" = field(default_factory=lambda: array("i"))


class Bare:
    """One driver host with the model, and the sequences in it."""

    def __init__(self, host_bytes: int = 0, kv_dtype: str = "") -> None:
        self._link = HostLink(DEVICE, BULK, host_bytes)
        self._link.start()
        self._link.send(base.Hello(*base.ABI, wire.schema(), 1, DEVICE))
        self._receive(base.Ready)
        load = base.Load(MODEL, str(model_dir()), DTYPE, BLOCK_SIZE, NUM_BLOCKS, 0, 0, False, 0)
        self._link.send(load._replace(host_bytes=host_bytes, kv_dtype=kv_dtype))
        self.loaded: base.Loaded = self._receive(base.Loaded)
        self._free = deque(range(1, self.loaded.num_blocks))
        self._value = 0
        self._random = Random(1)
        self._decoding: list[Seq] = []

    def close(self) -> None:
        """End the host."""
        self._link.close()

    # --- measures -----------------------------------------------------------------------------

    def prefill(self, prompt: int) -> float:
        """Return the seconds from a prompt to its first id."""
        ids = self._ids(prompt)
        sequence = Seq(self.loaded.max_seqs - 1)
        start = time.perf_counter()
        self._prefill(sequence, ids)
        took = time.perf_counter() - start
        self._trim(sequence, 0)
        return took

    def decode(self, batch: int, steps: int) -> float:
        """Return the seconds of a step in which `batch` sequences get an id each."""
        while len(self._decoding) < batch:
            self._decoding.append(Seq(len(self._decoding)))
            self._prefill(self._decoding[-1], self._ids(CTX))
        work = self._decoding[:batch]
        self._step([(sequence, [sequence.next_id]) for sequence in work])
        start = time.perf_counter()
        for _ in range(steps):
            self._step([(sequence, [sequence.next_id]) for sequence in work])
        took = time.perf_counter() - start
        for sequence in work:
            self._trim(sequence, CTX)
        return took / steps

    def _ids(self, count: int) -> list[int]:
        return [self._random.randrange(self.loaded.vocab) for _ in range(count)]

    # --- sequences ----------------------------------------------------------------------------

    def _prefill(self, sequence: Seq, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            self._step([(sequence, chunk)], samples=start + len(chunk) == len(ids))

    def _trim(self, sequence: Seq, length: int) -> None:
        """Shorten a sequence and give its blocks back."""
        keep = -(-length // BLOCK_SIZE)
        self._free.extend(sequence.blocks[keep:])
        del sequence.blocks[keep:]
        sequence.length = length

    def _step(self, work: list[tuple[Seq, Sequence[int]]], samples: bool = True) -> None:
        """Run one step; where it samples, take the id that comes next."""
        ops: list[Any] = [self._execute(work, samples)]
        if samples:
            ops.append(_greedy([sequence for sequence, _ in work]))
        self._value += 1
        queue = base.Queue.COMPUTE
        self._link.send(base.Submit(1, queue, self._value, (), MODEL, tuple(ops)))
        results = self._receive(base.Complete).results
        if samples:
            for (sequence, _), drawn in zip(work, base.read_ints(results[0].ids), strict=True):
                sequence.next_id = drawn

    def _execute(self, work: list[tuple[Seq, Sequence[int]]], samples: bool) -> base.Execute:
        """Return the forward step; its tokens count as stored from here on."""
        tokens, positions, slots, blocks = array("i"), array("i"), array("i"), array("i")
        ends, table_ends = array("i", [0]), array("i", [0])
        for sequence, ids in work:
            span = range(sequence.length, sequence.length + len(ids))
            sequence.length = span.stop
            while len(sequence.blocks) * BLOCK_SIZE < span.stop:
                sequence.blocks.append(self._free.popleft())
            table = sequence.blocks
            tokens.extend(ids)
            positions.extend(span)
            slots.extend([table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in span])
            blocks.extend(table)
            ends.append(len(tokens))
            table_ends.append(len(blocks))
        rows = [end - 1 for end in ends[1:]] if samples else []
        return base.Execute(
            MODEL, self._value, tokens.tobytes(), positions.tobytes(), ends.tobytes(),
            ints(sequence.length for sequence, _ in work), ints(s.slot for s, _ in work),
            ints([1] * len(work)), ints(rows),
            (base.BlockTable(table_ends.tobytes(), blocks.tobytes(), slots.tobytes()),),
        )  # fmt: skip

    def _receive(self, kind: type[Any]) -> Any:
        """Return the next message of a kind; others tell of progress, or of a fault."""
        descriptor = self._link.fileno()
        while True:
            message = self._link.receive()
            if isinstance(message, kind):
                return message
            if isinstance(message, base.Fault):
                raise base.DriverFault(base.FaultKind(message.kind), message.message)
            if message is None and not select.select([descriptor], [], [], UP_S)[0]:
                raise TimeoutError(f"the driver host said nothing for {UP_S:g} s")


def _greedy(sequences: list[Seq]) -> base.Sample:
    count = len(sequences)
    return base.Sample(
        ints(range(count)), reals([0.0] * count), ints([0] * count), reals([1.0] * count),
        reals([0.0] * count), seeds([0] * count), ints(s.length for s in sequences),
        ints([-1] * count),
    )  # fmt: skip


def run() -> Iterator[Result]:
    """Compare the driver with the linear layers that it must compute."""
    linears = Linears()
    with closing(Bare()) as host:
        yield compare_prefill("driver prefill", host, linears, "bare linear layers")
        for batch in BATCHES:
            yield compare("driver decode", host, linears, "bare linear layers", batch)
