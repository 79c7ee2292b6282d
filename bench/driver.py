"""A driver in this process against the bare linear layers: prefill and decode.

Each round measures the driver and the yardstick (`bench.linear`) one after the other; a line of
JSON gives the best of each and their ratio. Prefill: prompts of --prompt ids in chunks of 512, the
head for the last id only. Decode: B sequences at context --ctx, greedy, every step one id each.

    python -m bench.driver --model DIR [--dtype bfloat16] [--prompt 2048] [--batch 1 8 32 64]

Without a model it uses random weights in the geometry of SmolLM2-135M: the times are the same.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.linear import Geometry, Linears
from tests.helpers.contexts import Engine, load_of

CHUNK = 512
STEPS = 8
ROUNDS = 5
MODEL = "random:layers=30,hidden=576,heads=9,kv_heads=3,ffn=1536,vocab=49152"


def prefill(engine: Engine, prompt: int) -> float:
    """Return the seconds of one prefill, sampling one id at the end."""
    ctx = engine.ctx(ids(engine, prompt))
    start = time.perf_counter()
    engine.generate([ctx], 1, chunk=CHUNK)
    seconds = time.perf_counter() - start
    engine.free(ctx)
    return seconds


def decode(engine: Engine, batch: int, length: int) -> float:
    """Return the seconds of one decode step of `batch` sequences, the best of STEPS."""
    ctxs = [engine.ctx(ids(engine, length)) for _ in range(batch)]
    engine.generate(ctxs, 1)
    best = float("inf")
    for _ in range(STEPS):
        start = time.perf_counter()
        engine.generate(ctxs, 1)
        best = min(best, time.perf_counter() - start)
    engine.free(*ctxs)
    return best


def ids(engine: Engine, count: int) -> list[int]:
    return [random.randrange(engine.loaded.vocab) for _ in range(count)]


def compare(
    ours: Callable[[], float], bare: Callable[[], float], tokens: int, rows: int, rounds: int
) -> dict[str, float]:
    """Return the best tokens per second of both, and their ratio."""
    pairs = [(ours(), bare()) for _ in range(rounds)]
    driver = tokens / min(pair[0] for pair in pairs)
    linear = rows / min(pair[1] for pair in pairs)
    ratio = round(driver / linear, 3)
    return {"tokens_s": round(driver, 1), "linear_tokens_s": round(linear, 1), "ratio": ratio}


def measure(engine: Engine, linears: Linears, options: Any) -> Iterator[dict[str, Any]]:
    """Yield one result per prompt length and batch size."""
    for prompt in options.prompt:
        rows = min(prompt, CHUNK)
        result = compare(
            lambda p=prompt: prefill(engine, p),
            lambda r=rows: min(linears.seconds(r, 1) for _ in range(3)),
            prompt, rows, options.rounds,
        )  # fmt: skip
        yield {"bench": "prefill", "prompt": prompt, "chunk": CHUNK, **result}
    for batch in options.batch:
        result = compare(
            lambda b=batch: decode(engine, b, options.ctx),
            lambda b=batch: min(linears.seconds(b, b) for _ in range(STEPS)),
            batch, batch, options.rounds,
        )  # fmt: skip
        yield {"bench": "decode", "batch": batch, "ctx": options.ctx, **result}


def where(engine: Engine) -> dict[str, Any]:
    """Return what a result needs to be compared with another."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "machine": engine.ready.description,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="a driver against the bare linear layers")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompt", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32, 64])
    parser.add_argument("--ctx", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    engine = Engine(load_of(options.model, options.dtype, num_blocks=1200))
    linears = Linears(Geometry(), options.dtype)
    for result in measure(engine, linears, options):
        line = {**result, "dtype": options.dtype, **where(engine)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
