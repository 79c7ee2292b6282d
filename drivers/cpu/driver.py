"""The CPU driver: one device `cpu0`, synchronous, torch underneath.

A Submit is checked whole (`drivers.plan`), run op by op, and answered before `submit` returns, so
every wait for a fence of another queue has passed by then. The host tier of a CPU device would be
the same memory, so there is none.

Loading: an Estimate comes first, made without allocating; then the weights, then the pool, then a
warm-up that touches the memory of the largest steps. From there on memory does not grow.

`deterministic` costs time and buys this: the logits and the KV of a sequence are the same bits
alone or in any batch, with any chunking of its prefill, computed once or again after a loss. Rows
then go through the model in tiles of fixed size (`drivers.models.decoder`), through attention tile
by tile in an order that only positions decide (`drivers.cpu.ordered`), and the number of threads is
a power of two, so that no thread's share of a row ends within a vector.

Energy: the machines at hand have no counter to read, and a guess would be labelled so; none here.
"""

import os
import time
from array import array
from typing import Any

import psutil
import torch
from torch import Tensor

from drivers import base, wire
from drivers.base import DriverFault, FaultKind
from drivers.cpu import machine
from drivers.cpu.model import CpuModel
from drivers.models.errors import ModelError
from drivers.plan import Draws, Plan, shape_of
from drivers.pool import DTYPES, KvPool
from drivers.sampling import sample
from drivers.submit import Fences, check_ops

FEATURES = (
    "copy_d2d", "scrub", "export", "import", "checksum",
    "sample", "logprobs", "last_sample", "reset", "deterministic",
)  # fmt: skip


class CpuDriver:
    """One CPU, at most one model."""

    def __init__(self, emit: base.Emit, bulk: memoryview) -> None:
        self._emit, self._bulk = emit, bulk
        self._fences = Fences(0)
        self._loaded: CpuModel | None = None
        self._last: dict[int, tuple[int, int]] = {}
        self._steps = self._tokens = self._busy_us = 0

    def hello(self, hello: base.Hello) -> base.Ready:
        schema = wire.schema()
        if hello.major != base.ABI[0] or hello.schema != schema:
            raise DriverFault(
                FaultKind.UNSUPPORTED,
                f"the kernel speaks driver ABI {hello.major}.{hello.minor} {hello.schema}, "
                f"this driver {base.ABI[0]}.{base.ABI[1]} {schema}",
            )
        self._fences = Fences(hello.epoch)
        threads = machine.set_threads(0, False)
        return base.Ready(
            *base.ABI, schema, hello.epoch, "cpu", hello.device, os.getpid(),
            f"{machine.cpu_name()}, {threads} threads, torch {torch.__version__}",
            machine.memory_total(), machine.memory_free(), tuple(DTYPES), FEATURES, "none",
        )  # fmt: skip

    def load(self, load: base.Load) -> base.Loaded:
        if self._loaded is not None:
            model = self._loaded.answer.model
            raise DriverFault(FaultKind.MODEL_LOAD, f"model {model} is loaded; unload it first")
        if load.num_host_blocks:
            what = f"a host tier of {load.num_host_blocks} blocks: the device is the host's memory"
            raise DriverFault(FaultKind.UNSUPPORTED, what)
        if load.kv_dtype not in ("", load.dtype):
            what = f"KV in {load.kv_dtype}: here it has the weights' dtype, {load.dtype}"
            raise DriverFault(FaultKind.UNSUPPORTED, what)
        try:
            self._loaded = CpuModel(load, self._emit)
        except ModelError as error:
            what = f"{error}; {error.hint}" if error.hint else str(error)
            raise DriverFault(FaultKind.MODEL_LOAD, what) from None
        return self._loaded.answer

    def unload(self, unload: base.Unload) -> None:
        if self._loaded is not None and self._loaded.answer.model == unload.model:
            self._loaded = None
            self._last.clear()

    def stats(self) -> base.StatsReply:
        pool = self._loaded.pool.pool_bytes if self._loaded else 0
        resident = psutil.Process().memory_info().rss
        return base.StatsReply(resident, pool, self._steps, self._tokens, self._busy_us, 0)

    def close(self) -> None:
        self._loaded = None
        self._last.clear()

    def submit(self, submit: base.Submit) -> None:
        start = time.monotonic_ns()
        try:
            self._fences.accept(submit)
            shape = shape_of(self._loaded.answer, len(self._bulk)) if self._loaded else None
            results = self._run(check_ops(submit, shape, self._last))
        except DriverFault as fault:
            answer: Any = base.Fault(
                submit.epoch, submit.queue, submit.value, fault.kind, fault.message, fault.items
            )
        else:
            end = time.monotonic_ns()
            self._busy_us += (end - start) // 1000
            answer = base.Complete(
                submit.epoch, submit.queue, submit.value, start // 1000, end // 1000, results
            )
        self._emit(answer)

    @torch.inference_mode()
    def _run(self, ops: list[tuple[Any, Any]]) -> tuple[Any, ...]:
        assert self._loaded is not None
        results: list[Any] = []
        step: tuple[Plan, Tensor] | None = None
        for op, read in ops:
            match op:
                case base.Execute():
                    step = read, self._loaded.execute(read, self._last)
                    self._steps += 1
                    self._tokens += len(read.tokens)
                case base.Sample():
                    assert step is not None
                    results.append(self._sample(read, *step))
                case base.Reset():
                    self._last[op.slot] = op.generation, read[-1]
                case base.Checksum():
                    results.append(list(self._loaded.pool.checksum(_blocks(read))))
                case _:
                    self._move(op, read, self._loaded.pool)
        return tuple(results)

    def _sample(self, draws: Draws, plan: Plan, logits: Tensor) -> base.Sampled:
        sampled = sample(logits, draws)
        drawn = zip(draws.rows, base.read_ints(sampled.ids), sampled.flags, strict=True)
        for sequence, token, flag in drawn:
            slot = plan.slots[sequence]
            if flag:
                self._last.pop(slot, None)
            else:
                self._last[slot] = plan.generations[sequence], token
        return sampled

    def _move(self, op: Any, read: Any, pool: KvPool) -> None:
        """Run an op on whole blocks."""
        match op:
            case base.Copy():
                pool.copy(_blocks(read[0]), _blocks(read[1]))
            case base.Scrub():
                pool.scrub(_blocks(read))
            case base.Export():
                pool.export(_blocks(read), self._bulk[op.offset :])
            case base.Import():
                pool.restore(_blocks(read), self._bulk[op.offset :])


def _blocks(values: "array[int]") -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def open_driver(emit: base.Emit, bulk: memoryview) -> base.Driver:
    """Return the driver of this machine's CPU."""
    machine.keep_freed_memory()
    return CpuDriver(emit, bulk)
