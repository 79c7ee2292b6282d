"""Results: what a benchmark has found, as one line of JSON that can be compared with another.

A line names the bench and the case, the value with its unit and, where two things were measured
side by side, their ratio and what the other one was. Whatever else explains the number comes next;
the machine, the commit, the date and the versions come last.
"""

import json
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from drivers.cpu.machine import cpu_name, memory_total

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "pyzmq", "msgpack", "numpy")


@dataclass(frozen=True, slots=True)
class Result:
    """One number."""

    bench: str
    case: str
    value: float
    unit: str
    ratio: float | None = None
    against: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What limits call it: `decode B=32`."""
        return f"{self.bench} {self.case}".rstrip()


def record(result: Result) -> str:
    """Return a result as its line."""
    line: dict[str, Any] = {
        "bench": result.bench,
        "case": result.case,
        "value": rounded(result.value),
        "unit": result.unit,
    }
    if result.ratio is not None:
        line |= {"ratio": rounded(result.ratio), "against": result.against}
    return json.dumps(line | result.detail | surroundings())


def rounded(number: float) -> float:
    """Return four significant digits: more would be noise."""
    return float(f"{number:.4g}") if abs(number) < 10_000 else round(number)


def surroundings() -> dict[str, Any]:
    """Return what a number is worth nothing without."""
    return {
        "machine": machine(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


@cache
def machine() -> dict[str, Any]:
    """Describe the machine."""
    return {
        "cpu": cpu_name(),
        "cores": len(psutil.Process().cpu_affinity()),
        "memory_gib": round(memory_total() / 2**30, 1),
        "kernel": platform.release(),
    }


@cache
def commit() -> str:
    """Return the commit, with -dirty if files differ from it; empty outside of a repository."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
