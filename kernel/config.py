"""Configuration: one frozen table, built once in main and passed on. Unknown keys cannot exist."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


def default_kv_bytes() -> int:
    """Return a quarter of the machine's memory, at most 4 GiB."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(memory // 4, 4 << 30)


LEAST = {
    "block_size": 1, "prefill_chunk": 1, "max_models": 1, "max_tasks": 2, "max_contexts": 1,
    "max_calls": 1, "max_sessions": 1, "bulk_bytes": 1, "unread_bytes": 1 << 20, "hang_s": 0.1,
    "overcommit": 1.0,
    "step_s": 0.1, "load_s": 0.1,
}  # fmt: skip
"""The least value of a key, where it is not 0."""


@dataclass(frozen=True, slots=True)
class Config:
    """Every default of the kernel. Times in seconds, sizes in bytes."""

    run_dir: Path
    device: str = "cpu0"
    model: str = "smollm2"  # empty: none until load_model
    model_dir: str = ""  # folder of the installed model, or a builtin of the driver
    dtype: str = "bfloat16"
    deterministic: bool = False
    threads: int = 0  # of the driver; 0: its own default
    block_size: int = 16
    kv_bytes: int = 0  # budget of the KV pool; 0: min(25 % of memory, 4 GiB)
    num_blocks: int = 0  # instead of kv_bytes
    kv_dtype: str = ""  # of the KV; empty: that of the weights
    host_bytes: int = 0  # budget of a model's host tier; 0: none, what leaves the device is dropped
    overcommit: float = 16.0  # blocks that contexts may have in all, times those that there are
    state_dir: str = ""  # of saves and the swap file; empty: nothing is kept on disk
    keys_dir: str = ""  # of the root key and the keyring, outside of state_dir; empty: no saves
    swap_bytes: int = 0  # of the swap file, taken at once; 0: no disk tier
    fresh: bool = False  # leave what the kernel before has saved when it stopped on the disk
    attach_s: float = 600.0  # for programs to come back to their tasks
    max_ctx: int = 0  # 0: the model's own
    policy: str = "fair"  # who goes first: fair, fifo, priority, or one that is installed
    prefill_chunk: int = 512  # tokens of one request in one step
    target_us: int = 30_000  # of a step that decodes; 0: none
    max_seqs: int = 0  # that one step may have; 0: as many as the driver takes
    overlap: int = 0  # steps that are planned and submitted while one computes; 0: none
    max_models: int = 64
    max_tasks: int = 10_000
    max_contexts: int = 100_000
    max_grants: int = 1024  # of one task
    max_calls: int = 4096  # unfinished calls of one session
    max_sessions: int = 1024
    zombie_s: float = 60.0
    ticket_s: float = 60.0
    stalled_messages: int = 64  # unread by a client: its requests are held
    unread_bytes: int = 64 << 20  # by a client: its calls are refused; twice that: closed
    stalled_s: float = 60.0  # then its session is closed
    hang_s: float = 60.0  # without a sign of life the driver is replaced
    step_s: float = 120.0  # for one step, with signs of life; then likewise
    load_s: float = 1800.0  # for starting a driver and loading the model; then likewise
    max_restarts: int = 5  # of a driver within restart_window_s
    restart_window_s: float = 60.0
    bulk_bytes: int = 32 << 20  # zeroed after each use, in one go

    def __post_init__(self) -> None:
        """Raise ValueError if a number is below what the kernel can work with."""
        if self.swap_bytes and not self.state_dir:
            raise ValueError("--swap-bytes needs --state-dir: the swap file is made there")
        for key in fields(self):
            value, least = getattr(self, key.name), LEAST.get(key.name, 0)
            if isinstance(value, int | float) and not value >= least:  # also NaN
                option = "--" + key.name.replace("_", "-")
                raise ValueError(f"{option} is {value}, the least is {least}")


INTERNAL = frozenset({"run_dir", "model", "model_dir"})
"""Keys that whoever starts the kernel derives; the others are a person's to set."""


def table() -> list[dict[str, Any]]:
    """Return the keys that a person may set, each with its type, default and least value."""
    defaults = {"kv_bytes": default_kv_bytes()}
    return [
        {
            "key": field.name,
            "type": field.type.__name__,
            "default": defaults.get(field.name, field.default),
            "least": LEAST.get(field.name, 0),
        }
        for field in fields(Config)
        if field.name not in INTERNAL and isinstance(field.type, type)
    ]


def values(config: Config) -> list[tuple[str, Any]]:
    """Return what a kernel runs with, by key; paths as text."""
    found = ((field.name, getattr(config, field.name)) for field in fields(Config))
    return [(key, str(value) if isinstance(value, Path) else value) for key, value in found]
