"""The machine under the CPU driver: its name, cores and memory, and torch's threads."""

import ctypes
import platform
import sys
from pathlib import Path

import psutil
import torch

from drivers.memory import memory_free as memory_free  # of the machine too, without torch
from drivers.memory import memory_total as memory_total

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
KEEP_BYTES = 1 << 30


def cpu_name() -> str:
    """Return the processor's own name for itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def set_threads(wanted: int, deterministic: bool) -> int:
    """Set torch's threads to `wanted`, or to the cores that there are; return the number.

    Rounded down to a power of two in deterministic mode, see `drivers.cpu.driver`.
    """
    allowed = len(psutil.Process().cpu_affinity())
    threads = wanted or min(psutil.cpu_count(logical=False) or allowed, allowed)
    if deterministic:
        threads = 1 << (threads.bit_length() - 1)
    use_threads(threads)
    return threads


def use_threads(threads: int) -> None:
    """Let torch work with so many threads; models may differ in it."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Tell malloc to keep what is freed, where that can be told.

    A step frees and takes the same megabytes hundreds of times; giving them back to the system each
    time costs more than the arithmetic that is done in them.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
            libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
            libc.mallopt(M_ARENA_MAX, 1)  # a thread that loads fills what steps will use


def give_back_memory() -> None:
    """Give what is freed back to the system after all: a model has gone."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
