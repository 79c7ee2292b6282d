"""Answer: what a driver says, and whether it may be believed.

A driver is a process of its own that can be wrong. Its messages have the types that the ABI
declares (drivers/wire.py sees to that); here their values are compared with what was asked. What
does not fit is a `Lie`: the driver is replaced, and nothing of the message has had an effect. Ids
that leave this module are in the model's vocabulary, logprobs are numbers.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from drivers import base
from kernel.request import Request, Token
from syscalls.errors import EIO, KernelError

MAX_BLOCKS = 1 << 24
"""Of a pool, so that a driver cannot make the kernel count more than it can hold."""

MAX_EOS = 256
"""Ids that end a text, of a model; clients get them in one row."""


class Lie(Exception):
    """A message that the ABI does not allow here; the text says what the driver did."""


class ModelSpec(NamedTuple):
    """What to load, and the budget for it."""

    name: str
    path: str
    dtype: str
    block_size: int
    num_blocks: int  # 0: as many as kv_bytes allows
    kv_bytes: int
    max_ctx: int  # 0: the model's own
    deterministic: bool
    threads: int


def check_loaded(
    loaded: base.Loaded, number: int, spec: ModelSpec, before: base.Loaded | None
) -> None:
    """Compare a loaded model with what was to be loaded, and with the one of the epoch before."""
    limits = {
        "model": (number, number),
        "vocab": (1, 1 << 31),
        "max_ctx": (1, spec.max_ctx or (1 << 31) - 1),
        "block_size": (spec.block_size, spec.block_size),
        "num_blocks": (before.num_blocks if before else 2, spec.num_blocks or MAX_BLOCKS),
        "max_tokens": (1, 1 << 31),
        "max_seqs": (1, 1 << 31),
        "max_block_refs": (1, 1 << 31),
    }
    for name, (least, most) in limits.items():
        value = getattr(loaded, name)
        if not least <= value <= most:
            raise Lie(f"loaded a model with {name} {value}, allowed are {least} to {most}")
    if len(loaded.eos_ids) > MAX_EOS:
        raise Lie(f"loaded a model with {len(loaded.eos_ids)} end ids, the limit is {MAX_EOS}")
    if before and _lasting(loaded) != _lasting(before):
        raise Lie("loaded another model than before its restart")


def _lasting(loaded: base.Loaded) -> base.Loaded:
    """Return it without what may differ between two loads of one model."""
    return loaded._replace(num_blocks=0, load_us=0, weights_bytes=0)


def check_fence(answer: base.Complete | base.Fault, epoch: int, in_flight: int) -> None:
    """Refuse an answer to anything but the one Submit that is in flight."""
    fence = answer.epoch, answer.queue, answer.value
    if not in_flight or fence != (epoch, base.Queue.COMPUTE, in_flight):
        raise Lie(f"ended fence {fence}, in flight is {in_flight or 'none'} of epoch {epoch}")


def read_samples(
    complete: base.Complete, samplers: Sequence[Request], vocab: int
) -> list[Token | KernelError]:
    """Return what was sampled for each request of the step that asked for it."""
    if complete.end_us < complete.start_us:
        raise Lie("ended a step before it began")
    if len(complete.results) != bool(samplers):
        raise Lie(f"gave {len(complete.results)} results for {len(samplers)} rows")
    if not samplers:
        return []
    (sampled,) = complete.results
    if type(sampled) is not base.Sampled:
        raise Lie("sampled nothing")
    counts = [request.infer.logprobs or 0 for request in samplers if request.infer is not None]
    _check_sizes(sampled, len(samplers), sum(counts))
    ids, logprobs = base.read_ints(sampled.ids), base.read_reals(sampled.logprobs)
    top_ids, top_logprobs = base.read_ints(sampled.top_ids), base.read_reals(sampled.top_logprobs)
    first, answers = 0, list[Token | KernelError]()
    for row, count in enumerate(counts):
        best = slice(first, first + count)
        first += count
        if sampled.flags[row] == base.RowFlag.NUMERIC:
            answers.append(
                EIO("the model's logits are not numbers (NaN or Inf); nothing was sampled")
            )
            continue
        top = list(zip(top_ids[best], top_logprobs[best], strict=True))
        _check_row(row, sampled.flags[row], [(ids[row], logprobs[row]), *top], vocab)
        answers.append(Token(ids[row], logprobs[row], top))
    return answers


def _check_sizes(sampled: base.Sampled, rows: int, best: int) -> None:
    sizes = (rows * 4, rows, rows * 4, best * 4, best * 4)
    for name, raw, size in zip(sampled._fields, sampled, sizes, strict=True):
        if len(raw) != size:
            raise Lie(f"sampled {len(raw)} bytes of {name}, {rows} rows need {size}")


def _check_row(row: int, flags: int, pairs: list[tuple[int, float]], vocab: int) -> None:
    if flags:
        raise Lie(f"set flags {flags:#x} of row {row}")
    for token, logprob in pairs:
        if not 0 <= token < vocab:
            raise Lie(f"sampled id {token} in row {row}, the vocabulary has {vocab}")
        if not logprob < inf:  # NaN is not
            raise Lie(f"gave logprob {logprob} in row {row}")
