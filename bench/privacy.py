"""Privacy: whether the time of an answer tells what another owner has in the prefix cache.

A kernel on the null driver, which sleeps for every token that it computes, with clients of two uids
that are handed in (a kernel serves its own uid and root's, and a bench may be either). The other
owner has asked a prompt; then ours asks the same one, or one that nobody has asked. The area under
the curve of the two times is 0.5 if they cannot be told apart, and 1 if they always can (for a
cache that is shared, attacks on real systems have reached 0.99: arXiv 2411.18191). The control is
ours asking twice: if that cannot be told apart either, nothing was measured.
"""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from random import Random
from statistics import median

from bench.record import Result
from tests.helpers.sim import Sim, SimClient

PROBES = 1000
LENGTH = 64
MODEL = "null:vocab=30000,token_us=20"
OTHER = 0
"""The uid of the other owner; UID is ours, and the kernel's."""


def run() -> Iterator[Result]:
    """Probe for what another owner has, then for what ours has."""
    sim = Sim(7, MODEL, num_blocks=4096, max_contexts=16)
    ours, theirs = sim.client(), sim.client(uid=OTHER)
    random = Random(11)
    known: list[float] = []
    unknown: list[float] = []
    own: list[float] = []
    for _ in range(PROBES):
        first, second, third, fourth = (prompt(random) for _ in range(4))
        ask(sim, theirs, first)
        ask(sim, theirs, fourth)  # in both worlds somebody has asked as much
        order = [(known, first), (unknown, second)]
        random.shuffle(order)
        for times_of, ids in order:
            times_of.append(ask(sim, ours, ids))
        ask(sim, ours, third)
        own.append(ask(sim, ours, third))
    yield Result(
        "privacy", "another owner's prompt", area(known, unknown), "AUC", area(own, unknown),
        "one's own prompt",
        {
            "probes": PROBES, "known_us": round(median(known)),
            "unknown_us": round(median(unknown)), "own_us": round(median(own)),
        },
    )  # fmt: skip


def prompt(random: Random) -> list[int]:
    return [random.randrange(30_000) for _ in range(LENGTH)]


def ask(sim: Sim, client: SimClient, ids: Sequence[int]) -> float:
    """Return the microseconds from a prompt to the end of its answer of one id."""
    handle = client.new_handle()
    assert client.ask("alloc_ctx", handle).errno == 0
    start = time.perf_counter()
    assert client.ask("infer", handle, 1, 0.0, ids=list(ids)).errno == 0
    took = time.perf_counter() - start
    client.ask("free_ctx", handle)
    return 1e6 * took


def area(ones: Sequence[float], others: Sequence[float]) -> float:
    """Return how well two samples are told apart: the area under the curve, 0.5 to 1."""
    ranked = sorted(others)
    below = sum(bisect_left(ranked, x) + bisect_right(ranked, x) for x in ones)
    share = below / (2 * len(ones) * len(others))
    return max(share, 1 - share)
