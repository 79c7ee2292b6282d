"""A kernel that stands still, and how a screen of it looks.

The scene is that of the design: SmolLM2 on cpu0, a shell with two forks that share its context, a
researcher that waits for blocks, some of its own in lower tiers, a device that is down. `screen`
runs a command in it and returns what it writes; tests/data/screens has what that should be, one
file a screen.

`python -m tests.helpers.scene` writes these files; look at them before they are committed.
"""

import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from syscalls import abi
from syscalls.abi import LogLevel, Use
from syscalls.errors import EBADCTX, EINVAL, ESRCH
from syscalls.wire import Request
from tests.helpers.fake_kernel import FakeKernel, Reply
from userland.cli import run
from userland.desk import Desk

SCREENS = Path(__file__).resolve().parents[1] / "data" / "screens"
BLOCK = 368_640
UID = os.getuid()

TASKS = [
    abi.TaskRow(1, 0, UID, "init", "S", "kernel", 0, 0, 0, 0.0, 0, 0, 0, 8040.0, 0),
    abi.TaskRow(41, 1, UID, "llmsh", "S", "program", 0, 1, 3912, 105.0, 180, 4100, 812, 2460.0,
                9001, 105 * BLOCK, "smollm2", 0.0, 0, 2900),
    abi.TaskRow(42, 41, UID, "formal", "R", "", 0, 1, 3094, 74.0, 180, 3000, 94, 3.0, 9002,
                74 * BLOCK, "smollm2"),
    abi.TaskRow(43, 41, UID, "casual", "Q", "step", 5, 1, 3067, 72.0, 180, 3000, 67, 2.0, 9003,
                72 * BLOCK, "smollm2", group="drafts"),
    abi.TaskRow(57, 1, UID, "researcher", "D", "blocks", 0, 2, 1204, 31.0, 0, 900, 304, 19.0, 9100,
                31 * BLOCK, "other,smollm2", 32.0, 12, 64),
]  # fmt: skip
CONTEXTS = [
    abi.CtxRow(7, 41, "main", "smollm2", 3912, 3911, 8192, 245, 180, 105.0, False, "cpu0", "",
               105.0 * BLOCK, 0, 0, True),
    abi.CtxRow(1, 42, "formal", "smollm2", 3094, 3094, 8192, 194, 180, 74.0, True, "cpu0", "R",
               74.0 * BLOCK),
    abi.CtxRow(1, 43, "casual", "smollm2", 3067, 3067, 8192, 192, 180, 72.0, True, "cpu0", "Q",
               72.0 * BLOCK),
    abi.CtxRow(3, 57, "a title\u202e of \x9b words", "smollm2", 1204, 1000, 8192, 31, 0, 31.0, True,
               "cpu0", "D", 31.0 * BLOCK, 24, 8, False, 12),
    abi.CtxRow(4, 57, "", "smollm2", 0, 0, 8192, 0, 0, 0.0, False, "cpu0", "", 0.0),
]  # fmt: skip
RUNS = {
    (41, 7): [(0, 180, Use.SHARED, 3, 17, 2880, 2880), (2880, 40, Use.PRIVATE, 1, 301, 640, 640),
              (3520, 24, Use.PRIVATE, 1, 512, 384, 384), (3904, 1, Use.FILLING, 1, 536, 8, 7)],
    (42, 1): [(0, 180, Use.SHARED, 3, 17, 2880, 2880), (2880, 13, Use.PRIVATE, 1, 400, 208, 208),
              (3088, 1, Use.FILLING, 1, 413, 6, 6)],
    (57, 3): [(0, 24, Use.HOST, 1, 0, 384, 384), (384, 8, Use.DISK, 1, 90, 128, 128),
              (512, 30, Use.PRIVATE, 1, 700, 480, 480), (992, 1, Use.FILLING, 1, 730, 16, 8),
              (1008, 13, Use.ABSENT, 0, 0, 196, 0)],
}  # fmt: skip
POOLS = [
    abi.PoolRow(
        "cpu0",
        "smollm2",
        "device",
        16,
        BLOCK,
        2048,
        1180,
        120,
        739,
        8,
        1,
        180,
        360,
        41,
        707,
        32_752,
        245,
    ),
    abi.PoolRow("cpu0", "smollm2", "host", 16, BLOCK, 1024, 976, 24, 24, 0, 0, 0, 0, 0),
    abi.PoolRow("cpu0", "other", "device", 16, 2 * BLOCK, 512, 511, 0, 0, 0, 1, 0, 0, 0, 0, 8176),
]
MODELS = [
    abi.ModelRow("smollm2", "llama", "cpu0", "bfloat16", 8192, 49152, 269_060_352, BLOCK, [2],
                 "up", "", "/models/smollm2", 2048, 5),
    abi.ModelRow("other", "qwen3", "cpu0", "float32", 4096, 151_936, 10**9, 2 * BLOCK, [2],
                 "loading", "", "/models/other", 512, 0),
]  # fmt: skip
DEVICES = [
    abi.DeviceRow("cpu0", "cpu", "up", 2, 9500, 24 << 30, 20 << 30, "2 × Xeon (avx2), 2 threads"),
    abi.DeviceRow("cuda0", "cuda", "failed", 6, 0, 0, 0,
                  "driver 560 < 570, which torch 2.13 needs;\n5 restarts did not help"),
]  # fmt: skip
KERNEL = abi.KernelRow(
    4000000, "0.1.0", 8040.0, 90_000, 120_000, 3, 41_000, 12, 900, 71, 410, 400, 7, 1, 2,
    212_000, 48_200, 61_000, 990_000_000, 260_000, 163_800, 48_900, 405, 85.05, 0.4, 31, 5,
    16_080, 8040, 16_080 * BLOCK, 8040 * BLOCK, 9_000_000, 46_080, 24_120,
    80_400, 40_200,
)  # fmt: skip
LOG = [
    (0.01, 6, "kern", "kernel 41200 up, listening on /run/llmos/kernel.sock"),
    (0.02, 6, "drv", "device cpu0: epoch 1 begins, driver host 9400"),
    (2.5, 6, "model", "smollm2: up on cpu0 in epoch 1 after 1.1 s"),
    (63.25, 4, "ipc", "append refused by a limit (E2BIG): program 9100: 9000 ids do not fit"),
    (4000.5, 3, "drv", "device cpu0: epoch 1 ended: cpu0: driver host 9400 ended (signal SIGKILL)"),
    (4000.6, 6, "drv", "device cpu0: epoch 2 begins, driver host 9500"),
    (8000.125, 6, "mm", "KV blocks dropped to make room: 71"),
]
LOSSES = [
    abi.LossRow(12.5, "swapped", "room was needed", 0, 512, 43, 2100),
    abi.LossRow(
        4000.0, "evicted", "a cached prefix, and the oldest when room was needed",
        1008, 196, 0, 1_250_000,
    ),
]  # fmt: skip
BORN = 1_790_000_000.0
STORE = abi.StoreRow("up", 9600, "", "", 3, 0, 112 << 20, 1 << 30, 1)
SAVES = [
    abi.SaveRow("notes", 4, "current", "smollm2", 3912, 244, 90_000_000, BORN),
    abi.SaveRow("of \u202e yesterday, with a long name that goes on and on", 2, "stale",
                "smollm2:135m-q4_1", 61, 0, 4096, BORN - 86_400),
    abi.SaveRow("torn", 7, "damaged", "", 0, 0, 18_000_000, 0.0),
]  # fmt: skip
PORTS = [
    abi.PortRow("port", "search", UID, 57, "researcher", 3, 64, 1, 1204, 4.25),
    abi.PortRow("port", "calculator", UID, 41, "llmsh", 0, 64, 0, 0, 0.0),
    abi.PortRow("topic", "weather", UID, 42, "formal", 64, 64, 0, 96, 0.0, 12),
    abi.PortRow("feed", "wire", UID, 57, "researcher", 180, 4096, 0, 31, 0.0, 0, 3),
]
ROWS: dict[str, Any] = {
    "tasks": TASKS, "contexts": CONTEXTS, "pools": POOLS, "kernel": [KERNEL], "store": [STORE],
    "ports": PORTS,
}  # fmt: skip


