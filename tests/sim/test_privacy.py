"""What a user can learn of what others have asked: nothing, in any number that a call answers.

Two worlds differ in one thing: the other user has computed the very prompt that the prober sends,
or another one of the same length. The prober sends it, sees how it is computed turn by turn, then
asks for everything that can be asked: every answer is the same in both worlds. The control: for a
second task of the same user they differ, for it hits (security: vLLM's prefix cache told by timing,
CVE-2025-46570).

What the operator, the kernel's own uid, sees besides are rows about everybody: names, lengths and
places of contexts, the log, and kernel-wide counters (hit_tokens, evicted_blocks, out_blocks, ...).
They tell how much, not what: so they are the same in both worlds, too.
"""

import hashlib
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from drivers import null
from kernel.loopback import LoopbackLink
from kernel.prefix import PrefixIndex
from syscalls.errors import Errno
from tests.helpers.oracle import VOCAB, expected
from tests.helpers.sim import UID, Sim, SimClient

OTHER = 0
"""The second uid that a kernel serves."""
SNAPSHOTS = "tasks", "contexts", "pools", "kernel", "config"


class World(NamedTuple):
    """All but what the other user has asked."""

    victim: int  # uid
    prober: int
    length: int  # of the prompt
    num_blocks: int
    host_blocks: int
    live: bool  # the other one's context is still there
    asked: int  # how often the prober asks


def a_world(seed: int, victim: int, prober: int) -> tuple[World, list[int], list[int]]:
    """Return a world, a prompt, and another one of the same length."""
    random = Random(seed)
    length = random.randint(1, 40)
    needed = -(-(length + 4) // 4)
    world = World(
        victim, prober, length, random.randint(needed + 1, 2 * needed + 8),
        random.choice([0, 0, 5, 64]), random.random() < 0.5, random.randint(1, 3),
    )  # fmt: skip
    prompt = [random.randrange(VOCAB) for _ in range(length)]
    other = [*prompt]
    other[0] = (other[0] + random.randint(1, VOCAB - 1)) % VOCAB
    return world, prompt, other


def seen(world: World, known: list[int], probe: list[int]) -> list[Any]:
    """Return all that the prober is told, while the other user has computed `known`."""
    with pytest.MonkeyPatch.context() as patch:
        ticks = count(0, 1_000)
        patch.setattr(null, "time", SimpleNamespace(monotonic_ns=lambda: next(ticks)))
        host_bytes = 4096 * bool(world.host_blocks)
        link = LoopbackLink("null0", host_bytes=host_bytes)
        sim = Sim(
            1, link=link, num_blocks=world.num_blocks, block_size=4, host_bytes=host_bytes
        )  # fmt: skip
        victim, prober = sim.client(uid=world.victim), sim.client(uid=world.prober)
        handle = victim.context(known)
        assert len(victim.ask("infer", handle, 2, 0.0).tokens) == 2
        if not world.live:
            victim.ask("free_ctx", handle)
        sim.settle()
        story: list[Any] = []
        for _ in range(world.asked):
            story += _probe(sim, prober, probe)
        return story + _ask_everything(prober, victim, handle)


def _probe(sim: Sim, prober: SimClient, probe: list[int]) -> list[Any]:
    handle = prober.context([])
    infer = prober.send("infer", handle, 3, 0.0, ids=probe)
    story: list[Any] = []
    while not infer.done:
        sim.turn()
        story.append((len(infer.tokens), infer.result, infer.errno))
    assert infer.tokens == expected(probe, 3)
    return [*story, *_of_context(prober, handle)]


def _of_context(client: SimClient, handle: int, *pid: int) -> list[Any]:
    rows = [client.ask("pmap", handle, *pid), client.ask("explain", handle, *pid)]
    if not pid:
        rows.append(client.ask("stat_ctx", handle))
    return [(row.errno, row.message, row.result) for row in rows]


def _ask_everything(prober: SimClient, victim: SimClient, handle: int) -> list[Any]:
    pid = victim.ask("stat_task").result.pid
    asked = [
        prober.ask("stat_task"), prober.ask("stat_task", pid), prober.ask("list_models"),
        prober.ask("list_devices"), prober.ask("log"),
        *(prober.ask("snapshot", what) for what in SNAPSHOTS),
        prober.ask("drop_cache"), *(prober.ask("snapshot", what) for what in SNAPSHOTS),
    ]  # fmt: skip
    answers = [(reply.name, reply.errno, reply.message, reply.result) for reply in asked]
    return [*answers, *_of_context(prober, handle, pid)]


def told(story: list[Any]) -> list[str]:
    """Return a story without what no kernel can tell twice: when records were written."""
    return [repr(_unwalled(item)) for item in story]


def _unwalled(item: Any) -> Any:
    if type(item).__name__ == "LogResult":
        return [row[:2] + row[3:] for row in map(tuple, item.rows)]
    return tuple(map(_unwalled, item)) if isinstance(item, tuple | list) else item


@pytest.mark.parametrize("prober", [OTHER, UID], ids=["user", "operator"])
def test_nobody_is_told_what_another_user_has_asked(prober: int) -> None:
    victim = UID if prober == OTHER else OTHER
    for seed in range(60):
        world, prompt, other = a_world(seed, victim, prober)
        same, different = seen(world, prompt, prompt), seen(world, other, prompt)
        for one, two in zip(told(same), told(different), strict=True):
            assert one == two, f"seed {seed}, {world}"


def test_the_same_user_hits_or_that_would_prove_nothing() -> None:
    hits = 0
    for seed in range(60):
        world, prompt, other = a_world(seed, OTHER, OTHER)
        if world.num_blocks > 2 * -(-(world.length + 4) // 4) and world.length > 5:
            assert told(seen(world, prompt, prompt)) != told(seen(world, other, prompt)), world
            hits += 1
    assert hits > 10


def test_a_key_without_the_owner_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_all(self: PrefixIndex, owner: int) -> bytes:
        return hashlib.blake2b(b"all", digest_size=32, key=self._secret).digest()

    monkeypatch.setattr(PrefixIndex, "_key", of_all)
    with pytest.raises(AssertionError):
        test_nobody_is_told_what_another_user_has_asked(OTHER)


def test_another_users_cache_is_nobody_elses_to_drop() -> None:
    sim = Sim(block_size=4)
    mine, theirs = sim.client(), sim.client(uid=OTHER)
    ids = list(range(20))
    handle = mine.context(ids)
    assert mine.ask("infer", handle, 1, 0.0).result.cached == 0
    mine.ask("free_ctx", handle)
    assert theirs.ask("drop_cache").result.blocks == 0
    assert mine.ask("infer", mine.context([]), 1, 0.0, ids=ids).result.cached == 19
    assert theirs.ask("infer", theirs.context([]), 1, 0.0, ids=ids).result.cached == 0
    assert theirs.ask("log").errno == Errno.EPERM
    sim.leave()
