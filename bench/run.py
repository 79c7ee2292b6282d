"""Run benchmarks: one JSON line a result.

    python bench/run.py [NAMES] [--list]     what there is, or some of it
    python bench/run.py [NAMES] --limits     against bench/limits.py

With --limits each bench that has limits is repeated up to five times, until its best results are
within all of them; then a table, and exit code 1 if a limit is missed. Results go to stdout, all
else to stderr.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module

from bench.limits import LIMITS, RUNS, Limit, Verdict, judge, table
from bench.record import Result, record

Run = Callable[[], Iterator[Result]]

BENCHES = {
    "calls": ("bench.calls", "the null system call against raw ZeroMQ"),
    "messages": ("bench.messages", "a call from task to task against the null system call"),
    "fork": ("bench.fork", "forks of short and long contexts, and against prefill"),
    "engine": ("bench.engine", "prefill and decode through system calls, on smollm2"),
    "cost": ("bench.kernel_cost", "a step with the kernel against one without"),
    "overlap": ("bench.overlap", "steps submitted ahead against one at a time"),
    "scale": ("bench.scale", "a step beside 10,000 idle tasks against one beside 64"),
    "idle": ("bench.idle", "processor time and wake-ups of an idle kernel"),
    "driver": ("bench.driver", "prefill and decode of a driver host without kernel"),
    "copies": ("bench.copies", "copies to and from the host tier against plain memory copies"),
    "agents": ("bench.agents", "64 agents with tools on a pool for a quarter, simulated"),
    "pager": ("bench.pager", "going on after a swap, and prefix hits, against computing it again"),
    "sharing": ("bench.sharing", "what tasks have of one device: fairness, its cost, latency"),
    "agents_live": (
        "bench.agents_live",
        "64 agents with tools, in a quarter of what they need",
    ),
    "privacy": ("bench.privacy", "whether times tell what another owner has cached"),
    "kv_dtype": ("bench.kv_dtype", "KV in 8 bit against KV in bfloat16: quality, memory, speed"),
    "linear": ("bench.linear", "the linear layers alone"),
    "store": ("bench.store", "saves and swap through the store host, against plain files"),
}


def load(name: str) -> Run:
    """Return a bench, importing it only now: some import torch."""
    run: Run = import_module(BENCHES[name][0]).run
    return run


def show(results: Iterator[Result]) -> list[Result]:
    """Print results as they come; return them."""
    shown = []
    for result in results:
        print(record(result), flush=True)
        shown.append(result)
    return shown


def hold(limits: Sequence[Limit], run: Run, runs: int = RUNS) -> list[Verdict]:
    """Repeat a bench until the best of its results are within the limits; return the verdicts."""
    results: list[Result] = []
    for _ in range(runs):
        results += show(run())
        verdicts = judge(limits, results)
        if all(verdict.met for verdict in verdicts):
            break
    return verdicts


def limits_of(names: Sequence[str]) -> dict[str, list[Limit]]:
    """Return the limits of these benches; those without are left out."""
    by_name = {name: [limit for limit in LIMITS if limit.bench == name] for name in names}
    return {name: limits for name, limits in by_name.items() if limits}


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench/run.py", description="Benchmarks of llmos.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all if none is named")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--limits", action="store_true", help="fail if a limit is missed")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in BENCHES]
    if unknown:
        parser.error(f"there is no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    given.names = given.names or list(BENCHES)
    return given


def main(arguments: Sequence[str]) -> int:
    """Entry point; return the exit code."""
    given = options(arguments)
    if given.list:
        for name, (_, meaning) in BENCHES.items():
            print(f"{name:8} {meaning}")
        return 0
    if not given.limits:
        for name in given.names:
            show(load(name)())
        return 0
    verdicts = [v for name, ls in limits_of(given.names).items() for v in hold(ls, load(name))]
    print(table(verdicts) if verdicts else "these have no limits", file=sys.stderr)
    return 0 if all(verdict.met for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
