"""Null driver: the reference, without a model. The kernel is built and tested on it.

It keeps real bytes: a slot holds an 8-byte digest of (token, position, digest of the slot before),
the slot before being read through the block table. The next id of a row comes from a digest of all
slots of its sequence up to its position, read through the block table; above temperature 0 also of
(seed, position): see `drivers.null_model`. So a wrong block, an early reuse, a skipped copy, a
stale import or an overwritten block changes the output. A slot that was never written is zero, and
reading it is PLAN_INVALID.

A token whose write goes to the null block has been computed before: its slot is read as it is, and
where it does not hold what the token would give, the row's id changes.

A Submit is a transaction: what a fault finds already written is put back. The host tier is bytes of
its own (Load.num_host_blocks), or lies in the host memory and outlives it (Load.host_bytes).

The builtin model: "null:vocab=512,step_us=0,token_us=0,eos=-1,max_ctx=8192". The two times are
slept per Execute and per token, to look like a device.
"""

import hashlib
import mmap
import os
import time
from bisect import bisect_right
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from drivers import base, slots, wire
from drivers.base import Direction, DriverFault, FaultKind
from drivers.grammar import Grammar
from drivers.grammars import Grammars
from drivers.host_tier import HostRange, host_range
from drivers.null_model import (
    SLOT,
    ZERO,
    Best,
    Draw,
    Options,
    adjusted_draw,
    draw,
    parse_options,
    slot_digest,
    vocabulary,
)
from drivers.plan import Draws, Given, Plan, invalid, shape_of
from drivers.submit import Fences, check_ops

MEMORY = 1 << 28
"""Bytes that this device says it has, for both tiers; the host memory is the kernel's."""
MOST_BLOCKS = 1 << 16
"""Of a pool that is sized by kv_bytes."""
MAX_LOGIT_ROWS = 256
FEATURES = (
    "copy_d2d", "copy_host", "host_tier", "scrub", "export", "import", "checksum",
    "sample", "logprobs", "last_sample", "reset", "penalties", "bias", "score", "grammar",
    "steps_ahead",
)  # fmt: skip


Store = bytearray | mmap.mmap
"""What blocks lie in."""


