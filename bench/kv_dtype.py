"""KV in 8 bit against KV in bfloat16: what it costs in quality and time, and saves in memory.

On the real model, two driver hosts side by side. Quality is the perplexity of a text in windows:
every id but a window's first is scored after all that are before it. Time is that of prefills and
decode steps, in turns.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from bench.booted import model_dir
from bench.driver import MODEL, Bare, Seq
from bench.pairs import BATCHES, compare, compare_prefill
from bench.record import Result
from drivers import base
from drivers.base import ints
from syscalls.tokenizer import ModelTokenizer

TEXT = Path(__file__).resolve().parents[1] / "tests" / "data" / "public_domain.txt"
WINDOW = 2048
CHUNK = 256
"""Rows of one Score."""
KV_DTYPE = "int8"


class Scorer(Bare):
    """A driver host that says how likely ids are."""

    def score(self, ids: Sequence[int]) -> list[float]:
        """Return the log-probability of each id after the first."""
        sequence, scores = Seq(self.loaded.max_seqs - 1), list[float]()
        for start in range(0, len(ids) - 1, CHUNK):
            chunk = ids[start : start + CHUNK]
            after = ids[start + 1 : start + CHUNK + 1]
            rows = base.Score(ints(range(len(after))), ints(after), ints([0] * len(after)))
            self._value += 1
            ops = self._execute([(sequence, chunk)], samples=False), rows
            self._link.send(base.Submit(1, base.Queue.COMPUTE, self._value, (), MODEL, ops))
            (scored,) = self._receive(base.Complete).results
            scores += base.read_reals(scored.logprobs)
        self._trim(sequence, 0)
        return scores


def run() -> Iterator[Result]:
    """Compare quality, memory, then speed."""
    tokenizer = ModelTokenizer((model_dir() / "tokenizer.json").read_text(encoding="utf-8"))
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"), special=False, begins=True)
    with closing(Scorer(kv_dtype=KV_DTYPE)) as small, closing(Scorer()) as exact:
        against = f"KV in {exact.loaded.kv_groups[0].dtype}"
        yield perplexity(small, exact, ids, against)
        one, other = small.loaded.block_bytes, exact.loaded.block_bytes
        yield Result(f"kv {KV_DTYPE}", "block", one, "bytes", one / other, against)
        yield compare_prefill(f"kv {KV_DTYPE} prefill", small, exact, against)
        for batch in BATCHES:
            yield compare(f"kv {KV_DTYPE} decode", small, exact, against, batch)


def perplexity(small: Scorer, exact: Scorer, ids: Sequence[int], against: str) -> Result:
    """Compare the perplexity of a text."""
    windows = [ids[at : at + WINDOW] for at in range(0, len(ids) - 1, WINDOW)]
    ours = [score for window in windows for score in small.score(window)]
    other = [score for window in windows for score in exact.score(window)]
    value, reference = (math.exp(-sum(scores) / len(scores)) for scores in (ours, other))
    off = [abs(a - b) for a, b in zip(ours, other, strict=True)]
    return Result(
        f"kv {KV_DTYPE}", "perplexity", value, "", value / reference, against,
        {"reference": round(reference, 4), "ids": len(ours), "window": WINDOW,
         "mean_off": round(sum(off) / len(off), 4), "max_off": round(max(off), 3)},
    )  # fmt: skip
