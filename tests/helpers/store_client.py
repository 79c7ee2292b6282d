"""A kernel for the store: sends its messages and checks their answers, through either link."""

import mmap
import os
import select
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from drivers.store import base, wire
from drivers.store.base import BlockState, FaultKind, SaveState
from drivers.store.files import Files
from drivers.store.store import Store
from kernel.store import LoopbackStore, StoreLink

BLOCK_SIZE = 4
BLOCK_BYTES = 96
WINDOW_BYTES = 1 << 16
OWNER = os.geteuid()
STATE, KEYS = "/state", "/keys"
"""Folders on a disk in memory."""
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Content:
    """What a save holds."""

    ids: tuple[int, ...]
    blocks: tuple[bytes, ...]
    extra: bytes = b"extra"

    @property
    def meta(self) -> base.SaveMeta:
        layout = (1, 2, BLOCK_SIZE, 1, 12)
        return base.SaveMeta(
            "smollm2:135m", b"\x17" * 32, "bfloat16", layout, BLOCK_SIZE, BLOCK_BYTES,
            len(self.ids), len(self.blocks), self.extra,
        )  # fmt: skip


def content(seed: int, num_blocks: int = 2, length: int | None = None) -> Content:
    """Return what no other seed gives."""
    random = Random(seed)
    length = num_blocks * BLOCK_SIZE + 3 if length is None else length
    ids = tuple(random.randrange(49152) for _ in range(length))
    return Content(ids, tuple(random.randbytes(BLOCK_BYTES) for _ in range(num_blocks)))


@dataclass(frozen=True)
class Loaded:
    """A save as it was read."""

    state: SaveState
    generation: int
    ids: tuple[int, ...]
    states: bytes
    blocks: tuple[bytes, ...]
    extra: bytes

    @property
    def content(self) -> Content:
        return Content(self.ids, self.blocks, self.extra)

    @property
    def whole(self) -> bool:
        return not any(self.states)


