"""Submit: the order of fences, and the checks of all ops before the first of them runs.

`Fences` knows what was submitted. `check_ops` looks at every op of a Submit and raises PLAN_INVALID
(UNSUPPORTED for a host tier that is not there, SLOT_LOST for a last sample or counts that nobody
has); then nothing has run. It returns each op with its buffers read:

    Reset   -> ids              Copy   -> (src, dst)     Execute -> Plan
    Scrub, Export, Import, Checksum -> blocks            Sample  -> Draws     Score -> Given

The logit rows of a Plan are those of its Sample, then those of its Score.
"""

from array import array
from collections.abc import Container, Mapping
from math import isfinite
from typing import Any

from drivers import base, wire
from drivers.base import NULL_BLOCK, Direction, DriverFault, FaultKind
from drivers.plan import (
    Draws,
    Plan,
    Shape,
    check_execute,
    check_length,
    check_range,
    check_sample,
    check_score,
    invalid,
    read_ints,
)
from drivers.slots import Ahead, Known, Slot, adjusts

MAX_ANSWER = wire.MAX_MESSAGE - 1024
"""Bytes that the results of a Submit may take."""
COMPUTE_ONLY = (base.Reset, base.Execute, base.Sample, base.Score)
HOST_SOURCE = (Direction.H2D, Direction.H2H)
HOST_TARGET = (Direction.D2H, Direction.H2H)


