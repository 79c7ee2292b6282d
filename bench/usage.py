"""What a process has used, from /proc: processor time and wake-ups of all its threads.

Times are those of the scheduler, in nanoseconds: the clock ticks of `times` are too coarse for a
step. A wake-up is counted where a thread has given the processor up by itself.
"""

from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """Since the process began."""

    cpu_s: float
    wakeups: int

    def since(self, before: "Usage") -> "Usage":
        return Usage(self.cpu_s - before.cpu_s, self.wakeups - before.wakeups)


def usage(pid: int) -> Usage:
    """Return what a process and its threads have used."""
    cpu_ns = wakeups = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        cpu_ns += int((thread / "schedstat").read_text().split()[0])
        for line in (thread / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                wakeups += int(line.split()[1])
    return Usage(cpu_ns / 1e9, wakeups)