def _list_saves(_: Request) -> Reply:
    return Reply(abi.ListSavesResult(list(SAVES), False))


def _snapshot(request: Request) -> Reply:
    if request.args.what not in ROWS:
        raise EINVAL(f"there is no snapshot of {request.args.what}")
    return Reply(abi.SnapshotResult(1, ROWS[request.args.what], 0))


def _pmap(request: Request) -> Reply:
    pid, handle = request.args.pid or 41, request.args.ctx
    row = next((c for c in CONTEXTS if (c.pid, c.ctx) == (pid, handle)), None)
    if row is None:
        raise EBADCTX(f"there is no context {handle} in task {pid}")
    runs = [abi.BlockRun(*run) for run in RUNS.get((pid, handle), [])]
    others = [c for c in CONTEXTS if c.shared and c is not row and row.shared]
    sharers = [abi.SharerRow(c.pid, c.ctx, c.name, 180) for c in others]
    return Reply(
        abi.PmapResult(
            pid, handle, row.name, row.model, row.device, row.length, row.computed, 16, BLOCK,
            sum(run.blocks for run in runs), list(runs), list(sharers), len(sharers), 0,
        )
    )  # fmt: skip


def _explain(request: Request) -> Reply:
    pid, handle = request.args.pid or 41, request.args.ctx
    row = next((c for c in CONTEXTS if (c.pid, c.ctx) == (pid, handle)), None)
    if row is None:
        raise EBADCTX(f"there is no context {handle} in task {pid}")
    if row.lacks:
        return Reply(
            abi.ExplainResult(pid, handle, "D", "12 blocks of the device", 12, 5, 1000, 488, 384,
                              128, list(LOSSES))
        )  # fmt: skip
    why = "nothing runs on it" if not row.state else "the step that is running"
    on_device = row.computed
    return Reply(
        abi.ExplainResult(pid, handle, row.state, why, 0, 5, row.computed, on_device, 0, 0, [])
    )