class Window:
    """Memory that the store shares."""

    def __init__(self, size: int = WINDOW_BYTES) -> None:
        self.fd = os.memfd_create("window", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.bytes = mmap.mmap(self.fd, size)

    def put(self, offset: int, data: bytes) -> None:
        self.bytes[offset : offset + len(data)] = data

    def take(self, offset: int, size: int = BLOCK_BYTES) -> bytes:
        return self.bytes[offset : offset + size]

    def close(self) -> None:
        self.bytes.close()
        os.close(self.fd)


class Refused(Exception):
    """The store answered with a Fault."""

    def __init__(self, fault: base.Fault) -> None:
        super().__init__(f"{FaultKind(fault.kind).name}: {fault.message}")
        self.fault = fault
        self.kind = FaultKind(fault.kind)


class Client:
    """A store that was started, from the kernel's side."""

    def __init__(self, link: Any, window: Window) -> None:
        self.link = link
        self.window = window
        self._job = 0
        link.start()

    def ask(self, message: Any) -> Any:
        """Return the answer, or raise the Fault."""
        self.link.send(message)
        answer = self.answer()
        if isinstance(answer, base.Fault):
            assert answer.job == getattr(message, "job", 0) and answer.message
            raise Refused(answer)
        return answer

    def answer(self, timeout_s: float = PATIENCE_S) -> Any:
        """Return the next message but heartbeats; LinkDown at the end."""
        end = time.monotonic() + timeout_s
        while True:
            if isinstance(self.link, LoopbackStore):
                self.link.pump()
            elif not select.select([self.link.fileno()], [], [], end - time.monotonic())[0]:
                raise TimeoutError
            answer = self.link.receive()
            if not isinstance(answer, base.Heartbeat):
                return answer

    def job(self) -> int:
        self._job += 1
        return self._job

    def open(self, state: str = STATE, keys: str = KEYS, swap_bytes: int = 0) -> base.Opened:
        message = base.Open(*base.ABI, wire.schema(), 1, state, keys, swap_bytes)
        opened: base.Opened = self.ask(message)
        return opened

    # --- saves --------------------------------------------------------------------------------

    def begin(self, name: str, what: Content, owner: int = OWNER) -> int:
        """Write all of a save but its commit; return the job."""
        job = self.job()
        self.ask(base.BeginSave(job, owner, name, what.meta))
        self.ask(base.AddIds(job, 0, array("i", what.ids).tobytes()))
        for number, block in enumerate(what.blocks):
            self.window.put(number * BLOCK_BYTES, block)
        if what.blocks:
            offsets = tuple(n * BLOCK_BYTES for n in range(len(what.blocks)))
            self.ask(base.AddBlocks(job, 0, 0, offsets))
        return job

    def commit(self, job: int) -> base.Saved:
        saved: base.Saved = self.ask(base.CommitSave(job))
        return saved

    def save(self, name: str, what: Content, owner: int = OWNER) -> base.Saved:
        return self.commit(self.begin(name, what, owner))

    def load(self, name: str, owner: int = OWNER, generation: int = 0) -> Loaded:
        """Read all of a save; what is not OK of its blocks must have left the window alone."""
        job = self.job()
        found: base.Found = self.ask(base.OpenSave(job, owner, name, generation))
        raw = self.ask(base.ReadIds(job, 0, found.meta.length)).ids
        count = found.meta.num_blocks
        offsets = tuple(n * BLOCK_BYTES for n in range(count))
        canary = b"\xa5" * (count * BLOCK_BYTES)
        self.window.put(0, canary)
        states = self.ask(base.ReadBlocks(job, 0, 0, offsets)).states if count else b""
        blocks = tuple(self.window.take(offset) for offset in offsets)
        for state, block in zip(states, blocks, strict=True):
            assert state == BlockState.OK or block == canary[:BLOCK_BYTES]
        self.ask(base.CloseSave(job))
        ids = tuple(array("i", raw))
        state = SaveState(found.state)
        return Loaded(state, found.generation, ids, states, blocks, found.meta.extra)

    def drop(self, name: str, owner: int = OWNER) -> None:
        self.ask(base.DropSave(self.job(), owner, name))

    def rows(self, owner: int = OWNER) -> list[base.SaveRow]:
        """Return all saves of an owner, page by page."""
        rows: list[base.SaveRow] = []
        while True:
            page = self.ask(base.ListSaves(self.job(), owner, rows[-1].name if rows else ""))
            rows += page.rows
            if not page.more:
                return rows

    def stats(self) -> base.StatsReply:
        reply: base.StatsReply = self.ask(base.Stats(self.job()))
        return reply


def loopback(
    files: Files, windows: Sequence[int], credentials: str = "", clock: Any = lambda: 1e9
) -> LoopbackStore:
    """Return a store in this process."""
    return LoopbackStore(lambda emit: Store(emit, windows, files, credentials, clock))


@contextmanager
def client(files: Files, window: Window | None = None, **how: Any) -> Iterator[Client]:
    """A store in this process, on any disk."""
    own = window or Window()
    found = Client(loopback(files, [own.fd], **how), own)
    try:
        yield found
    finally:
        found.link.kill()
        if window is None:
            own.close()


class Process(StoreLink):
    """A store host, started by a program other than its own if one is given."""

    def __init__(self, windows: Sequence[int], program: str = "", heartbeat_s: float = 1.0) -> None:
        super().__init__(windows)
        self.program = program
        self.heartbeat_s = heartbeat_s

    def _command(self) -> list[str]:
        command = super()._command()
        if self.program:
            command[1:3] = ["-c", self.program]
        return [*command, f"--heartbeat={self.heartbeat_s}"]


@contextmanager
def host(window: Window | None = None, **how: Any) -> Iterator[Client]:
    """A store in a process of its own."""
    own = window or Window()
    found = Client(Process([own.fd], **how), own)
    try:
        yield found
    finally:
        found.link.kill()
        if window is None:
            own.close()


def files_below(folder: Path) -> dict[str, bytes]:
    """Return what lies in a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