class NullDriver:
    """A device of digests. Synchronous: a Submit is done when `submit` returns."""

    def __init__(self, emit: base.Emit, bulk: memoryview, host: int) -> None:
        self.models: dict[int, NullModel] = {}
        self._emit = emit
        self._bulk = bulk
        self._host = host
        self._fences = Fences(0)
        self._grammars = Grammars(emit)
        self._steps = self._tokens = self._busy_us = 0

    # --- outside of steps ---------------------------------------------------------------------

    def hello(self, hello: base.Hello) -> base.Ready:
        """Begin the epoch; UNSUPPORTED if the kernel speaks another ABI."""
        theirs, ours = (hello.major, hello.schema), (base.ABI[0], wire.schema())
        if theirs != ours:
            raise DriverFault(FaultKind.UNSUPPORTED, f"ABI {theirs}, this driver speaks {ours}")
        self._fences = Fences(hello.epoch)
        return base.Ready(
            *base.ABI, wire.schema(), hello.epoch, "null", hello.device, os.getpid(),
            "digests instead of a model", MEMORY, self._free(),
            ("float32", "bfloat16"), FEATURES, "none",
        )  # fmt: skip

    def _free(self) -> int:
        return MEMORY - sum(model.num_bytes for model in self.models.values())

    def load(self, load: base.Load) -> base.Loaded:
        """Make the pool of a model."""
        start = time.monotonic_ns()
        if load.model in self.models:
            raise DriverFault(FaultKind.MODEL_LOAD, f"model {load.model} is loaded already")
        if load.kv_dtype not in ("", load.dtype):
            raise DriverFault(FaultKind.UNSUPPORTED, "digests have no dtype of their own")
        options, num_host = parse_options(load.path), load.num_host_blocks
        if not 0 < load.block_size <= 4096:
            raise DriverFault(FaultKind.MODEL_LOAD, f"block_size {load.block_size}, limit is 4096")
        block_bytes, free = SLOT * load.block_size, self._free()
        tier = host_range(load, self._host, block_bytes)
        num_blocks = load.num_blocks or min(load.kv_bytes // block_bytes, MOST_BLOCKS)
        self._emit(base.Estimate(load.model, 0, block_bytes, num_blocks, free))
        needed = (num_blocks + num_host) * block_bytes
        if num_blocks < 2 or num_host < 0 or needed > free:
            raise DriverFault(
                FaultKind.OOM,
                f"{num_blocks} blocks and {num_host} of the host tier take {needed} "
                f"bytes; at least 2 blocks and at most {free} bytes are needed",
            )
        loaded = base.Loaded(
            load.model, "null", 1, options.vocab,
            min(load.max_ctx, options.max_ctx) or options.max_ctx, 0,
            (options.eos,) if options.eos >= 0 else (),
            (base.KvGroup(1, "full", 0, 1, SLOT // 2, "uint8"),), load.block_size, block_bytes,
            num_blocks, load.dtype, 2048, 256, 32768, (time.monotonic_ns() - start) // 1000,
            num_host or tier.num_bytes // block_bytes, MAX_LOGIT_ROWS,
            hashlib.sha256(b"null 1").hexdigest(),
        )  # fmt: skip
        self.models[load.model] = NullModel(loaded, options, self._bulk, tier)
        self._grammars.add_model(load.model, partial(vocabulary, options))
        return loaded

    def unload(self, unload: base.Unload) -> None:
        """Give a pool back."""
        self.models.pop(unload.model, None)
        self._grammars.remove_model(unload.model)

    def compile(self, compile: base.Compile) -> None:
        """Compile a grammar, beside whatever is submitted."""
        self._grammars.compile(compile)

    def forget(self, forget: base.Forget) -> None:
        """Drop a grammar."""
        self._grammars.forget(forget)

    def stats(self) -> base.StatsReply:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return base.StatsReply(
            pages * os.sysconf("SC_PAGESIZE"), MEMORY - self._free(),
            self._steps, self._tokens, self._busy_us, 0,
        )  # fmt: skip

    def close(self) -> None:
        """Nothing is ever pending."""

    def submit(self, submit: base.Submit) -> None:
        """Run all ops, or none."""
        start = time.monotonic_ns() // 1000
        fence = submit.epoch, submit.queue, submit.value
        model = self.models.get(submit.model)
        try:
            self._fences.accept(submit)
            shape, last = (model.shape, slots.copy(model.last)) if model else (None, {})
            grammars = self._grammars.of(submit.model)
            ops = check_ops(submit, shape, last, grammars)
            results = model.run(ops, last, grammars) if model else ()
        except DriverFault as fault:
            self._emit(base.Fault(*fence, fault.kind, fault.message, fault.items))
            return
        end = time.monotonic_ns() // 1000
        self._busy_us += end - start
        for op, read in ops:
            if isinstance(op, base.Execute):
                self._steps += 1
                self._tokens += len(read.tokens)
        self._emit(base.Complete(*fence, start, end, results))


class NullModel:
    """The memory of one model, and what steps do to it."""

    def __init__(
        self, loaded: base.Loaded, options: Options, bulk: memoryview, tier: HostRange
    ) -> None:
        self.shape = shape_of(loaded, len(bulk))
        self.last: dict[int, slots.Slot] = {}
        self.pool = bytearray(loaded.num_blocks * loaded.block_bytes)
        self._host: Store = (
            tier.map() if tier.num_bytes
            else bytearray(loaded.num_host_blocks * loaded.block_bytes)
        )  # fmt: skip
        self._bulk = bulk
        self._options = options
        self._block_bytes = loaded.block_bytes
        self._undo: list[tuple[Store, int, bytes]] = []
        self._grammars: Mapping[int, Grammar] = {}

    @property
    def num_bytes(self) -> int:
        return len(self.pool) + (len(self._host) if isinstance(self._host, bytearray) else 0)

    def block(self, block: int) -> slice:
        """Return where a block lies in its pool."""
        return slice(block * self._block_bytes, (block + 1) * self._block_bytes)

    def run(
        self,
        ops: list[tuple[Any, Any]],
        last: dict[int, slots.Slot],
        grammars: Mapping[int, Grammar],
    ) -> tuple[Any, ...]:
        """Run ops that were checked against `last`, or put back what they have written."""
        before, self.last = self.last, last
        self._grammars = grammars
        self._undo.clear()
        try:
            return self._run(ops)
        except DriverFault:
            for store, where, content in reversed(self._undo):
                store[where : where + len(content)] = content
            self.last = before
            raise

    def _run(self, ops: list[tuple[Any, Any]]) -> tuple[Any, ...]:
        results: list[Any] = []
        step: tuple[Plan, list[bytes]] | None = None
        for op, read in ops:
            match op:
                case base.Execute():
                    step = read, self._execute(read)
                case base.Sample():
                    assert step is not None
                    results.append(self._sample(read, *step))
                case base.Score():
                    assert step is not None
                    results.append(self._score(read, step[1][len(step[1]) - len(read.rows) :]))
                case base.Reset():
                    slots.reset(self.last, op, read, self._grammars)
                case base.Checksum():
                    results.append([self._checksum(block) for block in read])
                case _:
                    self._move(op, read)
        return tuple(results)

    def _write(self, store: Store, start: int, data: bytes) -> None:
        end = start + len(data)
        self._undo.append((store, start, bytes(store[start:end])))
        store[start:end] = data

    def _move(self, op: Any, read: Any) -> None:
        """Run an op on whole blocks."""
        match op:
            case base.Scrub():
                for block in read:
                    self._write(self.pool, self.block(block).start, bytes(self._block_bytes))
            case base.Copy():
                tiers: dict[Direction, tuple[Store, Store]] = {
                    Direction.D2D: (self.pool, self.pool), Direction.D2H: (self.pool, self._host),
                    Direction.H2D: (self._host, self.pool), Direction.H2H: (self._host, self._host),
                }  # fmt: skip
                source, target = tiers[Direction(op.direction)]
                data = [bytes(source[self.block(block)]) for block in read[0]]
                for block, content in zip(read[1], data, strict=True):
                    self._write(target, self.block(block).start, content)
            case base.Export():
                raw = b"".join(self.pool[self.block(block)] for block in read)
                self._bulk[op.offset : op.offset + len(raw)] = raw
            case base.Import():
                for index, block in enumerate(read):
                    start = op.offset + index * self._block_bytes
                    raw = bytes(self._bulk[start : start + self._block_bytes])
                    self._write(self.pool, self.block(block).start, raw)

    def _checksum(self, block: int) -> str:
        return hashlib.blake2b(self.pool[self.block(block)], digest_size=16).hexdigest()

    def _execute(self, plan: Plan) -> list[bytes]:
        """Store all tokens, then return the history of each logit row."""
        options, num_tokens = self._options, len(plan.tokens)
        if options.step_us or options.token_us:
            time.sleep((options.step_us + options.token_us * num_tokens) / 1e6)
        own: dict[int, bytes] = {}
        for s in sorted(range(len(plan.kv_len)), key=lambda s: self._turn(s, plan)):
            self._store(s, plan, own)
        seen: dict[int, bytes] = {}
        rows = []
        for row in plan.logit_rows:
            s = bisect_right(plan.qo_indptr, row) - 1
            if s not in seen:
                seen[s] = self._history(s, plan)
            end = (plan.positions[row] + 1) * SLOT
            rows.append(seen[s][:end] + own.get(row, b""))
        return rows

    def _turn(self, s: int, plan: Plan) -> tuple[bool, int]:
        """What a sequence reads of another one in the same step must be stored before: so by
        position, and those that store nothing come last."""
        first = plan.qo_indptr[s]
        nowhere = plan.tables[0].write_slot[first] < self.shape.block_size
        return nowhere, plan.positions[first]

    def _store(self, s: int, plan: Plan, own: dict[int, bytes]) -> None:
        """Store a sequence's tokens; note in `own` those whose filled slot holds another digest."""
        table, pool = plan.tables[0], self.pool
        first, last = plan.qo_indptr[s], plan.qo_indptr[s + 1]
        size = self._block_bytes // SLOT
        blocks = table.blocks[table.indptr[s] : table.indptr[s + 1]]
        position = plan.positions[first]
        prev = self._read(blocks, position - 1) if position else ZERO
        for index in range(first, last):
            token = plan.tokens[index]
            if token == base.LAST_SAMPLE:
                token = self.last[plan.slots[s]].last
            digest = slot_digest(token, position, prev)
            slot = table.write_slot[index]
            if slot >= size:
                start = slot * SLOT
                self._undo.append((pool, start, bytes(pool[start : start + SLOT])))
                pool[start : start + SLOT] = prev = digest
            else:
                prev = self._read(blocks, position)
                if prev != digest:
                    own[index] = digest
            position += 1

    def _read(self, blocks: Any, position: int) -> bytes:
        """Return the slot of a position; PLAN_INVALID if it was never written."""
        size = self._block_bytes // SLOT
        start = (blocks[position // size] * size + position % size) * SLOT
        digest = bytes(self.pool[start : start + SLOT])
        if digest == ZERO:
            raise self._unwritten(blocks, position)
        return digest

    def _unwritten(self, blocks: Any, position: int) -> DriverFault:
        size = self._block_bytes // SLOT
        block, offset = blocks[position // size], position % size
        return invalid(f"position {position} is read at block {block} offset {offset}: not written")

    def _history(self, s: int, plan: Plan) -> bytes:
        """Return the slots of a sequence, read through its table."""
        table, pool, size = plan.tables[0], self.pool, self._block_bytes
        first, num_slots = table.indptr[s], plan.kv_len[s]
        blocks = table.blocks[first : first + -(-num_slots * SLOT // size)]
        raw = b"".join([pool[block * size : (block + 1) * size] for block in blocks])
        history = raw[: num_slots * SLOT]
        hole = history.find(ZERO)
        while hole >= 0:
            if hole % SLOT == 0:
                raise self._unwritten(blocks, hole // SLOT)
            hole = history.find(ZERO, hole + 1)
        return history

    def _sample(self, draws: Draws, plan: Plan, rows: list[bytes]) -> base.Sampled:
        vocab = self._options.vocab
        ids: list[int] = []
        logprobs: list[float] = []
        best = Best(vocab)
        masks, flags = slots.masks(self.last, draws, plan)
        for r, s in enumerate(draws.rows):
            history, slot, position = rows[r], plan.slots[s], draws.position[r]
            how = Draw(
                draws.temperature[r], draws.seed[r], position,
                draws.top_k[r], draws.top_p[r], draws.min_p[r],
            )  # fmt: skip
            adjust = self.last[slot].adjust if draws.adjust and draws.adjust[r] else None
            drawn = (
                adjusted_draw(history, how, adjust, vocab, masks[r]) if adjust
                else draw(history, how, vocab)
            )  # fmt: skip
            ids.append(0 if flags[r] else drawn)
            slots.drew(self.last, slot, plan.generations[s], position, ids[r])
            flags[r] = flags[r] or slots.completes(self.last, slot)
            logprobs.append(best.add(history, drawn, draws.num_logprobs[r]))
        return base.Sampled(base.ints(ids), bytes(flags), base.reals(logprobs), *best.raw())

    def _score(self, given: Given, rows: list[bytes]) -> base.Scored:
        best = Best(self._options.vocab)
        logprobs = base.reals(map(best.add, rows, given.ids, given.num_logprobs))
        return base.Scored(bytes(len(rows)), logprobs, *best.raw())


def open_driver(emit: base.Emit, bulk: memoryview, host: int) -> base.Driver:
    """Return a null driver."""
    return NullDriver(emit, bulk, host)
