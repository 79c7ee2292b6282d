"""Drawing ids from logits, in torch, on any device.

A row's result is a pure function of (its logits, its parameters, seed, position): nothing is kept
between calls and no row sees another. Three things make it so:

- The noise of an id is a hash of (seed, position, id), turned into Gumbel noise; the id with the
  largest scaled logit plus noise is then a sample of the softmax. No generator has a state.
- top-k, top-p and min-p are thresholds on the logit, ties included, so that what is kept does not
  depend on how a sort breaks ties or on how many rows were sorted together. In this order:
  temperature; top_k keeps what is not below the k-th largest; top_p keeps the smallest set of the
  rest, largest first, whose mass reaches p; min_p keeps what has p >= min_p * p(largest).
- What decides between ids is computed in float64: whether a vector unit or a scalar tail worked on
  an element may change its last bit, and that depends on where in the batch it lies.

Rows that a slot adjusts (bias, penalties: `drivers.slots`) are drawn from a copy of their logits;
of rows with a mask (grammars) what is not allowed has no probability. Log-probabilities are always
of the logits as they came from the model.

Greedy (temperature 0) is the first of equal maxima. Noise is drawn only for ids that can still win:
with 32 random bits it is below NOISE_MAX, so an id further than that below a certain one cannot.

A row with NaN or Inf among its logits, adjusted or not, gets the flag NUMERIC, id 0 and
log-probability 0.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drivers.base import RowFlag, Sampled, Scored, ints, reals
from drivers.plan import Draws, Given
from drivers.sizes import ROWS_AT_ONCE as ROWS_AT_ONCE
from drivers.slots import Adjust

NOISE_BITS = 32
NOISE_MAX = -math.log(-math.log1p(-(0.5**NOISE_BITS) / 2))
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # the constants of splitmix64, as signed 64-bit
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_FIRST_SORTED = 256  # candidates looked at for top_p before everything is sorted


@dataclass(frozen=True, slots=True)
class Rows:
    """The parameters of the rows to draw, as tensors."""

    temperature: Tensor  # float32, > 0
    top_k: Tensor  # int64
    top_p: Tensor  # float64
    min_p: Tensor  # float64
    seed: Tensor  # int64, wrapped
    position: Tensor  # int64

    def take(self, rows: Tensor) -> "Rows":
        return Rows(*(getattr(self, name)[rows] for name in self.__slots__))


def sample(
    logits: Tensor,
    draws: Draws,
    adjusts: Sequence[Adjust | None] = (),
    masks: Sequence[bytes | None] = (),
) -> Sampled:
    """Draw one id per row of `logits` [R, vocab].

    `adjusts` and `masks`, if not empty, have one per row. A mask has a bit for each id that may be
    drawn, at least one, the lowest of its first byte for id 0.
    """
    pieces = [
        _sample(
            logits[rows], Draws._make(values[rows] for values in draws), adjusts[rows], masks[rows]
        )
        for rows in _slices(len(logits))
    ]
    return Sampled(*(b"".join(piece[field] for piece in pieces) for field in range(5)))


def score(logits: Tensor, given: Given) -> Scored:
    """Return the log-probability of one given id per row of `logits` [R, vocab]."""
    pieces = [
        _score(logits[rows], Given._make(values[rows] for values in given))
        for rows in _slices(len(logits))
    ]
    return Scored(*(b"".join(piece[field] for piece in pieces) for field in range(4)))


def _slices(count: int) -> list[slice]:
    return [slice(at, at + ROWS_AT_ONCE) for at in range(0, count, ROWS_AT_ONCE)]


def _score(logits: Tensor, given: Given) -> Scored:
    logits, finite = _finite(logits)
    ids = torch.frombuffer(given.ids, dtype=torch.int32).to(logits.device)
    logprobs, top_ids, top_logprobs = _logprobs(logits, ids, given.num_logprobs)
    logprobs = [value if ok else 0.0 for value, ok in zip(logprobs, finite.tolist(), strict=True)]
    return Scored(_flags(finite), reals(logprobs), ints(top_ids), reals(top_logprobs))


def _finite(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits in float32, rows that are no numbers as zeros, and which rows are numbers."""
    finite = logits.sum(-1, dtype=torch.float32).isfinite()
    logits = logits.float()
    if not bool(finite.all()):
        logits = torch.where(finite[:, None], logits, 0.0)
    return logits, finite


