"""The memory of this machine, or of the container that this process is in. In bytes."""

from pathlib import Path

import psutil


def memory_total() -> int:
    """Return the bytes of memory that this process may have."""
    return min(int(psutil.virtual_memory().total), _group_limit())


def memory_free() -> int:
    """Return the bytes of memory that can be had now."""
    free = int(psutil.virtual_memory().available)
    limit = _group_limit()
    used = Path("/sys/fs/cgroup/memory.current")
    if limit < 1 << 62 and used.exists():
        free = min(free, max(limit - int(used.read_text()), 0))
    return free


def _group_limit() -> int:
    """Return the limit of the container, if it has one."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return int(text) if text.isdecimal() else 1 << 62
