"""The CPU driver: one device `cpu0`, torch underneath, queues that run beside each other.

A Submit is checked whole (`drivers.plan`) when its turn comes, and run op by op. Copies to and from
the host tier are memory copies (`drivers.host_tier`) in the threads of their queues, beside the
forward passes of COMPUTE (`drivers.lanes`). The host tier of a CPU device is memory of the same
kind as its pool; but it outlives the driver, and what goes to the disk goes by it.

Loading: an Estimate comes first, made without allocating; then the weights, then the pool, then a
warm-up that touches the memory of the largest steps. From there on memory does not grow. Each model
has all of that for itself; an Unload gives it back. A further model is loaded beside the steps of
those that are there, which are slower meanwhile.

`deterministic` costs time and buys this: the logits and the KV of a sequence are the same bits
alone or in any batch, with any chunking of its prefill, computed once or again after a loss. Rows
then go through the model in tiles of fixed size (`drivers.models.decoder`), through attention tile
by tile in an order that only positions decide (`drivers.cpu.ordered`), and the number of threads is
a power of two, so that no thread's share of a row ends within a vector.

Energy: the machines at hand have no counter to read, and a guess would be labelled so; none here.
"""

import os
from array import array
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from drivers import base, slots, wire
from drivers.base import DriverFault, FaultKind
from drivers.cpu import machine
from drivers.cpu.model import CpuModel
from drivers.grammar import Vocabulary
from drivers.grammars import Grammars
from drivers.lanes import Lanes
from drivers.models.errors import ModelError
from drivers.models.vocabulary import read_vocabulary
from drivers.plan import Draws, Plan, shape_of
from drivers.pool import DTYPES
from drivers.sampling import sample, score
from drivers.sizes import KV_DTYPES
from drivers.submit import check_ops

FEATURES = (
    "copy_d2d", "scrub", "export", "import", "checksum",
    "sample", "logprobs", "last_sample", "reset", "deterministic", "penalties", "bias", "score",
    "load_beside", "host_tier", "copy_queues", "grammar", "steps_ahead",
    *(f"kv_{name}" for name in KV_DTYPES),
)  # fmt: skip


