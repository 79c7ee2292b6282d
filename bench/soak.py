"""Soak: hours of use, and afterwards nothing left. Run it on a quiet machine: `make soak HOURS=8`.

Rounds, until the time is up. In each, a life of a simulated kernel with a seed of its own (clients
that fork, cancel, trim, stall and die, drivers that die), some walks on others (operations on all
that shares, caches and moves KV, every moment compared with what it must be), scenarios on others
(programs on a driver that takes time, ps compared with what is true), and a while with one
real kernel on the null driver, which stays: programs that come and go in it, and a driver host that
is killed. After each of them no block is used or in limbo, no task is left, every call has ended
once; and the real kernel's memory and open files do not grow.

A line of JSON for each round; exit code 1 with the seed at the first thing that is wrong; of a
walk, a short list of operations. `--walk-ops N` walks so many and does nothing else,
`--scenarios N` plays so many; several of them, each with a `--seed` of its own, use as many cores.
"""

import argparse
import json
import os
import signal
import sys
import time
from random import Random

import psutil

from bench.booted import NULL, Booted, booted
from bench.record import surroundings
from syscalls import Context, KernelError, Task
from tests.helpers import scenario
from tests.helpers.crowd import Crowd
from tests.helpers.sim import Sim
from tests.helpers.walks import walk

CALLS = 10_000
POOLS = (12, 33, 64, 512)
WALKS = 4
"""Of a round."""
WALK_OPS = 500
"""Of a walk."""
SCENARIOS = 20
"""Of a round."""
SCENARIO_EVENTS = 500
PROGRAMS = 40
GROWTH_BYTES = 16 << 20
WARM_UP = 5
"""Rounds after which memory is looked at."""
PATIENCE_S = 60.0


def life(seed: int) -> int:
    """Live one simulated life; return how many ids were compared with what they must be."""
    sim = Sim(seed, num_blocks=POOLS[seed % len(POOLS)])
    crowd = Crowd(sim, 12 if sim.config.num_blocks < 64 else 64)
    crowd.run(CALLS)
    crowd.leave()
    crowd.check_ended()
    sim.check_empty()
    return sum(member.checked for member in crowd.members)


def walks(seed: int) -> int:
    """Walk on the grounds of a round; return the operations."""
    return sum(walk(seed * WALKS + number, WALK_OPS).done for number in range(WALKS))


def walk_on(seed: int, count: int) -> None:
    """Walk `count` operations, and tell each thousandth part of them."""
    done, told, begun = 0, 0, time.monotonic()
    while done < count:
        done += walks(seed)
        if done - told >= count // 1000 or done >= count:
            told, seconds = done, round(time.monotonic() - begun)
            print(json.dumps({"seed": seed, "ops": done, "seconds": seconds}), flush=True)
        seed += 1


def scenarios(first: int, count: int) -> int:
    """Play scenarios, each of a seed of its own; return how many tasks ps was right about."""
    seeds = range(first, first + count)
    return sum(scenario.play(seed, SCENARIO_EVENTS).truth.compared for seed in seeds)


def play_on(seed: int, count: int) -> None:
    """Play `count` scenarios, and tell each hundredth part of them."""
    begun, part = time.monotonic(), max(1, count // 100)
    for done in range(0, count, part):
        compared = scenarios(seed + done, min(part, count - done))
        seconds = round(time.monotonic() - begun)
        told = {"seed": seed + done, "scenarios": part, "compared": compared, "seconds": seconds}
        print(json.dumps(told), flush=True)


def crowd_of_programs(kernel: Booted, random: Random) -> int:
    """Let programs come, use the kernel and go; return how many ids they got."""
    got = 0
    for number in range(PROGRAMS):
        with kernel.connect(f"soak-{number}") as task:
            if random.random() < 0.1:
                os.kill(task.devices()[0].host_pid, signal.SIGKILL)
            got += use(task, random)
    return got


def use(task: Task, random: Random) -> int:
    """Generate on a context and its forks, reading some to their end; return the ids."""
    root = task.alloc_ctx()
    root.append([random.randrange(32_000) for _ in range(random.randint(1, 400))])
    contexts: list[Context] = [root, *root.fork(random.randint(1, 8))]
    got = 0
    for ctx in contexts:
        stream = ctx.infer(random.randint(1, 60), temperature=1.0, text=False)
        try:
            for piece in stream:
                got += piece.id is not None
                if random.random() < 0.02:
                    stream.cancel()
        except KernelError:
            pass  # three deaths in one infer; its end is counted by the kernel
    return got


def left(kernel: Booted) -> str:
    """Say what is left of those who have gone; nothing, within a while."""
    deadline = time.monotonic() + PATIENCE_S
    with kernel.connect("soak-check") as task:
        while True:
            pool, row = task.pools()[0], task.kernel()
            tasks = [each.name for each in task.ps()]
            clean = tasks == ["init", "soak-check"] and pool.used == pool.limbo == 0
            if clean and row.admitted == row.finished + row.failed:
                return ""
            if time.monotonic() > deadline:
                return f"{tasks}, {pool}, {row}"
            time.sleep(0.05)


def main() -> int:
    """Entry point; return the exit code."""
    parser = argparse.ArgumentParser(prog="bench/soak.py", description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    parser.add_argument("--walk-ops", type=int, default=0, help="walk, and nothing else")
    parser.add_argument("--scenarios", type=int, default=0, help="play, and nothing else")
    given = parser.parse_args()
    if given.walk_ops:
        walk_on(given.seed, given.walk_ops)
        return 0
    if given.scenarios:
        play_on(given.seed, given.scenarios)
        return 0
    end, first = time.monotonic() + 3600 * given.hours, None
    print(json.dumps({"bench": "soak", "hours": given.hours} | surroundings()), flush=True)
    with booted(*NULL, "--num-blocks", "2048", "--max-restarts", "1000000") as kernel:
        process, seed = psutil.Process(kernel.pid), given.seed
        while time.monotonic() < end:
            checked, ops = life(seed), walks(seed)
            looks = scenarios(seed * SCENARIOS, SCENARIOS)
            ids = crowd_of_programs(kernel, Random(seed))
            wrong = left(kernel)
            rss, files = process.memory_info().rss, process.num_fds()
            if seed - given.seed == WARM_UP:
                first = rss, files
            if first is not None and (rss > first[0] + GROWTH_BYTES or files > first[1] + 2):
                wrong = f"memory and files grew from {first} to {(rss, files)}"
            print(json.dumps({"seed": seed, "checked": checked, "ops": ops, "looks": looks,
                              "ids": ids, "rss": rss, "files": files, "wrong": wrong}),
                  flush=True)  # fmt: skip
            if wrong:
                return 1
            seed += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
