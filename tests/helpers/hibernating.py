"""Kernels one after the other on one disk: everything is saved on the way down, and comes back.

A `HibernatingSim` on the disk of another one is the next boot. Nothing happens but in `turn`;
`slowly` lets driver and store do one message at a time.
"""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from drivers.store.files import Files
from drivers.store.store import Store
from kernel.chosen import Chosen
from kernel.loopback import LoopbackLink
from kernel.store import LoopbackStore
from kernel.system import host_part
from syscalls.abi import Restore, Sig
from tests.helpers.oracle import Knobs, next_id
from tests.helpers.sim import Reply, Sim, SimClient

BLOCK_BYTES = 128
"""Of the null driver, 16 positions."""
RUNNING = (Restore.READING, Restore.COMING)


class HibernatingSim(Sim):
    """A kernel with a store; `up` waits until it has brought everything back."""

    def __init__(
        self, files: Files, host_blocks: int = 0, wait: bool = True, boot: bool = True,
        seed: int = 0, **config: Any,
    ) -> None:  # fmt: skip
        """Boot, unless `boot` says not to, and `wait` until everything is back."""
        swap_part = mmap.PAGESIZE if config.get("swap_bytes") else 0  # of the window, whole pages
        bulk_bytes, host_bytes = 3 * BLOCK_BYTES + 2 * swap_part, host_blocks * BLOCK_BYTES
        max_models = config.setdefault("max_models", 2)
        link = LoopbackLink("null0", bulk_bytes, host_part(host_bytes) * max_models)
        windows = [link.bulk_fd, *([link.host_fd] if host_blocks else [])]
        self.asked: list[Any] = []  # messages that the kernel sent to the store
        store = LoopbackStore(lambda emit: Store(emit, windows, files))
        send = store.send

        def noted(message: Any) -> None:
            self.asked.append(message)
            send(message)

        store.send = noted  # type: ignore[method-assign]
        where = {"state_dir": "/state", "keys_dir": "/keys"}
        super().__init__(
            seed, link=link, store=store, bulk_bytes=bulk_bytes, host_bytes=host_bytes,
            boot=boot, **(where | config),
        )  # fmt: skip
        if wait:
            self.settle_restore()

    def settle_restore(self) -> None:
        self.until(lambda: not self.system.comeback.under_way)

    @property
    def loopback(self) -> LoopbackStore:
        assert self.store is not None
        return self.store

    def change_disk(self, files: Files) -> None:
        """Let the store that is open work on another disk from now on."""
        store: Any = self.loopback._store
        store._saves._files = store._saves._catalogue._files = files

    def crash(self) -> None:
        """The kernel and its processes are killed."""
        self.loopback.die()
        self.link.kill()

    def hibernate(self, grace_s: float = 0.0, replace: bool = False) -> Reply:
        """Ask for it and turn until it has ended, well or not."""
        operator = self.client()
        reply = operator.send("shutdown", grace_s, True, replace)
        self.until(lambda: reply.done or self.kernel.stopped)
        operator.read()
        return reply

    def attach(self, pid: int, token: bytes) -> tuple[SimClient, Reply]:
        """Connect a program as a task that came back."""
        client = self.client(hello=False)
        return client, client.ask("attach", pid, token)

    def leave(self) -> None:
        """Every program dies, and somebody ends what none has attached to."""
        killer = self.client()
        for task in self.system.tasks:
            if task.lease is not None and not task.ended_already:
                assert killer.ask("kill", task.pid, int(Sig.KILL)).errno == 0
        super().leave()

    def saves(self, client: SimClient) -> list[str]:
        """Return the names of all saves that a client sees."""
        return [row[0] for row in client.ask("list_saves").result.rows]


@dataclass
class Known:
    """What a program knows of its task: where its contexts are, and what they hold."""

    pid: int
    token: bytes
    ids: dict[int, list[int]] = field(default_factory=dict)  # by handle


def program(sim: Sim, name: str = "agent") -> tuple[SimClient, Known]:
    """Connect a program, and return what it has to know."""
    client = sim.client(hello=False)
    reply = client.ask("hello", name)
    assert reply.errno == 0
    return client, Known(reply.result.pid, reply.result.token)


def grown(client: SimClient, known: Known, ids: list[int], more: int = 3) -> int:
    """Make a context that holds `ids` and some that were generated."""
    handle = client.context(ids)
    reply = client.ask("infer", handle, more, 0.0)
    assert reply.errno == 0, reply.message
    known.ids[handle] = ids + reply.tokens
    return handle


def forked(client: SimClient, known: Known, origin: int, more: list[int]) -> int:
    """Fork a context and let the fork go on in its own way."""
    handle = client.new_handle()
    assert client.ask("fork_ctx", origin, handle).errno == 0
    known.ids[handle] = list(known.ids[origin])
    if more:
        reply = client.ask("infer", handle, 2, 0.0, ids=more)
        assert reply.errno == 0, reply.message
        known.ids[handle] += more + reply.tokens
    return handle


def all_there(client: SimClient, known: Known) -> None:
    """Every context holds what it did."""
    for handle, ids in known.ids.items():
        read = client.ask("read_ctx", handle)
        assert read.errno == 0, read.message
        assert list(read.ids) == ids


def goes_on(client: SimClient, handle: int, ids: list[int], count: int = 3) -> Reply:
    """Infer, and compare with what the ids say."""
    reply = client.ask("infer", handle, count, 0.0)
    assert reply.errno == 0, reply.message
    assert len(reply.tokens) == count
    for token in reply.tokens:
        assert token == next_id(ids, Knobs()), "it goes on as the ids say"
        ids.append(token)
    return reply


def slowly(sim: Sim, done: Callable[[], bool], most: int = 20_000) -> Iterator[int]:
    """Turn with one message of driver and store at a time until it is done."""
    for moment in range(most):
        if done():
            return
        yield moment
        sim.turn(pump=1)
    raise AssertionError(f"not done after {most} moments")


class Swapping(Chosen):
    """Takes no time to be quicker than a copy, however slow this machine is just now."""

    def swaps(self, tokens: int, copy_us: float, compute_us: float) -> bool:
        return True


def ids_of(seed: int, count: int) -> list[int]:
    random = Random(seed)
    return [random.randrange(1, 251) for _ in range(count)]


def family(sim: HibernatingSim, name: str = "agent", seed: int = 1) -> tuple[SimClient, Known]:
    """Connect a program with a context, two forks of it and an empty one."""
    client, known = program(sim, name)
    first = grown(client, known, ids_of(seed, 70))
    second = forked(client, known, first, ids_of(seed + 1, 20))
    forked(client, known, second, [])
    known.ids[client.context([])] = []
    return client, known


def reunited(sim: HibernatingSim, known: Known) -> SimClient:
    """Attach as the program of a task, and check that all of it is there, and goes on."""
    client, reply = sim.attach(known.pid, known.token)
    assert reply.errno == 0, reply.message
    assert reply.result.pid == known.pid
    all_there(client, known)
    for handle, ids in known.ids.items():
        if ids:
            goes_on(client, handle, list(ids), 2)
            assert client.ask("trim_ctx", handle, len(ids)).errno == 0
    return client