class CpuDriver:
    """One CPU and its models, of which one is computed at a time."""

    def __init__(self, emit: base.Emit, bulk: memoryview, host: int) -> None:
        self._emit, self._bulk, self._host = emit, bulk, host
        self._lanes = Lanes(0, self._run, emit)
        self._models: dict[int, CpuModel] = {}
        self._grammars = Grammars(emit)
        self._beside = ThreadPoolExecutor(1, "masks")  # it uses no torch: see `_made`
        self._steps = self._tokens = 0

    def hello(self, hello: base.Hello) -> base.Ready:
        schema = wire.schema()
        if hello.major != base.ABI[0] or hello.schema != schema:
            raise DriverFault(
                FaultKind.UNSUPPORTED,
                f"the kernel speaks driver ABI {hello.major}.{hello.minor} {hello.schema}, "
                f"this driver {base.ABI[0]}.{base.ABI[1]} {schema}",
            )
        self._lanes.drain()
        self._lanes = Lanes(hello.epoch, self._run, self._emit)
        threads = machine.set_threads(0, False)
        return base.Ready(
            *base.ABI, schema, hello.epoch, "cpu", hello.device, os.getpid(),
            f"{machine.cpu_name()}, {threads} threads, torch {torch.__version__}",
            machine.memory_total(), machine.memory_free(), tuple(DTYPES), FEATURES, "none",
        )  # fmt: skip

    def load(self, load: base.Load) -> base.Loaded:
        if load.model in self._models:
            raise DriverFault(FaultKind.MODEL_LOAD, f"model {load.model} is loaded already")
        if load.num_host_blocks:
            what = f"a host tier of {load.num_host_blocks} blocks: the device is the host's memory"
            raise DriverFault(FaultKind.UNSUPPORTED, what)
        if load.kv_dtype not in ("", load.dtype, *KV_DTYPES):
            kinds = ", ".join((load.dtype, *KV_DTYPES))
            what = f"KV in {load.kv_dtype}: it can be in {kinds} here"
            raise DriverFault(FaultKind.UNSUPPORTED, what)
        promised = sum(model.host_range.untouched() for model in self._models.values())
        try:
            model = self._made(load, promised)
        except ModelError as error:
            what = f"{error}; {error.hint}" if error.hint else str(error)
            raise DriverFault(FaultKind.MODEL_LOAD, what) from None
        except OSError as error:  # of a path that no file can have, of a folder that is closed
            what = f"cannot read {load.path}: {error.strerror}"
            raise DriverFault(FaultKind.MODEL_LOAD, what) from None
        self._models[load.model] = model
        self._grammars.add_model(load.model, partial(_vocabulary, load.path, model.answer))
        self._lanes.beside |= model.tier is not None
        return model.answer

    def _made(self, load: base.Load, promised: int) -> CpuModel:
        """Make a model in a thread that ends, if its steps will have a thread of their own.

        OpenMP keeps a team for each thread that has used it; with more of them than cores its
        barriers sleep at once, and a step for one sequence takes twice as long.
        """
        if not load.host_bytes:
            return CpuModel(load, self._emit, self._host, promised)
        with ThreadPoolExecutor(1) as apart:
            return apart.submit(CpuModel, load, self._emit, self._host, promised).result()

    def unload(self, unload: base.Unload) -> None:
        self._lanes.drain(unload.model)
        self._grammars.remove_model(unload.model)
        if self._models.pop(unload.model, None) is not None:
            machine.give_back_memory()

    def stats(self) -> base.StatsReply:
        pools = sum(model.pool.pool_bytes for model in self._models.values())
        resident = psutil.Process().memory_info().rss
        return base.StatsReply(resident, pools, self._steps, self._tokens, self._lanes.busy_us, 0)

    def close(self) -> None:
        self._lanes.drain()
        self._models.clear()

    def submit(self, submit: base.Submit) -> None:
        self._lanes.submit(submit)

    def compile(self, compile: base.Compile) -> None:
        self._grammars.compile(compile)

    def forget(self, forget: base.Forget) -> None:
        self._lanes.drain(forget.model)
        self._grammars.forget(forget)

    # --- in the threads of the queues -------------------------------------------------------------

    @torch.inference_mode()
    def _run(self, submit: base.Submit) -> tuple[Any, ...]:
        model = self._models.get(submit.model)
        shape = shape_of(model.answer, len(self._bulk)) if model else None
        grammars = self._grammars.of(submit.model)
        ops = check_ops(submit, shape, model.last if model else {}, grammars)
        assert model is not None, "check_ops refuses a model that is not there"
        results: list[Any] = []
        step: tuple[Plan, Tensor] | None = None
        masks: Future[slots.Masks] | None = None
        for number, (op, read) in enumerate(ops):
            match op:
                case base.Execute():
                    masks = self._begin_masks(ops[number + 1 :], read, model)
                    step = read, model.execute(read)
                    self._steps += 1
                    self._tokens += len(read.tokens)
                case base.Sample():
                    assert step is not None
                    allowed = masks.result() if masks else slots.masks(model.last, read, step[0])
                    results.append(_sample(model, read, *step, allowed))
                    masks = None
                case base.Score():
                    assert step is not None
                    results.append(score(step[1][len(step[1]) - len(read.rows) :], read))
                case base.Reset():
                    slots.reset(model.last, op, read, grammars)
                case base.Checksum():
                    results.append(list(model.pool.checksum(read)))
                case _:
                    self._move(op, read, model)
        return tuple(results)

    def _begin_masks(
        self, ops: list[tuple[Any, Any]], plan: Plan, model: CpuModel
    ) -> "Future[slots.Masks] | None":
        """Begin with the masks of the Sample that is next, if any row may have one."""
        if not ops or not isinstance(ops[0][0], base.Sample) or not any(ops[0][1].adjust):
            return None
        return self._beside.submit(slots.masks, model.last, ops[0][1], plan)

    def _move(self, op: Any, read: Any, model: CpuModel) -> None:
        """Run an op on whole blocks."""
        match op:
            case base.Copy():
                _copy(op.direction, read[0], read[1], model)
            case base.Scrub():
                model.pool.scrub(_blocks(read))
            case base.Export():
                model.pool.export(read, self._bulk, op.offset)
            case base.Import():
                model.pool.restore(read, self._bulk, op.offset)


def _copy(direction: int, src: "array[int]", dst: "array[int]", model: CpuModel) -> None:
    if direction == base.Direction.D2D:
        model.pool.copy(_blocks(src), _blocks(dst))
        return
    assert model.tier is not None, "check_copy refuses a tier that is not there"
    match direction:
        case base.Direction.D2H:
            model.tier.copy_out(model.pool.memory, src, dst)
        case base.Direction.H2D:
            model.tier.copy_in(src, model.pool.memory, dst)
        case base.Direction.H2H:
            model.tier.move(src, dst)


def _sample(
    model: CpuModel, draws: Draws, plan: Plan, logits: Tensor, allowed: slots.Masks
) -> base.Sampled:
    """Draw, and keep what each slot drew."""
    adjusts = [
        model.last[plan.slots[s]].adjust if flag else None
        for s, flag in zip(draws.rows, draws.adjust, strict=bool(draws.adjust))
    ]
    sampled = sample(logits[: len(draws.rows)], draws, adjusts, allowed.masks)
    flags = [flag or none for flag, none in zip(sampled.flags, allowed.flags, strict=True)]
    ids = base.read_ints(sampled.ids)
    for row, (sequence, position) in enumerate(zip(draws.rows, draws.position, strict=True)):
        slot, generation = plan.slots[sequence], plan.generations[sequence]
        if flags[row]:
            ids[row] = 0
        slots.drew(model.last, slot, generation, position, ids[row])
        flags[row] = flags[row] or slots.completes(model.last, slot)
    return sampled._replace(ids=ids.tobytes(), flags=bytes(flags))


def _vocabulary(path: str, loaded: base.Loaded) -> Vocabulary:
    """Read a model's vocabulary; ModelError if it has none."""
    return Vocabulary(read_vocabulary(Path(path), loaded.vocab), loaded.eos_ids)


def _blocks(values: "array[int]") -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def open_driver(emit: base.Emit, bulk: memoryview, host: int) -> base.Driver:
    """Return the driver of this machine's CPU."""
    machine.keep_freed_memory()
    return CpuDriver(emit, bulk, host)
