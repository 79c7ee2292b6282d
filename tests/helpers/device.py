"""Device: a driver with a loaded model, driven by hand as the conformance suite does it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from drivers import base, wire
from drivers.base import ints
from tests.helpers.plans import Drawn, Part, drawn, step_ops
from tests.helpers.rig import HostProcess, Loopback, Rig

NUM_BLOCKS = 64
BLOCK_SIZE = 16
MAX_CTX = 256
EPOCH = 3


@dataclass(frozen=True)
class Bench:
    """A driver under test.

    `model` makes what Load.path names, in the folder it gets, and returns that path. Equal plans
    must give equal ids always, and logprobs that differ by at most `tolerance`.
    """

    name: str
    device: str
    model: Callable[[Path], str]
    dtype: str = "float32"
    tolerance: float = 0.0
    faults_on_unwritten: bool = False  # reading a slot that was never written is PLAN_INVALID
    host_blocks: int = 0  # of a host tier of its own; 0: there is none
    kv_dtype: str = ""  # of KV, if it is another one


def hello(epoch: int = EPOCH, device: str = "null0") -> base.Hello:
    """Return the right greeting."""
    return base.Hello(*base.ABI, wire.schema(), epoch, device)


def load_of(bench: Bench, path: str, **fields: Any) -> base.Load:
    """Return the Load that the suite uses."""
    load = base.Load(
        0, path, bench.dtype, BLOCK_SIZE, NUM_BLOCKS, 0, MAX_CTX, True, 1, bench.host_blocks
    )
    return load._replace(**{"kv_dtype": bench.kv_dtype, **fields})


def open_rig(bench: Bench, transport: str, host: int = -1) -> Rig:
    """Return a driver that was not greeted yet; `host` is the host memory."""
    kind = HostProcess if transport == "host" else Loopback
    return kind(bench.device, host=host)


class Device:
    """A driver whose answers are checked: one per Submit, fences in order."""

    def __init__(self, rig: Rig, bench: Bench, path: str, **load: Any) -> None:
        self.rig = rig
        self.bench = bench
        rig.send(hello(device=bench.device))
        self.ready = self._receive(base.Ready)
        rig.send(load_of(bench, path, **load))
        self.estimate = self._receive(base.Estimate)
        self.loaded: base.Loaded = self._receive(base.Loaded)
        self.block_size = self.loaded.block_size
        self._values = dict.fromkeys(base.Queue, 0)
        self.renew()

    def renew(self) -> None:
        """Make it as good as new: every block zero, all of them free."""
        # From the middle out and backwards: a table is never the identity by accident.
        self._free = list(range(1, self.loaded.num_blocks))
        Random(5).shuffle(self._free)
        self.submit(base.Scrub(ints(range(self.loaded.num_blocks))))

    def take(self, count: int) -> list[int]:
        """Return blocks that nobody uses."""
        taken, self._free = self._free[:count], self._free[count:]
        assert len(taken) == count, "the suite's pool is too small"
        return taken

    def blocks_for(self, length: int) -> list[int]:
        """Return blocks for a sequence of `length`."""
        return self.take(-(-length // self.block_size))

    def prompt(self, length: int, seed: int = 1) -> list[int]:
        """Return ids."""
        random = Random(seed)
        return [random.randrange(self.loaded.vocab) for _ in range(length)]

    # --- messages -----------------------------------------------------------------------------

    def _receive(self, kind: type[Any]) -> Any:
        while True:
            message = self.rig.receive()
            if not isinstance(message, base.Progress):
                assert isinstance(message, kind), message
                return message

    def next_submit(
        self,
        *ops: Any,
        queue: base.Queue = base.Queue.COMPUTE,
        waits: Sequence[base.Fence] = (),
    ) -> base.Submit:
        """Return the next Submit of a queue; it counts as sent."""
        self._values[queue] += 1
        return base.Submit(EPOCH, queue, self._values[queue], tuple(waits), 0, ops)

    def answer(self, submit: base.Submit) -> Any:
        """Send a Submit and return its answer, Complete or Fault."""
        self.rig.send(submit)
        message = self.rig.receive()
        assert isinstance(message, base.Complete | base.Fault), message
        assert message[:3] == (submit.epoch, submit.queue, submit.value)
        return message

    def submit(self, *ops: Any, queue: base.Queue = base.Queue.COMPUTE) -> base.Complete:
        """Run ops; they must succeed."""
        complete = self.answer(self.next_submit(*ops, queue=queue))
        assert isinstance(complete, base.Complete), complete
        assert complete.start_us <= complete.end_us
        return complete

    def refuse(self, *ops: Any, queue: base.Queue = base.Queue.COMPUTE) -> base.Fault:
        """Run ops that must fault."""
        fault = self.answer(self.next_submit(*ops, queue=queue))
        assert isinstance(fault, base.Fault), fault
        assert fault.message
        return fault

    def stats(self) -> base.StatsReply:
        self.rig.send(base.Stats())
        reply: base.StatsReply = self._receive(base.StatsReply)
        return reply

    # --- work ---------------------------------------------------------------------------------

    def checksums(self, blocks: Sequence[int] | None = None) -> list[str]:
        """Return the checksums of blocks; of all real ones if none are named."""
        named = range(1, self.loaded.num_blocks) if blocks is None else blocks
        (result,) = self.submit(base.Checksum(ints(named))).results
        assert len(result) == len(named)
        return list(result)

    def copy(self, src: Sequence[int], dst: Sequence[int]) -> None:
        """Copy blocks on the device."""
        self.submit(base.Copy(base.Direction.D2D, ints(src), ints(dst)))

    def step(self, *parts: Part) -> list[Drawn]:
        """Run one step; return the drawn ids of the parts that draw."""
        results = self.submit(*step_ops(parts, self.block_size)).results
        return drawn(results[0], parts) if results else []

    def prefill(self, ids: Sequence[int], blocks: Sequence[int], chunk: int = 0) -> Drawn:
        """Compute a whole sequence, alone, in chunks; return the greedy id after it."""
        chunk = chunk or len(ids)
        for start in range(0, len(ids), chunk):
            tokens = ids[start : start + chunk]
            last = start + len(tokens) == len(ids)
            result = self.step(Part(tokens, start, blocks, draws=last))
        return result[0]

    def decode(
        self, first: Drawn, length: int, blocks: Sequence[int], count: int, **how: Any
    ) -> list[Drawn]:
        """Continue a sequence of `length` by `count` ids, `first` being the one drawn last."""
        out = [first]
        while len(out) < count:
            out += self.step(Part([out[-1].id], length + len(out) - 1, blocks, **how))
        return out

    def generate(
        self, ids: Sequence[int], count: int, blocks: Sequence[int] | None = None, chunk: int = 0
    ) -> list[Drawn]:
        """Return `count` greedy ids after `ids`, computed alone."""
        blocks = self.blocks_for(len(ids) + count) if blocks is None else blocks
        return self.decode(self.prefill(ids, blocks, chunk), len(ids), blocks, count)

    def same(self, one: Sequence[Drawn], other: Sequence[Drawn]) -> bool:
        """Whether two runs drew the same."""
        return len(one) == len(other) and all(
            a.id == b.id and abs(a.logprob - b.logprob) <= self.bench.tolerance
            for a, b in zip(one, other, strict=True)
        )