def _flags(finite: Tensor) -> bytes:
    return bytes(((~finite).to(torch.uint8) * int(RowFlag.NUMERIC)).tolist())


def _sample(
    logits: Tensor, draws: Draws, adjusts: Sequence[Adjust | None], masks: Sequence[bytes | None]
) -> Sampled:
    model, finite = logits, _ = _finite(logits)
    if any(adjusts):
        logits, still = _finite(adjust(logits, adjusts))
        finite = finite & still
    if any(masks):
        logits = masked(logits, masks)
    ids = logits.argmax(-1)
    rows = _read_rows(draws, logits.device)
    drawn = (rows.temperature > 0).nonzero().view(-1)
    if drawn.numel():
        ids[drawn] = draw(logits[drawn], rows.take(drawn))
    ids = ids.masked_fill_(~finite, 0)
    logprobs, top_ids, top_logprobs = _logprobs(model, ids, draws.num_logprobs)
    logprobs = [value if ok else 0.0 for value, ok in zip(logprobs, finite.tolist(), strict=True)]
    return Sampled(
        ints(ids.tolist()),
        _flags(finite),
        reals(logprobs),
        ints(top_ids),
        reals(top_logprobs),
    )


def adjust(logits: Tensor, adjusts: Sequence[Adjust | None]) -> Tensor:
    """Return float32 logits with some rows adjusted, as `drivers.base.Reset` says."""
    logits = logits.clone()
    for row, how in zip(logits, adjusts, strict=True):
        if how is not None and how.bias_ids:
            ids = _numbers(how.bias_ids, torch.int32, row).long()
            row[ids] += _numbers(how.bias, torch.float32, row)  # the ids are distinct
        if how is not None and how.counts is not None and how.penalizes:
            ids = _numbers(how.counts.ids, torch.int32, row).long()
            count = _numbers(how.counts.output, torch.int32, row)
            seen = row[ids]
            seen = torch.where(seen > 0, seen / how.repetition, seen * how.repetition)
            row[ids] = seen - (how.presence * (count > 0) + how.frequency * count)
    return logits


def masked(logits: Tensor, masks: Sequence[bytes | None]) -> Tensor:
    """Return float32 logits with -inf where a row's mask has no bit."""
    logits = logits.clone()
    for row, mask in zip(logits, masks, strict=True):
        if mask is not None:
            bits = torch.frombuffer(bytearray(mask), dtype=torch.uint8).to(row.device)
            shifts = torch.arange(8, dtype=torch.uint8, device=row.device)
            allowed = (bits[:, None] >> shifts & 1).view(-1)[: len(row)]
            row.masked_fill_(allowed == 0, -math.inf)
    return logits