def _log(request: Request) -> Reply:
    rows = [
        abi.LogRow(number, at, BORN + at, int(LogLevel(level)), facility, text)
        for number, (at, level, facility, text) in enumerate(LOG, 1)
        if number >= request.args.cursor
    ]
    return Reply(abi.LogResult(list(rows), len(LOG) + 1, len(LOG) + 1))


def _stat_task(request: Request) -> Reply:
    for row in TASKS:
        if row.pid == (request.args.pid or 41):
            return Reply(row)
    raise ESRCH(f"there is no task {request.args.pid}", "llmos ps lists them")


@contextmanager
def scene() -> Iterator[FakeKernel]:
    """Run the kernel of the scene."""
    with tempfile.TemporaryDirectory() as folder, FakeKernel(Path(folder)) as kernel:
        kernel.replace |= {
            "snapshot": _snapshot,
            "list_saves": _list_saves,
            "pmap": _pmap,
            "log": _log,
            "explain": _explain,
            "stat_task": _stat_task,
            "list_models": lambda _: Reply(abi.Rows(list(MODELS))),
            "list_devices": lambda _: Reply(abi.Rows(list(DEVICES))),
        }
        yield kernel


class Stream(io.StringIO):
    """Where a command writes to."""

    def __init__(self, tty: bool, encoding: str = "utf-8") -> None:
        super().__init__()
        self._tty, self._encoding = tty, encoding

    def isatty(self) -> bool:
        return self._tty

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def write(self, text: str) -> int:
        return super().write(text.encode(self._encoding, "replace").decode(self._encoding))