class Fences:
    """Passed fences of one epoch, for drivers that finish a Submit before they take the next."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._passed = dict.fromkeys(base.Queue, 0)

    def accept(self, submit: base.Submit) -> None:
        """Check the fence and the waits of a Submit; its fence counts as passed from here on."""
        epoch, queue, value = submit.epoch, submit.queue, submit.value
        if epoch != self._epoch:
            raise invalid(f"a Submit of epoch {epoch} in epoch {self._epoch}")
        passed = self._passed.get(queue)  # type: ignore[call-overload]
        if passed is None:
            raise invalid(f"queue {queue}, there are {len(self._passed)}")
        if value != passed + 1:
            raise invalid(f"value {value} on queue {queue} after {passed}; values rise by one")
        self._passed[base.Queue(queue)] = value
        for wait in submit.waits:
            reached = self._passed.get(wait.queue, 0)  # type: ignore[call-overload]
            if wait.epoch != epoch or wait.queue == queue or not 0 < wait.value <= reached:
                raise invalid(f"a wait for {tuple(wait)}, which was never submitted")


def check_ops(
    submit: base.Submit,
    shape: Shape | None,
    slots: Mapping[int, Slot],
    grammars: Container[int] = (),
) -> list[tuple[Any, Any]]:
    """Check all ops of a Submit; return (op, what was read of it) for each.

    `grammars` has the numbers of those that are compiled for the model.
    """
    if shape is None or submit.model != shape.model:
        raise invalid(f"model {submit.model} is not loaded")
    state = Ahead(slots)
    plan: Plan | None = None
    forward, scored = 0, False  # where the Execute of `plan` stands; whether it has its Score
    drawn: list[tuple[Draws, Plan]] = []  # what `state` does not know of yet
    checked: list[tuple[Any, Any]] = []
    for op in submit.ops:
        kind = type(op)
        if kind in COMPUTE_ONLY and submit.queue != base.Queue.COMPUTE:
            raise invalid(f"{kind.__name__} on queue {submit.queue}, it runs on queue 0 only")
        read: Any
        if drawn:
            _follow(drawn.pop(), state)
        if kind is base.Execute:
            read = plan = check_execute(op, shape)
            forward, scored = len(checked), False
            _check_slots(plan, state)
        elif kind is base.Sample:
            read = check_sample(op, plan, shape)
            assert plan is not None
            _check_draws(read, plan, state)
            drawn.append((read, plan))
        elif kind is base.Score:
            read = check_score(op, plan, shape)
            assert plan is not None
            if scored:
                raise invalid("an Execute has two Scores")
            scored = True
            whole = plan._replace(logit_rows=plan.logit_rows + read.rows)
            checked[forward] = checked[forward][0], whole
        elif kind is base.Reset:
            read = check_reset(op, shape, state[op.slot])
            if op.grammar and op.grammar not in grammars:
                raise invalid(f"grammar {op.grammar} is not compiled for model {shape.model}")
            length = op.start + len(read) if op.start or op.num_prompt >= 0 else None
            state[op.slot] = Known(op.generation, adjusts(op), length)
        elif kind is base.Copy:
            read = check_copy(op, shape)
        else:
            read = check_blocks(op, shape)
        checked.append((op, read))
    size = sum(map(_answer_bytes, checked))
    if size > MAX_ANSWER:
        raise invalid(f"the results would take {size} bytes, a message holds {MAX_ANSWER}")
    return checked


def _answer_bytes(checked: tuple[Any, Any]) -> int:
    """Return the most that the result of an op takes in a message."""
    op, read = checked
    if isinstance(op, base.Checksum):
        return 5 + 34 * len(read)
    if isinstance(op, base.Sample):
        best = sum(max(0, count) for count in read.num_logprobs)
        return int(32 + 9 * len(read.rows) + 8 * best)
    if isinstance(op, base.Score):
        return int(32 + 5 * len(read.rows) + 8 * sum(read.num_logprobs))
    return 0


def _check_draws(draws: Draws, plan: Plan, state: Ahead) -> None:
    """Refuse rows whose adjustments are not there."""
    rows = zip(draws.rows, draws.position, draws.adjust, strict=False)
    lost = [
        plan.slots[s]
        for s, position, adjust in rows
        if adjust and not state[plan.slots[s]].fits(plan.generations[s], position)
    ]
    if lost:
        raise DriverFault(FaultKind.SLOT_LOST, f"no counts or biases of slots {lost}", lost)


def _follow(drawn: tuple[Draws, Plan], state: Ahead) -> None:
    """Note what the draws before an op do to their slots."""
    draws, plan = drawn
    for s, position in zip(draws.rows, draws.position, strict=True):
        slot = plan.slots[s]
        state[slot] = state[slot].drew(plan.generations[s], position)


def _check_slots(plan: Plan, state: Ahead) -> None:
    """Refuse a LAST_SAMPLE of a slot whose last sample is not there."""
    if base.LAST_SAMPLE not in plan.tokens:
        return
    lost = [
        plan.slots[s]
        for s in range(len(plan.slots))
        if base.LAST_SAMPLE in plan.tokens[plan.qo_indptr[s] : plan.qo_indptr[s + 1]]
        and state[plan.slots[s]].generation != plan.generations[s]
    ]
    if lost:
        raise DriverFault(FaultKind.SLOT_LOST, f"no last sample of slots {lost}", lost)


def check_reset(reset: base.Reset, shape: Shape, before: Known) -> "array[int]":
    """Check a Reset; return its ids. `before` is what is known of its slot."""
    ids = read_ints(reset.ids)
    if not 0 <= reset.slot < shape.max_seqs:
        raise invalid(f"slot {reset.slot}, there are {shape.max_seqs}")
    if not ids:
        raise invalid(f"the Reset of slot {reset.slot} has no ids")
    check_range("id", ids, 0, shape.vocab)
    if not 0 <= reset.start <= shape.max_ctx - len(ids) and (reset.start or reset.num_prompt >= 0):
        raise invalid(f"{len(ids)} ids from {reset.start} on are counted, max_ctx {shape.max_ctx}")
    if reset.start:
        if reset[4:] != base.Reset(0, 0, b"")[4:]:
            raise invalid("a Reset that goes on has ids only")
        if (before.generation, before.length) != (reset.generation, reset.start):
            what = f"slot {reset.slot} has not counted the {reset.start} ids before"
            raise DriverFault(FaultKind.SLOT_LOST, what, (reset.slot,))
    _check_adjust(reset, shape)
    if reset.grammar and (reset.num_prompt < 0 or not 0 <= reset.grammar_from <= shape.max_ctx):
        what = f"grammar {reset.grammar} from position {reset.grammar_from} on"
        raise invalid(f"{what}, num_prompt {reset.num_prompt}, max_ctx {shape.max_ctx}")
    return ids


def _check_adjust(reset: base.Reset, shape: Shape) -> None:
    numbers = reset.repetition, reset.presence, reset.frequency
    if not all(map(isfinite, numbers)) or reset.repetition <= 0:
        raise invalid("repetition {:g}, presence {:g}, frequency {:g}".format(*numbers))
    if numbers != (1, 0, 0) and reset.num_prompt < 0:
        raise invalid("penalties, and the ids are not counted")
    bias_ids = read_ints(reset.bias_ids)
    check_range("bias id", bias_ids, 0, shape.vocab)
    if len(reset.bias) != 4 * len(bias_ids) or len(set(bias_ids)) != len(bias_ids):
        raise invalid(f"{len(bias_ids)} bias ids, distinct ones, for {len(reset.bias)} bytes")
    if len(bias_ids) > base.MAX_BIAS:
        raise invalid(f"a bias of {len(bias_ids)} ids, the limit is {base.MAX_BIAS}")
    if not all(map(isfinite, base.read_reals(reset.bias))):
        raise invalid("a bias is no number")


def check_copy(copy: base.Copy, shape: Shape) -> tuple["array[int]", "array[int]"]:
    """Check a Copy; return its source and target blocks."""
    if copy.direction not in list(Direction):
        raise invalid(f"direction {copy.direction} of a Copy")
    check_group(copy)
    src, dst = read_ints(copy.src), read_ints(copy.dst)
    check_length("dst", dst, len(src))
    for blocks, host in (
        (src, copy.direction in HOST_SOURCE),
        (dst, copy.direction in HOST_TARGET),
    ):
        if host and not shape.num_host_blocks:
            raise DriverFault(FaultKind.UNSUPPORTED, "this device has no host tier")
        check_range("block", blocks, not host, shape.num_host_blocks if host else shape.num_blocks)
    if len(set(dst)) != len(dst):
        raise invalid("two copies go to the same block")
    return src, dst


def check_group(op: Any) -> None:
    """Refuse blocks of a KV group that there is not."""
    if op.group != 0:
        raise invalid(f"{type(op).__name__} in KV group {op.group}, the model has 1")


def check_blocks(op: Any, shape: Shape) -> "array[int]":
    """Check a Scrub, Checksum, Export or Import; return its blocks."""
    if not isinstance(op, base.Scrub | base.Checksum | base.Export | base.Import):
        raise invalid(f"{type(op).__name__} is no op")
    blocks = read_ints(op.blocks)
    check_range("block", blocks, NULL_BLOCK, shape.num_blocks)
    check_group(op)
    if isinstance(op, base.Checksum) and len(blocks) > base.MAX_CHECKSUMS:
        raise invalid(f"checksums of {len(blocks)} blocks, the limit is {base.MAX_CHECKSUMS}")
    if isinstance(op, base.Import) and len(set(blocks)) != len(blocks):
        raise invalid("a block would be imported twice")
    if isinstance(op, base.Export | base.Import):
        end = op.offset + len(blocks) * shape.block_bytes
        if op.offset < 0 or end > shape.bulk_bytes:
            raise invalid(f"bulk bytes {op.offset} to {end}, the window has {shape.bulk_bytes}")
    return blocks