def _numbers(values: "array[int] | array[float]", dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return a copy of an array; while a tensor lies in its memory, it could not grow."""
    return torch.frombuffer(values, dtype=dtype).to(like.device, copy=True)


def draw(logits: Tensor, rows: Rows) -> Tensor:
    """Return an id per row, all temperatures above 0."""
    # below the best, which stays finite however small the temperature is
    scaled = (logits - logits.amax(-1, keepdim=True)) / rows.temperature[:, None]
    best, first = scaled.max(-1)
    certain = best.double() + noise(rows.seed, rows.position, first)
    floor = torch.maximum(thresholds(scaled, rows), certain - NOISE_MAX)
    # float32 rounded down, so that the comparison in float32 keeps all that float64 would
    row, ids = (scaled >= _float_below(floor)[:, None]).nonzero(as_tuple=True)
    scores = scaled[row, ids].double() + noise(rows.seed[row], rows.position[row], ids)
    scores = scores.masked_fill_(scaled[row, ids].double() < floor[row], -math.inf)
    top = torch.full_like(certain, -math.inf).scatter_reduce_(0, row, scores, "amax")
    beaten = scores < top[row]
    ids = ids.masked_fill(beaten, logits.shape[-1])
    return torch.full_like(first, logits.shape[-1]).scatter_reduce_(0, row, ids, "amin")


def thresholds(scaled: Tensor, rows: Rows) -> Tensor:
    """Return the smallest scaled logit that top_k, top_p and min_p let through, per row."""
    best = scaled.amax(-1).double()
    by_k = _top_k(scaled, rows.top_k)
    by_p = _top_p(scaled, by_k, rows.top_p)
    by_min = torch.where(rows.min_p > 0, best + rows.min_p.log(), -math.inf)
    return torch.maximum(torch.maximum(by_k, by_p), by_min).minimum(best)


def noise(seed: Tensor, position: Tensor, ids: Tensor) -> Tensor:
    """Return the Gumbel noise (float64) of `ids`, elementwise; below NOISE_MAX."""
    bits = (hash64(seed, position, ids) >> (64 - NOISE_BITS)) & ((1 << NOISE_BITS) - 1)
    uniform = (bits.double() + 0.5) * 0.5**NOISE_BITS
    return -torch.log(-torch.log(uniform))


def hash64(seed: Tensor, position: Tensor, ids: Tensor) -> Tensor:
    """Return 64 bits per (seed, position, id): splitmix64 once for each of the three."""
    return _mix(_mix(_mix(seed) + position) + ids)


def _mix(x: Tensor) -> Tensor:
    """One step of splitmix64 in wrapping int64."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right filling with zeros; torch's >> repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _float_below(values: Tensor) -> Tensor:
    return torch.nextafter(values.float(), torch.tensor(-math.inf, device=values.device))


def _top_k(scaled: Tensor, top_k: Tensor) -> Tensor:
    """Return the k-th largest of each row, -inf where top_k is off."""
    largest = min(int(top_k.max()), scaled.shape[-1])
    if largest <= 0:
        return torch.full(top_k.shape, -math.inf, dtype=torch.float64, device=scaled.device)
    order = scaled.topk(largest).values
    kth = order.gather(1, (top_k.clamp(1, largest) - 1)[:, None])[:, 0].double()
    return torch.where((top_k > 0) & (top_k <= scaled.shape[-1]), kth, -math.inf)


def _top_p(scaled: Tensor, by_k: Tensor, top_p: Tensor) -> Tensor:
    """Return the smallest value of each row's nucleus, -inf where top_p is off."""
    result = torch.full_like(by_k, -math.inf)
    todo = (top_p < 1).nonzero().view(-1)
    for count in (_FIRST_SORTED, scaled.shape[-1]):
        if not todo.numel():
            break
        rows = scaled[todo]
        floor, reached = _nucleus(rows, by_k[todo], top_p[todo], min(count, rows.shape[-1]))
        result[todo] = floor
        todo = todo[~reached]
    return result


def _nucleus(rows: Tensor, by_k: Tensor, top_p: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the floor of the nucleus within the `count` largest, and whether it lies there."""
    kept = rows.masked_fill(rows.double() < by_k[:, None], -math.inf)
    # log_softmax works row by row, whatever the number of rows; a plain sum does not
    log_sum = (kept.amax(-1) - kept.log_softmax(-1).amax(-1)).double()
    order = kept.topk(count).values.double()
    mass = (order - log_sum[:, None]).exp().cumsum(-1)
    last = (mass < top_p[:, None]).sum(-1)
    reached = (last < count) | torch.tensor(count == rows.shape[-1], device=rows.device)
    floor = order.gather(1, last.clamp(max=count - 1)[:, None])[:, 0]
    return floor, reached


def _logprobs(
    logits: Tensor, ids: Tensor, wanted: "array[int]"
) -> tuple[list[float], list[int], list[float]]:
    """Return the log-probability of each id, and the n best of each row that asks for some."""
    chosen, top_ids, top_logprobs = [0.0] * len(wanted), list[int](), list[float]()
    for row, count in enumerate(wanted):
        if count < 0:
            continue
        logp = logits[row].log_softmax(-1)
        chosen[row] = float(logp[ids[row]])
        best = _best(logp, count)
        top_ids += (token for _, token in best)
        top_logprobs += (-value for value, _ in best)
    return chosen, top_ids, top_logprobs


def _best(logp: Tensor, count: int) -> list[tuple[float, int]]:
    """Return the `count` largest as (-value, id), equal ones by id."""
    if count <= 0:
        return []
    ids = (logp >= logp.topk(count).values[-1]).nonzero().view(-1)
    return sorted(zip((-logp[ids]).tolist(), ids.tolist(), strict=True))[:count]


def _read_rows(draws: Draws, device: torch.device) -> Rows:
    def read(values: "array[int] | array[float]", dtype: torch.dtype) -> Tensor:
        return torch.frombuffer(values, dtype=dtype).to(device)

    return Rows(
        read(draws.temperature, torch.float32),
        read(draws.top_k, torch.int32).long(),
        read(draws.top_p, torch.float32).double(),
        read(draws.min_p, torch.float32).double(),
        read(draws.seed, torch.int64),
        read(draws.position, torch.int32).long(),
    )
