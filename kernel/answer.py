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
from kernel.request import Request, Scores, Token
from syscalls.errors import EINVAL, EIO, KernelError

MAX_BLOCKS = 1 << 24
"""Of a pool, so that a driver cannot make the kernel count more than it can hold."""

MAX_EOS = 256
"""Ids that end a text, of a model; clients get them in one row."""


MAX_DIGEST = 64
"""Characters of a model's digest."""


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
    host_bytes: int = 0  # of the host tier
    kv_dtype: str = ""  # empty: dtype
    overcommit: float = 16.0  # blocks that contexts may name, times those that there are


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
        "block_bytes": (1, 1 << 40),
        "num_host_blocks": (0, MAX_BLOCKS if spec.host_bytes else 0),
    }
    for name, (least, most) in limits.items():
        value = getattr(loaded, name)
        if not least <= value <= most:
            raise Lie(f"loaded a model with {name} {value}, allowed are {least} to {most}")
    if len(loaded.digest) > MAX_DIGEST or not set(loaded.digest) <= set("0123456789abcdef"):
        raise Lie("loaded a model whose digest is no hexadecimal number")
    if loaded.num_host_blocks * loaded.block_bytes > spec.host_bytes:
        raise Lie(
            f"loaded a model with {loaded.num_host_blocks} host blocks of {loaded.block_bytes} "
            f"bytes in {spec.host_bytes}"
        )
    if len(loaded.eos_ids) > MAX_EOS:
        raise Lie(f"loaded a model with {len(loaded.eos_ids)} end ids, the limit is {MAX_EOS}")
    if before and _lasting(loaded) != _lasting(before):
        raise Lie("loaded another model than before its restart")


def _lasting(loaded: base.Loaded) -> base.Loaded:
    """Return it without what may differ between two loads of one model."""
    return loaded._replace(num_blocks=0, load_us=0, weights_bytes=0)


def check_fence(answer: base.Complete | base.Fault, epoch: int, in_flight: int) -> None:
    """Refuse an answer to anything but the one Submit that is in flight on its queue."""
    if not in_flight or (answer.epoch, answer.value) != (epoch, in_flight):
        fence = answer.epoch, answer.queue, answer.value
        raise Lie(f"ended fence {fence}, in flight is {in_flight or 'none'} of epoch {epoch}")


def check_copied(complete: base.Complete) -> None:
    """Refuse an answer to a copy that no copy can have."""
    if complete.end_us < complete.start_us or complete.results:
        raise Lie("copied blocks, and answered something else")


Result = Token | Scores | KernelError
"""What a step gave a request: an id, probabilities, or the error that ends it."""


def read_results(
    complete: base.Complete,
    samplers: Sequence[Request],
    scorers: Sequence[tuple[Request, int]],
    vocab: int,
) -> list[Result]:
    """Return what a step gave each request that asked for a sample, then for so many scores."""
    if complete.end_us < complete.start_us:
        raise Lie("ended a step before it began")
    if len(complete.results) != bool(samplers) + bool(scorers):
        raise Lie(f"gave {len(complete.results)} results for {len(samplers)} rows")
    results = list(complete.results)
    answers: list[Result] = []
    if samplers:
        answers += _samples(results.pop(0), samplers, vocab)
    if scorers:
        answers += _scores(results.pop(0), scorers, vocab)
    return answers


NO_ID = {
    base.RowFlag.NO_MATCH: (
        "no id follows by the grammar: the output so far does not fit it, or ends it",
        "grammar_from is where the output begins that is to fit the grammar",
    ),
    base.RowFlag.GRAMMAR_LIMIT: (
        "to follow the grammar takes more than the driver gives a step",
        "make it simpler: fewer alternatives that begin alike, smaller counts of repetition",
    ),
}
"""What a row without an id means for its infer."""


def _samples(sampled: object, samplers: Sequence[Request], vocab: int) -> list[Result]:
    if type(sampled) is not base.Sampled:
        raise Lie("sampled nothing")
    counts = [request.infer.logprobs or 0 for request in samplers if request.infer is not None]
    rows, best = len(samplers), sum(counts)
    _check_sizes(sampled, (rows * 4, rows, rows * 4, best * 4, best * 4))
    ids, logprobs = base.read_ints(sampled.ids), base.read_reals(sampled.logprobs)
    top = _Top(sampled)
    answers: list[Result] = []
    for row, count in enumerate(counts):
        pairs = top.next(count)
        if sampled.flags[row] == base.RowFlag.NUMERIC:
            answers.append(_numeric("sampled"))
            continue
        flags, follows = sampled.flags[row], samplers[row].grammar is not None
        if follows and flags in NO_ID:
            answers.append(EINVAL(*NO_ID[base.RowFlag(flags)]))
            continue
        last = follows and flags == base.RowFlag.COMPLETE
        _check_row(row, 0 if last else flags, [(ids[row], logprobs[row]), *pairs], vocab)
        answers.append(Token(ids[row], logprobs[row], pairs, last))
    return answers


def _scores(scored: object, scorers: Sequence[tuple[Request, int]], vocab: int) -> list[Result]:
    if type(scored) is not base.Scored:
        raise Lie("scored nothing")
    rows = sum(count for _, count in scorers)
    best = sum(count * request.score.top for request, count in scorers if request.score)
    _check_sizes(scored, (rows, rows * 4, best * 4, best * 4))
    logprobs, top = base.read_reals(scored.logprobs), _Top(scored)
    answers: list[Result] = []
    first = 0
    for request, count in scorers:
        assert request.score is not None
        mine, first = range(first, first + count), first + count
        scores = Scores(
            list(logprobs[mine.start : mine.stop]), [top.next(request.score.top) for _ in mine]
        )
        if any(scored.flags[row] == base.RowFlag.NUMERIC for row in mine):
            answers.append(_numeric("scored"))
            continue
        for row, logprob, pairs in zip(mine, *scores, strict=True):
            _check_row(row, scored.flags[row], [(0, logprob), *pairs], vocab)
        answers.append(scores)
    return answers


def _numeric(what: str) -> KernelError:
    return EIO(f"the model's logits are not numbers (NaN or Inf); nothing was {what}")


class _Top:
    """The best ids of all rows, to be taken row by row."""

    def __init__(self, result: base.Sampled | base.Scored) -> None:
        ids, logprobs = base.read_ints(result.top_ids), base.read_reals(result.top_logprobs)
        self._pairs = list(zip(ids, logprobs, strict=True))
        self._first = 0

    def next(self, count: int) -> list[tuple[int, float]]:
        self._first += count
        return self._pairs[self._first - count : self._first]


def _check_sizes(result: base.Sampled | base.Scored, sizes: Sequence[int]) -> None:
    for name, raw, size in zip(result._fields, result, sizes, strict=True):
        if len(raw) != size:
            raise Lie(f"gave {len(raw)} bytes of {name}, and {size} were asked for")


def _check_row(row: int, flags: int, pairs: list[tuple[int, float]], vocab: int) -> None:
    if flags:
        raise Lie(f"set flags {flags:#x} of row {row}")
    for token, logprob in pairs:
        if not 0 <= token < vocab:
            raise Lie(f"sampled id {token} in row {row}, the vocabulary has {vocab}")
        if not logprob < inf:  # NaN is not
            raise Lie(f"gave logprob {logprob} in row {row}")
