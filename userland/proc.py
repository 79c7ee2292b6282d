"""What the host says of a process: processor time and memory."""

import os
from typing import NamedTuple


class Usage(NamedTuple):
    """Of one process, as of now."""

    cpu_s: float
    rss_bytes: int


def usage(pid: int) -> Usage | None:
    """Return what a process uses; None if it is not there, or not to be seen."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything.
            fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/statm", "rb") as file:
            pages = int(file.read().split()[1])
        ticks = int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return None
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))
