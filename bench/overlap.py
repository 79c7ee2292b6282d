"""Overlap: a decode step with the one behind it submitted meanwhile, against one at a time.

On a device that computes elsewhere (the null driver, which sleeps for as long as a step would take)
and on the CPU with the real model, where what the kernel does meanwhile takes time of the step. Two
kernels work in turns; the value is a step with overlap, the ratio to one without the median of the
pairs.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

from bench.booted import booted, smollm2
from bench.engine import Served
from bench.pairs import in_turns, steps_of
from bench.record import Result

SLEEPS_US = {1: 2000, 64: 8000}
"""Of a step of the null driver, by batch."""
ROUNDS = 10
NUM_BLOCKS = 2000


def run() -> Iterator[Result]:
    """Measure both devices."""
    for batch, step_us in SLEEPS_US.items():
        path = f"null:vocab=32000,step_us={step_us}"
        options = "--device", "null0", "--model", "null", "--model-dir", path
        yield compared(f"elsewhere B={batch}", options, batch)
    for batch in SLEEPS_US:
        yield compared(f"cpu B={batch}", smollm2(), batch)


def compared(case: str, options: tuple[str, ...], batch: int) -> Result:
    """Compare two kernels with one device each."""
    with ExitStack() as stack:
        ahead, alone = (
            Served(kernel, stack.enter_context(kernel.connect()))
            for kernel in (
                stack.enter_context(
                    booted(*options, "--num-blocks", str(NUM_BLOCKS), "--overlap", overlap)
                )
                for overlap in ("1", "0")
            )
        )
        steps = steps_of(batch)
        pairs = in_turns(
            lambda: ahead.decode(batch, steps), lambda: alone.decode(batch, steps), ROUNDS
        )
    ratios = [one / other for one, other in pairs]
    return Result(
        "overlap", case, 1e6 * median(one for one, _ in pairs), "us/step", median(ratios),
        "one step at a time", {"ratios": [round(ratio, 3) for ratio in ratios]},
    )  # fmt: skip
