"""The golden messages of the driver ABI: one of each, with every op and result.

`python -m tests.helpers.golden_driver` prints them as tests/data/golden_driver_abi.json has them.
Run it only to add a message: what is in the file never changes, because hosts of other versions
speak it.
"""

import json
from pathlib import Path
from typing import Any

from drivers import base, wire
from drivers.base import ints, reals, seeds

FILE = Path(__file__).resolve().parents[1] / "data" / "golden_driver_abi.json"

SAMPLED = base.Sampled(ints([7]), b"\1", reals([-0.5]), ints([7, 9]), reals([-0.5, -2]))
TABLE = base.BlockTable(ints([0, 2]), ints([1, 2]), ints([17]))
EXECUTE = base.Execute(
    3, 11, ints([-1]), ints([17]), ints([0, 1]), ints([18]), ints([4]), ints([5]), ints([0]),
    (TABLE,),
)  # fmt: skip
SAMPLE = base.Sample(
    ints([0]), reals([0.5]), ints([40]), reals([1]), reals([0.25]), seeds([2**64 - 1]), ints([18]),
    ints([2]),
)  # fmt: skip
OPS = (
    base.Reset(4, 5, ints([1, 2])), base.Copy(1, ints([1]), ints([2])), base.Scrub(ints([3])),
    EXECUTE, SAMPLE, base.Export(ints([1]), 64), base.Import(ints([2]), 128),
    base.Checksum(ints([1, 2])),
)  # fmt: skip
GROUP = base.KvGroup(30, "full", 0, 3, 64, "bfloat16")

RESET = base.Reset(4, 5, ints([1, 2]), 0, 1, 1.5, 0.25, -0.5, ints([7]), reals([-100]))
ADJUSTED = SAMPLE._replace(adjust=ints([1]))
SCORE = base.Score(ints([0]), ints([9]), ints([2]))
SCORED = base.Scored(b"\0", reals([-2]), ints([7, 9]), reals([-0.5, -2]))

# Positions are those of version 1.0: later fields have their defaults here, and do not show.
MESSAGES: tuple[Any, ...] = (
    base.Hello(1, 0, "schema", 2, "cpu0"),
    base.Load(3, "/models/m", "bfloat16", 16, 64, 1 << 30, 8192, True, 2),
    base.Unload(3),
    base.Submit(2, 0, 9, (base.Fence(2, 1, 4),), 3, OPS),
    base.Stats(),
    base.Close(),
    base.Ready(
        1,
        0,
        "schema",
        2,
        "cpu",
        "cpu0",
        99,
        "a CPU",
        1 << 34,
        1 << 33,
        ("float32",),
        ("scrub", "sample"),
        "none",
    ),
    base.Progress(3, "weights", 4, 30),
    base.Estimate(3, 1 << 28, 368640, 64, 1 << 33),
    base.Loaded(
        3,
        "llama",
        30,
        49152,
        8192,
        1 << 28,
        (2,),
        (GROUP,),
        16,
        368640,
        64,
        "bfloat16",
        2048,
        256,
        32768,
        1_000_000,
    ),
    base.Complete(2, 0, 9, 1000, 2000, (SAMPLED, ("00ff", "ff00"))),
    base.Fault(2, 0, 9, 1, "what is wrong", (4, 5)),
    base.Heartbeat(2, 9),
    base.StatsReply(1 << 30, 1 << 29, 100, 2000, 5_000_000, 0),
)
OF_1_1: tuple[Any, ...] = (
    base.Submit(2, 0, 10, (), 3, (RESET, RESET._replace(start=2), EXECUTE, ADJUSTED, SCORE)),
    base.Complete(2, 0, 10, 1000, 2000, (SAMPLED, SCORED)),
    MESSAGES[9]._replace(max_logit_rows=256),
)
OF_1_2: tuple[Any, ...] = (
    MESSAGES[1]._replace(kv_dtype="int8", host_bytes=1 << 32, host_offset=1 << 20),
)
OF_1_3: tuple[Any, ...] = (
    base.Submit(2, 0, 11, (), 3, (RESET._replace(grammar=6, grammar_from=1),)),
    base.Compile(3, 6, 2, b"a+"),
    base.Forget(3, 6),
    base.Compiled(3, 6, 1, "what is wrong"),
)


def everything() -> dict[str, Any]:
    """Return what the file holds."""
    return {
        "schema": wire.schema(),
        "messages": {type(m).__name__: wire.encode(m).hex() for m in MESSAGES},
        "messages of 1.1": {type(m).__name__: wire.encode(m).hex() for m in OF_1_1},
        "messages of 1.2": {type(m).__name__: wire.encode(m).hex() for m in OF_1_2},
        "messages of 1.3": {type(m).__name__: wire.encode(m).hex() for m in OF_1_3},
    }


def recorded() -> dict[str, Any]:
    """Return what was recorded."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


if __name__ == "__main__":
    print(json.dumps(everything(), indent=1))
