"""The machine: interpreter, system, memory, cores, limits, accelerators, torch."""

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from userland.checks.finding import FAIL, OK, WARN, Finding
from userland.config import gather
from userland.view import size

LEAST_PYTHON, LEAST_LINUX = (3, 11), (5, 10)
LEAST_FILES = 1024
TORCH_S = 120.0
ACCELERATORS = {
    "cuda": ("/dev/nvidia[0-9]*", "NVIDIA GPU"),
    "rocm": ("/dev/kfd", "AMD GPU"),
    "tpu": ("/dev/accel[0-9]*", "TPU"),
}
"""By the name that their driver has, or would have: its device files, and what it is."""


def python() -> Iterator[Finding]:
    """Is the interpreter new enough, and can the commands be found?"""
    found, path = ".".join(map(str, sys.version_info[:3])), sys.executable
    level = OK if sys.version_info >= LEAST_PYTHON else FAIL
    yield Finding("python", level, f"{found}, {path}", "" if level == OK else "use 3.11 or newer")
    if shutil.which("llmos") is None:
        yield Finding("python", WARN, "llmos is not on the PATH", f"add {Path(path).parent} to it")


def linux() -> Iterator[Finding]:
    """Has the system what processes are watched and memory is shared with?"""
    name = f"{os.uname().sysname} {os.uname().release}"
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    release = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    lacking = []
    if sys.platform != "linux" or release < LEAST_LINUX:
        lacking.append("Linux 5.10 or newer")
    try:
        os.close(os.memfd_create("llmos-doctor"))
    except (OSError, AttributeError):
        lacking.append("memfd_create")
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        lacking.append("pidfd_open")
    if lacking:
        yield Finding("linux", FAIL, f"{name} lacks {', '.join(lacking)}", "use a newer kernel")
    else:
        yield Finding("linux", OK, f"{name}, with pidfd and memfd")


def memory() -> Iterator[Finding]:
    """Is there room for the KV pool?"""
    facts = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M))
    free = int(facts["MemAvailable"]) << 10
    pool = int(gather(of_kernel=True).value("kernel.kv_mem"))
    text = f"{size(free)} available of {size(int(facts['MemTotal']) << 10)}"
    if free < pool:
        todo = f"llmos up --kv-mem {max(64, free // 2 >> 20)}M"
        yield Finding("memory", WARN, f"{text}, less than the {size(pool)} of kv_mem", todo)
    else:
        yield Finding("memory", OK, f"{text}; kv_mem is set to {size(pool)}")


def cores() -> Iterator[Finding]:
    """How many cores may be used?"""
    usable, all_of_them = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    text = f"{usable} of {all_of_them} cores"
    quota = _quota()
    if quota is not None and quota < usable:
        yield Finding(
            "cores", WARN, f"{text}, and a limit of {quota:g} of them by the control group",
            f"llmos up --set threads={max(1, int(quota))}",
        )  # fmt: skip
    else:
        yield Finding("cores", OK, text)


def _quota() -> float | None:
    """Return how many cores the control group allows, None if it does not say."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)


def files() -> Iterator[Finding]:
    """May a kernel have as many connections as it could be asked for?"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = ["unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"
             for value in (soft, hard)]  # fmt: skip
    text = f"{shown[0]} open files, at most {shown[1]}"
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        yield Finding("files", WARN, text, f"ulimit -Hn {LEAST_FILES}: a program takes a few")
    else:
        yield Finding("files", OK, text)


def accelerators() -> Iterator[Finding]:
    """Is there hardware that is not used, and why not?"""
    seen = False
    for kind, (pattern, what) in ACCELERATORS.items():
        there = sorted(Path("/").glob(pattern.lstrip("/")))
        if not there:
            continue
        seen = True
        names = ", ".join(map(str, there))
        if find_spec(f"drivers.{kind}") is None:
            why = f"{what} ({names}) is not used: this version has no driver {kind}"
            yield Finding("devices", WARN, why, "models run on the processor, cpu0")
        else:
            yield Finding("devices", OK, f"{what} ({names}): --device {kind}0 uses it")
    if not seen:
        yield Finding("devices", OK, "no GPU and no TPU; models run on the processor, cpu0")


def torch() -> Iterator[Finding]:
    """Can torch be imported, and how long does it take?"""
    code = "import torch; print(torch.__version__, torch.cuda.is_available())"
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=TORCH_S
        )
    except subprocess.TimeoutExpired:
        yield Finding("torch", FAIL, f"not imported within {TORCH_S:g} s", "is the disk busy?")
        return
    taken = time.monotonic() - begin
    if done.returncode:
        why = done.stderr.strip().rsplit("\n", 1)[-1] or f"exit code {done.returncode}"
        yield Finding("torch", FAIL, f"cannot be imported: {why}", "make install")
        return
    found, cuda = done.stdout.split()[-2:]
    extra = ", sees CUDA" if cuda == "True" else ""
    yield Finding("torch", OK, f"{found}{extra}, imported in {taken:.1f} s")
