"""A whole kernel without processes, sockets or time: for tests that must replay from a seed.

`Sim` is the real System and loop on a fake front, a fake clock and the null driver in-process.
Nothing happens but in `turn` (the kernel) and `link.pump` (the driver).
"""

from array import array
from collections import Counter, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from drivers import base
from kernel.chosen import Chosen
from kernel.config import Config
from kernel.context import Context
from kernel.device import DeviceState
from kernel.ipc import Arrival
from kernel.logring import LogRing
from kernel.loop import Kernel
from kernel.loopback import LoopbackLink
from kernel.store import LoopbackStore
from kernel.sys_task import task_row
from kernel.system import System
from syscalls import abi, wire
from syscalls.abi import Event
from tests.helpers.ledgers import check_root

UID = 1000
ZERO = bytes(8)


def at_once(work: "Generator[int, None, Any]") -> Any:
    """Return what work gives, without anything happening between its slices."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class SimFront:
    """The kernel's front, in memory."""

    def __init__(self) -> None:
        self.arrivals: deque[Arrival] = deque()
        self.sent: dict[bytes, deque[list[bytes]]] = {}
        self.blocked: set[bytes] = set()  # clients that do not read
        self.dead: set[bytes] = set()  # programs that have died
        self.closed: set[bytes] = set()  # connections whose programs live on without them
        self.watched: set[bytes] = set()

    def receive(self) -> Iterator[Arrival]:
        while self.arrivals:
            yield self.arrivals.popleft()

    def send(self, route: bytes, frames: list[bytes]) -> bool:
        if route in self.blocked:
            return False
        self.sent.setdefault(route, deque()).append(frames)
        return True

    def gone(self) -> list[bytes]:
        return sorted(self.dead & self.watched)

    def alive(self, route: bytes) -> bool:
        return route not in self.closed

    def welcome(self, route: bytes, pid: int) -> bool:
        if route in self.dead:
            return False
        self.watched.add(route)
        return True

    def forget(self, route: bytes) -> None:
        self.watched.discard(route)

    def has_input(self) -> bool:
        return bool(self.arrivals)


@dataclass
class Reply:
    """How a call ended."""

    call: int
    name: str
    errno: int = 0
    message: str = ""
    result: Any = None
    ids: "array[int]" = field(default_factory=lambda: array("i"))
    tokens: list[int] = field(default_factory=list)
    done: bool = False


class SimClient:
    """A program's end of one connection: sends frames, and books every event."""

    def __init__(self, sim: "Sim", number: int, uid: int = UID) -> None:
        self.sim = sim
        self.uid = uid
        self.route = b"\0client%04d" % number
        self.pid = 5000 + number
        self.calls: dict[int, Reply] = {}
        self.session_events: list[list[Any]] = []
        self.backlog: list[list[Any]] = []
        self.handle = 0
        self._last = 0

    def send(self, name: str, *args: Any, ids: Any = None, flags: int = 0) -> Reply:
        """Send a call; its Reply fills as events come in."""
        self._last += 1
        reply = Reply(self._last, name)
        self.calls[self._last] = reply
        row = abi.BY_NAME[name]
        frames = [wire.pack_request(row.number, self._last, flags, args)]
        if ids is not None:
            frames.append(array("i", ids).tobytes())
        self.send_raw(frames)
        return reply

    def send_raw(self, frames: list[bytes]) -> None:
        self.sim.front.arrivals.append(Arrival(self.route, self.uid, self.pid, frames))

    def ask(self, name: str, *args: Any, ids: Any = None, flags: int = 0) -> Reply:
        """Send a call and turn the kernel until it has ended."""
        reply = self.send(name, *args, ids=ids, flags=flags)
        self.sim.until(lambda: reply.done)
        return reply

    def new_handle(self) -> int:
        self.handle += 1
        return self.handle

    def context(self, ids: list[int]) -> int:
        """Return a new context that holds `ids`."""
        handle = self.new_handle()
        assert self.ask("alloc_ctx", handle).errno == 0
        if ids:
            assert self.ask("append", handle, ids=ids).errno == 0
        return handle

    def take(self) -> list[list[Any]]:
        """Return the events since the last take, in order."""
        self.read()
        events, self.backlog = self.backlog, []
        return events

    def read(self) -> None:
        """Book what the kernel has sent."""
        for frames in self.sim.front.sent.pop(self.route, ()):
            ids = wire.unpack_ids(frames[1]) if len(frames) == 2 else array("i")
            for event in wire.unpack_events(frames[0]):
                if event[0] == Event.FIN:
                    count = event[3]
                    event = [*event, ids[:count]]
                    ids = ids[count:]
                self._book(event)
                self.backlog.append(event)
            assert not ids, "ids of frame 2 that no FIN claims"

    def _book(self, event: list[Any]) -> None:
        kind, call = event[0], event[1]
        if call == 0:
            self.session_events.append(event)
            return
        reply = self.calls[call]
        assert not reply.done, f"an event after the end of call {call}: {event}"
        if kind == Event.TOKEN:
            reply.tokens.extend(event[2])
        elif kind == Event.FIN:
            reply.result = abi.BY_NAME[reply.name].result(*event[2])
            reply.ids, reply.done = event[4], True
        elif kind == Event.ERR:
            reply.errno, reply.message, reply.done = event[2], event[3], True