def screen(
    kernel: FakeKernel,
    *words: str,
    tty: bool = True,
    encoding: str = "utf-8",
    width: int = 80,
    **environment: str,
) -> tuple[int, str, str]:
    """Run a command; return its status, what it writes to stdout, and to stderr."""
    out, err = Stream(tty, encoding), Stream(False)
    fixed = {"COLUMNS": str(width), "LINES": "24", "TERM": "xterm", "TZ": "UTC"} | environment
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LLMOS_")}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        clean.pop(name, None)
    with (
        patch.dict(os.environ, clean | fixed, clear=True),
        patch("userland.bin.ps.user", lambda uid: "ana"),
        patch("userland.topmodel.user", lambda uid: "ana"),
        patch("userland.rates.usage", lambda pid: None),
        patch("os.sched_getaffinity", lambda pid: {0, 1}),
    ):
        status = run(Desk(out, err), ["--host", kernel.address, *words])
    return status, out.getvalue(), err.getvalue()


WAYS: dict[str, dict[str, Any]] = {
    "tty": {}, "pipe": {"tty": False}, "letters": {"encoding": "ascii"},
    "a11y": {"LLMOS_A11Y": "1"}, "plain": {"NO_COLOR": "1"}, "wide": {"width": 120},
    "narrow": {"width": 40},
}  # fmt: skip
"""In which a screen can be drawn."""
SHOWN: dict[str, tuple[str, ...]] = {
    "ps": ("ps",),
    "ps-forest": ("ps", "--forest", "-o", "pid,ppid,s,name"),
    "ps-contexts": ("ps", "--contexts"),
    "ps-full": ("ps", "-f"),
    "free": ("free",),
    "free-human": ("free", "-h"),
    "pmap": ("pmap", "@main"),
    "pmap-task": ("pmap", "57"),
    "pmap-ranges": ("pmap", "-x", "41", "7"),
    "ctx-ls": ("ctx", "ls", "57"),
    "ctx-tree": ("ctx", "tree"),
    "vmstat": ("vmstat",),
    "explain-task": ("explain", "57"),
    "ctx-saves": ("ctx", "saves"),
    "ports": ("ports",),
    "lsdev": ("lsdev",),
    "lsdev-full": ("lsdev", "-f"),
    "dmesg": ("dmesg",),
    "dmesg-wall": ("dmesg", "-T", "-l", "warn+"),
    "top": ("top", "-b", "-n", "1"),
}
"""What is shown."""
CASES = [
    *((name, way) for name in SHOWN for way in ("tty", "pipe")),
    *(("pmap", way) for way in ("letters", "a11y", "plain", "wide")),
    ("ctx-ls", "narrow"), *(("ctx-tree", way) for way in ("letters", "a11y", "plain", "narrow")),
    *(("vmstat", way) for way in ("wide", "narrow")), ("pmap-task", "letters"),
    ("pmap-task", "narrow"), ("free", "wide"),
    ("top", "letters"), ("dmesg", "plain"), ("ps", "plain"), ("ps-full", "wide"),
]  # fmt: skip


def drawn(kernel: FakeKernel, name: str, way: str) -> str:
    """Return a screen as its file has it: colours as `<31>`."""
    status, out, err = screen(kernel, *SHOWN[name], **WAYS[way])
    assert status == 0, err
    text = re.sub(r"\x1b\[([0-9;]*)m", lambda code: f"<{code[1]}>", out)
    return text + (f"--- stderr\n{err}" if err else "")


if __name__ == "__main__":
    SCREENS.mkdir(exist_ok=True)
    with scene() as standing:
        for what, how in CASES:
            (SCREENS / f"{what}.{how}.txt").write_text(drawn(standing, what, how))
