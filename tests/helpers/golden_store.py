"""The golden messages of the store ABI: one of each.

`python -m tests.helpers.golden_store` prints them as tests/data/golden_store_abi.json has them.
Run it only to add a message: what is in the file never changes, because hosts of other versions
speak it.
"""

import json
from pathlib import Path
from typing import Any

from drivers.store import base, wire

FILE = Path(__file__).resolve().parents[1] / "data" / "golden_store_abi.json"

AREA = base.Area(1 << 20, 368640, b"\x17" * 32, "bfloat16", "30,2,16,3,64")
BLOCKS = (base.Block(7, 4096, 1000, b"\x01" * 32, 3), base.Block(9, 1 << 33, 1001, b"", 2**62))
META = base.SaveMeta(
    "smollm2:135m", b"\x17" * 32, "bfloat16", (30, 2, 16, 3, 64), 16, 368640, 40, 2, b"extra"
)

MESSAGES: tuple[Any, ...] = (
    base.Open(1, 0, "schema", 2, "/state", "/keys", 1 << 30),
    base.SwapOut(3, AREA, 1, BLOCKS),
    base.SwapIn(4, AREA, 1, BLOCKS),
    base.FreeSlots(5, AREA, (7, 9)),
    base.BeginSave(6, 1000, "notes", META),
    base.AddIds(6, 0, b"\1\0\0\0\2\0\0\0"),
    base.AddBlocks(6, 0, 0, (0, 368640)),
    base.CommitSave(6),
    base.AbortSave(6),
    base.OpenSave(7, 1000, "notes", 4),
    base.ReadIds(7, 0, 40),
    base.ReadBlocks(7, 0, 0, (0, 368640)),
    base.CloseSave(7),
    base.ListSaves(8, 1000, "mine"),
    base.DropSave(9, 1000, "notes"),
    base.Stats(10),
    base.Close(),
    base.Opened(1, 0, "schema", 2, 99, 1 << 30, 5, 1, 2, 1 << 28, ("a note",)),
    base.Done(6),
    base.Blocks(3, b"\0\2", "No space left on device"),
    base.Saved(6, 4, 738_000),
    base.Found(7, 4, 1, 1_795_000_000, META),
    base.Ids(7, 0, b"\1\0\0\0\2\0\0\0"),
    base.Saves(8, (base.SaveRow("notes", 4, 0, "smollm2:135m", 40, 2, 738_000, 1),), True),
    base.Fault(6, 5, "what is wrong", "what to do", 1 << 30, 1 << 20),
    base.Heartbeat(2),
    base.StatsReply(10, 1 << 25, 5, 1 << 30, 1 << 29, 5, 1 << 28),
)


def everything() -> dict[str, Any]:
    """Return what the file holds."""
    return {
        "schema": wire.schema(),
        "messages": {type(m).__name__: wire.encode(m).hex() for m in MESSAGES},
    }


def recorded() -> dict[str, Any]:
    """Return what was recorded."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


if __name__ == "__main__":
    print(json.dumps(everything(), indent=1))