class Sim:
    """A kernel on the null driver."""

    def __init__(
        self,
        seed: int = 0,
        path: str = "null:vocab=251",
        link: LoopbackLink | None = None,
        store: LoopbackStore | None = None,
        policy: Chosen | None = None,
        boot: bool = True,
        clock: Clock | None = None,
        **config: Any,
    ) -> None:
        defaults: dict[str, Any] = {
            "device": "null0", "model": "null", "num_blocks": 64, "block_size": 16,
            "prefill_chunk": 32, "bulk_bytes": 1 << 20, "target_us": 0, "max_restarts": 1 << 30,
        }  # fmt: skip
        self.random = Random(seed)
        self.clock = clock or Clock()
        self.front = SimFront()
        self.config = Config(Path("/nowhere"), model_dir=path, **(defaults | config))
        self.link = link or LoopbackLink(self.config.device)
        policy = policy or Chosen("fair", {})
        self.system = System(
            self.config, self.link, policy, self.clock, Random(seed + 1), UID, 4242,
            LogRing(self.clock), store,
        )  # fmt: skip
        self.kernel = Kernel(self.system, self.front)
        self.clients: list[SimClient] = []
        self.store = store
        self.system.store.start()
        self.system.device.start()
        ended = (DeviceState.UP, DeviceState.FAILED)
        if boot:
            self.until(lambda: self.system.device.state in ended)

    @property
    def model(self) -> Any:
        """The first model."""
        return self.system.device.models.first()

    @property
    def pool(self) -> Any:
        return self.model.pool

    @property
    def loaded(self) -> list[Any]:
        """The models that have a pool."""
        return [model for model in self.system.device.models if model.loaded]

    def client(self, hello: bool = True, uid: int = UID) -> SimClient:
        """Connect a program."""
        client = SimClient(self, len(self.clients), uid)
        self.clients.append(client)
        if hello:
            assert client.ask("hello", f"c{len(self.clients)}").errno == 0
        return client

    def turn(self, pump: int = 1 << 30) -> None:
        """One turn of the kernel, then let the driver work on `pump` messages."""
        self.clock.now += 0.001
        self.kernel_turn()
        self.link.pump(pump)
        if self.store is not None:
            self.store.pump(pump)
        for client in self.clients:
            client.read()

    def kernel_turn(self) -> None:
        """One turn of the kernel; if it would sleep then, a second one must have nothing to do."""
        self.kernel.turn()
        waiting = self.link.outbox or (self.store is not None and self.store.outbox)
        if not waiting and not self.kernel.stopped and self.kernel.timeout() != 0.0:
            before = self._effects()
            self.kernel.turn()
            assert self._effects() == before, "the kernel would have slept on this"

    def _effects(self) -> tuple[int, ...]:
        device = self.system.device
        sent = sum(map(len, self.front.sent.values()))
        return (
            device.epoch,
            sum(device._flights.values.values()),
            sent,
            len(self.system.sessions),
            len(self.system.tasks),
        )

    def until(self, condition: Any, turns: int = 20_000) -> None:
        """Turn until the condition holds."""
        for _ in range(turns):
            if condition():
                return
            self.turn()
        raise AssertionError(f"not reached in {turns} turns")

    def settle(self) -> None:
        """Turn until nothing runs, nothing is in flight and nothing is due."""
        device = self.system.device
        self.until(
            lambda: (
                not device.requests
                and device.idle
                and device.state is DeviceState.UP
                and not self.system.jobs
                and not self.system.errands.busy
            )
        )

    # --- what must be left ---------------------------------------------------------------------

    def check(self) -> None:
        """The invariants that hold at any moment between turns."""
        k = self.system
        for model in self.loaded:
            model.pool.check()
            users = [ctx for ctx in k.contexts() if ctx.model is model]
            assert model.num_contexts == len(users)
        k.grants.check(k.contexts())
        tables = Counter(block for ctx in self.tables() for block in ctx.blocks)
        for block, count in tables.items():
            assert block.refs == count, "refs are the tables that name the block"
        self._check_free_blocks_are_zero()
        shares = sum(at_once(task_row(k, task)).blocks for task in k.tasks)
        used = sum(model.pool.counts.used for model in self.loaded)
        assert k.graves or abs(shares - used) < 1e-6, "ps and the allocator agree"
        counters = k.counters
        live = sum(not request.background for request in k.device.requests)
        assert counters.admitted == counters.finished + counters.failed + live
        check_root(self)

    def tables(self) -> list[Context]:
        """Return all that names blocks: contexts, and those that no task has any more, or yet."""
        return [*self.system.contexts(), *self.system.floating, *self.system.graves]

    def _check_free_blocks_are_zero(self) -> None:
        """Now, not after what is queued: the driver's bytes are looked at directly."""
        driver: Any = self.link._driver
        if driver is None or self.system.device.state is not DeviceState.UP:
            return
        for model in self.loaded:
            memory = driver.models.get(model.number)
            for block in list(model.pool.free()) if memory else ():
                content = memory.pool[memory.block(block)]
                assert not any(content), f"free block {block} is not zero"

    def leave(self) -> None:
        """Every program dies; nothing may be left."""
        self.front.blocked.clear()
        self.front.dead.update(client.route for client in self.clients)
        self.turn()
        self.check_empty()

    def check_empty(self) -> None:
        """Nothing is left: no block, no task but init, no open call."""
        self.drop_cache()
        self.check()
        for model in self.loaded:
            counts = model.pool.counts
            assert (counts.used, counts.limbo) == (0, 0), counts
            assert counts.free == counts.total - counts.reserved
            self.check_zero(range(1, counts.total), model.number)
            assert model.pool.named == len(model.pool.index) == 0
            host = model.pool.host.counts
            assert host.free == host.total, host
        assert not self.system.floating
        self.check_window_is_zero()
        assert [task.pid for task in self.system.tasks] == [1]
        assert self.system.num_contexts == len(self.system.grants) == 0
        assert not self.system.again
        ports = self.system.ports
        assert not len(ports) and not len(self.system.topics) and not ports.bytes | ports.names

    def check_window_is_zero(self) -> None:
        """What went through the bulk window is not left in it."""
        busy = self.system.errands.busy or self.system.swap_file.lane.busy
        assert busy or not bytes(self.link._bulk).strip(b"\0"), "KV is left in the bulk window"

    def drop_cache(self) -> None:
        """Give up what is cached, and let it be zeroed."""
        self.settle()
        for model in self.loaded:
            cached = {*model.pool.resident(), *model.pool.host.blocks()}
            for owner in {block.owner for block in cached if block.refs == 0}:
                at_once(model.pool.drop_cached(owner))
            while model.pool.host.has_dirty:
                model.pool.host.flush()
        self.settle()

    def check_zero(self, blocks: Any, number: int = 0) -> None:
        """Free blocks hold nothing: the driver's checksums are those of zeros."""
        link = self.link
        device = self.system.device
        sums: set[str] = set()
        for first in range(0, len(blocks), 4096):
            values = device._flights.values
            value = values[base.Queue.COMPUTE] = values[base.Queue.COMPUTE] + 1
            op = base.Checksum(base.ints(blocks[first : first + 4096]))
            fence = device.epoch, base.Queue.COMPUTE, value
            link.send(base.Submit(*fence, (), number, (op,)))
            link.pump()
            complete = link.receive()
            assert isinstance(complete, base.Complete), complete
            sums.update(complete.results[0])
        assert len(sums) <= 1, "a free block holds something"
