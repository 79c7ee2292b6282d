"""Deaths: the driver of a scenario dies now and then, and nobody notices but by the time it takes.

Every id that comes is compared with the one that the ids before it call for, so none is changed,
lost, or there twice. While the driver is started again and loads, nobody is served; what that may
take is known, and the bound of the waits is of the time beside it. An infer is given up with EIO
after it was in flight in three deaths, and not before.
"""

from math import log2
from random import Random

from drivers.null_model import SLOT, Draw, best_id, slot_digest, uniform
from kernel.device import Limits
from syscalls.errors import Errno
from tests.helpers.batches import Batches
from tests.helpers.streams import Owned, Stream
from tests.helpers.world import World

BLANK = bytes(SLOT)
MOST = Limits._field_defaults["max_request_deaths"]


class Deaths:
    """The deaths of a world's driver."""

    def __init__(self, world: World, batches: Batches, random: Random, pause_s: float) -> None:
        self.world = world
        self.work = world.work
        self.random = random
        self.pause_s = pause_s
        self.count = 0
        self.given_up = 0  # infers
        self._spans: list[tuple[float, float]] = []  # without a driver
        self._since: float | None = None  # when the last one died, until there is another
        self._batches = batches
        self._strange = 0  # of sequences of which it is not known whose they were
        self._met: dict[int, int] = {}  # deaths that an infer was in flight in, by seed
        world.on_end.append(self._ended)
        self._next()

    def _next(self) -> None:
        self.work.after(self.random.uniform(0.0, 2 * self.pause_s), self._die)

    def _die(self) -> None:
        flying = self._batches.flying
        for seq in flying[0].seqs if flying else ():
            self._strange += seq.owned is None
            if seq.stream is not None and seq.lives:
                self._met[seq.stream.seed] = self._met.get(seq.stream.seed, 0) + 1
        self.count += 1
        if self._since is None:
            self._since = self.work.now
        self.work.link.die()
        self._next()

    def look(self) -> None:
        """After an event: see whether there is a driver again, and who is given up."""
        for seed, met in self._met.items():
            stream = self.world.streams.get(seed)
            deaf = stream is not None and stream.owned.program.deaf
            assert stream is None or met < MOST or deaf, f"an infer goes on after {met} deaths"
        if self._since is not None and not self.work.link.loading:
            self._spans.append((self._since, self.work.now))
            self._since = None

    def away(self, since: float) -> float:
        """Return for how long there was no driver since a time."""
        now = self.work.now
        away = 0.0 if self._since is None else now - max(since, self._since)
        for begin, end in reversed(self._spans):
            if end <= since:
                break
            away += end - max(since, begin)
        return away

    def _ended(self, stream: Stream) -> None:
        if stream.reply.errno == Errno.EIO:
            met = self._met.get(stream.seed, 0)
            assert met + self._strange >= MOST, (
                f"given up after {met} deaths: {stream.reply.message}"
            )
            self.given_up += 1


class Ids:
    """Says of each id whether it is the one that must come."""

    def __init__(self, world: World) -> None:
        self.vocab = world.vocab
        self.compared = 0
        self._history: dict[Owned, bytes] = {}
        world.on_ids.append(self._compare)

    def _compare(self, stream: Stream, ids: list[int]) -> None:
        owned = stream.owned
        for place, token in enumerate(ids, len(owned.ids) - len(ids)):
            right = self._id(owned, place, stream.seed)
            assert token == right, f"id {place} of {owned.program.name} is {token}, not {right}"
            self.compared += 1

    def _id(self, owned: Owned, place: int, seed: int) -> int:
        """Return the id that is sampled at a place, at temperature 1."""
        history = self._history.get(owned, b"")
        parts, last = [history], history[-SLOT:] or BLANK
        for position in range(len(history) // SLOT, place):
            last = slot_digest(owned.ids[position], position, last)
            parts.append(last)
        history = self._history[owned] = b"".join(parts)
        rest = 1 - uniform(history, Draw(1.0, seed, place)) * (1 - 2.0**-self.vocab)
        return (best_id(history, self.vocab) + int(-log2(rest))) % self.vocab
