"""The golden messages: one request of each built call and one reply of each event, by name.

`python -m tests.helpers.golden` prints them as tests/data/golden_abi.json has them. Run it only to
add a call or an event: what is in the file never changes, because kernels and programs in the
field speak it.
"""

import json
from pathlib import Path
from typing import Any

from syscalls import abi, wire
from syscalls.abi import Event, Finish
from syscalls.errors import Errno

FILE = Path(__file__).resolve().parents[1] / "data" / "golden_abi.json"

HANDLE = 3 << 24 | 7
CALL = 2**40 + 5

# Every field of every call has a value other than its default, where its type allows one.
REQUESTS: dict[str, tuple[Any, ...]] = {
    "hello": ("agent-1", bytes(range(32)), True, "someone"),
    "attach": (52, bytes(range(32))),
    "spawn": ("child", True),
    "exit": (3,),
    "wait": (52, True),
    "kill": (52, 9),
    "stat_task": (52,),
    "alloc_ctx": (HANDLE, "smollm2:135m", "notes", True),
    "fork_ctx": (HANDLE, HANDLE + 1, "branch"),
    "append": (HANDLE,),
    "trim_ctx": (HANDLE, 17),
    "free_ctx": (HANDLE,),
    "read_ctx": (HANDLE, 16, 100),
    "stat_ctx": (HANDLE,),
    "infer": (HANDLE, 64, 0.7, 40, 0.9, 0.05, 2**64 - 1, (2, 151645), True, 5),
    "cancel": (CALL - 1, 12),
    "load_model": ("other:1b", "/models/other", "cpu0", "float32", 2**33, 4096, 2048, True),
    "unload_model": ("other:1b", True),
    "list_models": (),
    "read_model": ("smollm2:135m", "config.json", 2**33),
    "list_devices": (),
    "snapshot": ("contexts", 256),
    "pmap": (HANDLE, 52, 4096),
    "log": (2**33,),
    "shutdown": (2.5,),
    "advise_ctx": (HANDLE, "retain", 2.5),
    "drop_cache": (),
    "set_policy": ("fifo",),
    "save_ctx": (HANDLE, "notes of today", b"\x01\xff"),
    "load_ctx": (HANDLE, "notes of today", "smollm2:135m", "notes"),
    "list_saves": ("notes",),
    "drop_save": ("notes of today",),
    "explain": (HANDLE, 52),
    "grant_ctx": (HANDLE, 7, 236, 1000, 52, 2.5, 3),
    "open_ctx": (bytes(range(16)), HANDLE + 1, "notes"),
    "revoke": (bytes(range(16)),),
    "score": (HANDLE, 17, 5),
    "bind": ("tools", 16),
    "call": ("tools", b"\x01what\xff", 2.5),
    "recv": ("tools", "news", 2.5),
    "reply": (2**33, b"\x01that\xff"),
    "publish": ("news", b"\x01this\xff"),
    "subscribe": ("news", 256, "drop", HANDLE),
    # A call that has grown, once more: what was recorded of it before is above.
    "infer+adjusted": (
        HANDLE, 64, 0.7, 40, 0.9, 0.05, 2**64 - 1, (2, 151645), True, 5,
        1.25, -0.5, 0.25, ((7, -100.0), (151645, 2.5)), 236,
    ),
    "infer+grammar": (
        HANDLE, 64, 0.7, 40, 0.9, 0.05, 2**64 - 1, (2, 151645), False, 5,
        1.25, -0.5, 0.25, ((7, -100.0), (151645, 2.5)), 236, 2, b"a+\xff", 230,
    ),
    "load_model+kv_dtype": (
        "other:1b", "/models/other", "cpu0", "float32", 2**33, 4096, 2048, True, "int8",
    ),
    "shutdown+saving": (2.5, True, True),
    "set_limit": ("output_ids", 900.5, 1000.5, 52, "lab", True),
    "fork_task": ("child", (HANDLE, HANDLE + 1), b"\x01\xff"),
    "renice": (52, -20, "lab"),
    "group": (52, "lab"),
    "hello+grace": ("agent-1", bytes(range(32)), True, "someone", 2.5),
    "spawn+place": ("child", True, 19, "lab"),
    "kill+many": (52, 9, True, "lab"),
}  # fmt: skip
IDS = {
    "append": (0, 1, 49151, 2**31 - 1),
    "infer": (7,),
    "infer+adjusted": (7,),
    "infer+grammar": (7,),
    "score": (8, 9),
    "publish": (10,),
}

RESULT = abi.InferResult(Finish.LENGTH, 300, 236, 220, 64, 1, 2**64 - 1, 2**33)
EVENTS: dict[str, list[Any]] = {
    "FIN": [Event.FIN, CALL, RESULT[:7], 0],
    "FIN+device_us": [Event.FIN, CALL, RESULT, 0],
    "ERR": [Event.ERR, CALL, Errno.E2BIG, "9000 ids", "shorten it", {"limit": 8192}],
    "TOKEN": [Event.TOKEN, CALL, [17, 18], [-0.5, -1.25], [[[17, -0.5], [9, -2.0]], []]],
    "PROGRESS": [Event.PROGRESS, CALL, "prefill", 512, 4096],
    "SIGNAL": [Event.SIGNAL, 0, 15],
    "REWIND": [Event.REWIND, CALL, 128],
    "EXIT": [Event.EXIT, 0, 52, 137, "killed"],
}


def call_of(name: str) -> str:
    """Return the call of a golden request."""
    return name.partition("+")[0]


def request(name: str) -> list[bytes]:
    """Return the frames of a golden request."""
    row = abi.BY_NAME[call_of(name)]
    args = tuple(row.args(*REQUESTS[name]))[: len(REQUESTS[name])]
    flags = int(abi.Flag.QUEUE | abi.Flag.CHAIN) if call_of(name) == "infer" else 0
    frames = [wire.pack_request(row.number, CALL, flags, args)]
    return [*frames, wire.pack_ids(IDS[name])] if name in IDS else frames


def table() -> list[list[Any]]:
    """Return what must never change of the table."""
    rows: list[list[Any]] = []
    for call in abi.CALLS:
        fields = [list(row._fields) if row else None for row in (call.args, call.result)]
        rows.append([call.number, call.name, *fields])
    return rows


def rows() -> dict[str, list[str]]:
    """Return the fields of the rows that travel inside results."""
    inner = (
        abi.TaskRow, abi.CtxRow, abi.PoolRow, abi.KernelRow, abi.ModelRow, abi.DeviceRow,
        abi.BlockRun, abi.SharerRow, abi.LogRow, abi.LossRow, abi.PortRow,
        abi.UsageRow, abi.LimitRow,
    )  # fmt: skip
    return {row.__name__: list(row._fields) for row in inner}


def everything() -> dict[str, Any]:
    """Return what the file holds."""
    return {
        "requests": {name: [frame.hex() for frame in request(name)] for name in REQUESTS},
        "events": {name: wire.pack_events([event]).hex() for name, event in EVENTS.items()},
        "table": table(),
        "rows": rows(),
        "errnos": {errno.name: int(errno) for errno in Errno},
    }


def recorded() -> dict[str, Any]:
    """Return what was recorded."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


if __name__ == "__main__":
    print(json.dumps(everything(), indent=1))
