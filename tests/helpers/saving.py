"""A simulated kernel that keeps saves: its store works on a disk in memory, or on any other.

A `SavingSim` on the disk of another one is the next boot. Nothing happens but in `turn`, and one
message of the driver and one of the store at a time if it is told so: `each_moment` tries something
at every one of them.
"""

import mmap
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

from drivers.store.files import Files
from drivers.store.store import Store
from kernel.loopback import LoopbackLink
from kernel.store import LoopbackStore
from kernel.system import host_part
from tests.helpers.disks import MemoryFiles
from tests.helpers.oracle import Knobs, next_id
from tests.helpers.sim import Reply, Sim, SimClient

BLOCK_BYTES = 128
"""Of the null driver, 16 positions."""
WINDOW_BLOCKS = 3
"""That the bulk window holds: longer saves take several turns of it."""
SAVED_UNIX = 1e9


class Tiers(NamedTuple):
    """What a kernel has below the device."""

    host_blocks: int = 0
    swap_bytes: int = 0


DEVICE, HOST, DISK, ALL = Tiers(), Tiers(64), Tiers(0, 1 << 16), Tiers(32, 1 << 16)


class SavingSim(Sim):
    """A kernel with a store."""

    def __init__(
        self, files: Files | None = None, tiers: Tiers = DEVICE, seed: int = 0, **config: Any
    ) -> None:
        self.files = files or MemoryFiles()
        self.tiers = tiers
        host_blocks, swap_bytes = tiers
        # Swap takes whole pages of the window, and the rest is for saves.
        swap_part = mmap.PAGESIZE if swap_bytes else 0
        bulk_bytes = config.pop("bulk_bytes", WINDOW_BLOCKS * BLOCK_BYTES) + 2 * swap_part
        host_bytes = host_blocks * BLOCK_BYTES
        max_models = config.setdefault("max_models", 2)
        beside = Random(seed) if host_blocks else None
        link = LoopbackLink("null0", bulk_bytes, host_part(host_bytes) * max_models, beside)
        windows = [link.bulk_fd, link.host_fd] if host_blocks else [link.bulk_fd]
        store = LoopbackStore(
            lambda emit: Store(emit, windows, self.files, clock=lambda: SAVED_UNIX)
        )
        defaults = {"state_dir": "/state", "keys_dir": "/keys"}
        super().__init__(
            seed, link=link, store=store, bulk_bytes=bulk_bytes, host_bytes=host_bytes,
            swap_bytes=swap_bytes,
            **(defaults | config),
        )  # fmt: skip
        self.until(lambda: not self.system.store.busy)

    def end(self) -> None:
        """Everybody goes, and nothing is left."""
        self.leave()
        assert self.store is not None
        self.store.kill()
        self.link.kill()


def grown(client: SimClient, ids: list[int], more: int = 3) -> tuple[int, list[int]]:
    """Return a context whose KV is computed, and its ids: those given and a few generated."""
    handle = client.context(ids)
    reply = client.ask("infer", handle, more, 0.0)
    assert reply.errno == 0, reply.message
    return handle, ids + reply.tokens


def goes_on(client: SimClient, handle: int, ids: list[int], count: int = 3) -> Reply:
    """Check that a context holds `ids`, and goes on as they say; it is as before afterwards."""
    read = client.ask("read_ctx", handle)
    assert list(read.ids) == ids
    reply = client.ask("infer", handle, count, 0.0)
    assert reply.errno == 0, reply.message
    history = list(ids)
    for token in reply.tokens:
        assert token == next_id(history, Knobs()), "it goes on as the ids say"
        history.append(token)
    assert client.ask("trim_ctx", handle, len(ids)).errno == 0
    return reply


def load(client: SimClient, name: str, *more: Any) -> tuple[int, Reply]:
    """Load a save; return its handle and how that went."""
    handle = client.new_handle()
    return handle, client.ask("load_ctx", handle, name, *more)


def slowly(sim: SavingSim, done: Callable[[], bool], most: int = 4000) -> Iterator[int]:
    """Turn the kernel with one message of driver and store at a time, until it is done."""
    for moment in range(most):
        if done():
            return
        yield moment
        sim.turn(pump=1)
    raise AssertionError(f"not done after {most} moments")
