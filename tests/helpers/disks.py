"""Disks for the store: in memory and knowing what was synced, failing, killing.

`MemoryFiles` keeps a log of what changed it; `crashes` gives every disk that a power cut may leave:
after each step, what was not synced is there, torn, or not there, each on its own. The system may
do less harm than that, never more: a write is durable by a sync of its file, a name by one of its
folder.
"""

import errno
import itertools
import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from random import Random
from typing import Any

from drivers.store.files import Files

Op = tuple[Any, ...]
GONE, TORN, THERE = range(3)
MOST_STATES = 1 << 12
"""Of one moment; beyond that a sample is taken."""


@dataclass
class MemoryFiles(Files):
    """A disk in memory."""

    folders: set[str] = field(default_factory=lambda: {"/"})
    names_of: dict[str, int] = field(default_factory=dict)  # path to inode
    inodes: dict[int, bytearray] = field(default_factory=dict)
    log: list[Op] = field(default_factory=list)
    room: int = 1 << 30

    def __post_init__(self) -> None:
        self._open: dict[int, int] = {}
        self._ids = itertools.count(1000 + len(self.log) + max(self.inodes, default=0))

    # --- operations ---------------------------------------------------------------------------

    def _do(self, *op: Any) -> None:
        self.log.append(op)
        self.apply(op, THERE)

    def apply(self, op: Op, how: int) -> None:
        """Change the disk as an operation does; a torn write does its first half."""
        match op:
            case ("mkdir", path):
                self.folders.add(path)
            case ("link", path, inode):
                self.names_of[path] = inode
                self.inodes.setdefault(inode, bytearray())
            case ("unlink", path):
                self.names_of.pop(path, None)
            case ("rename", old, new, inode):
                if self.names_of.get(old) == inode:
                    del self.names_of[old]
                self.names_of[new] = inode
                self.inodes.setdefault(inode, bytearray())
            case ("write", inode, offset, data):
                kept = data[: len(data) // 2] if how == TORN else data
                file = self.inodes.setdefault(inode, bytearray())
                file.extend(bytes(max(0, offset - len(file))))
                file[offset : offset + len(kept)] = kept

    def _inode(self, path: str) -> int:
        if path not in self.names_of:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.names_of[path]

    def _fd(self, inode: int) -> int:
        fd = next(self._ids)
        self._open[fd] = inode
        return fd

    @property
    def open_files(self) -> int:
        return len(self._open)

    def make_dir(self, path: str) -> None:
        self._do("mkdir", path)

    def names(self, path: str) -> list[str]:
        return sorted(
            PurePath(name).name for name in self.names_of if str(PurePath(name).parent) == path
        )

    def stat(self, path: str) -> os.stat_result:
        if path in self.folders:
            return _stat(stat.S_IFDIR | 0o700, 0)
        return _stat(stat.S_IFREG | 0o600, len(self.inodes[self._inode(path)]))

    def fstat(self, fd: int) -> os.stat_result:
        return _stat(stat.S_IFREG | 0o600, len(self.inodes[self._open[fd]]))

    def create(self, path: str) -> int:
        if path in self.names_of:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        inode = next(self._ids)
        self._do("link", path, inode)
        return self._fd(inode)

    def create_unnamed(self, folder: str) -> int:
        inode = next(self._ids)
        self.inodes[inode] = bytearray()
        return self._fd(inode)

    def open(self, path: str) -> int:
        return self._fd(self._inode(path))

    def close(self, fd: int) -> None:
        del self._open[fd]

    def pread(self, fd: int, buffer: Any, offset: int) -> int:
        data = self.inodes[self._open[fd]][offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        self._do("write", self._open[fd], offset, bytes(data))
        return len(data)

    def allocate(self, fd: int, size: int) -> None:
        if size > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inode = self._open[fd]
        self._do("write", inode, len(self.inodes[inode]), bytes(size - len(self.inodes[inode])))

    def zero(self, fd: int, offset: int, size: int) -> None:
        self._do("write", self._open[fd], offset, bytes(size))

    def start_writing(self, fd: int, offset: int, size: int) -> None:
        pass

    def sync(self, fd: int) -> None:
        self.log.append(("sync", self._open[fd]))

    def sync_dir(self, path: str) -> None:
        self.log.append(("sync_dir", path))

    def rename(self, old: str, new: str) -> None:
        self._do("rename", old, new, self._inode(old))

    def unlink(self, path: str) -> None:
        self._inode(path)
        self._do("unlink", path)

    def free_bytes(self, path: str) -> int:
        return self.room

    # --- crashes ------------------------------------------------------------------------------

    def copy(self) -> "MemoryFiles":
        """Return the disk as it is now, all of it durable, with an empty log."""
        named = set(self.names_of.values())
        kept = {inode: bytearray(data) for inode, data in self.inodes.items() if inode in named}
        return MemoryFiles(set(self.folders), dict(self.names_of), kept)

    def replayed(self, log: list[Op]) -> "MemoryFiles":
        """Return this disk as a process leaves it that is killed after these operations."""
        disk = self.copy()
        for op in log:
            disk.apply(op, THERE)
        return MemoryFiles(disk.folders, disk.names_of, disk.inodes, list(log))

    def visible(self) -> tuple[Any, ...]:
        """Return what tells two disks apart."""
        files = sorted((path, bytes(self.inodes[i])) for path, i in self.names_of.items())
        return tuple(sorted(self.folders)), tuple(files)


def crashes(
    before: MemoryFiles, log: list[Op], random: Random, most: int = MOST_STATES, first: int = 0
) -> Iterator[tuple[int, MemoryFiles]]:
    """Yield the disks that a power cut may leave, each with how many operations came before it.

    `before` is the disk when the log began, `first` the first moment. No disk comes twice for the
    same moment.
    """
    for count in range(first, len(log) + 1):
        done = log[:count]
        loose = [place for place in range(count) if not _durable(done, place)]
        seen = set()
        for fates in _fates([_choices(done[place]) for place in loose], random, most):
            disk = before.copy()
            fate = dict(zip(loose, fates, strict=True))
            for place, op in enumerate(done):
                how = fate.get(place, THERE)
                if how != GONE:
                    disk.apply(op, how)
            if (key := disk.visible()) not in seen:
                seen.add(key)
                yield count, disk.copy()


def _choices(op: Op) -> tuple[int, ...]:
    if op[0].startswith("sync"):
        return (THERE,)
    return (GONE, TORN, THERE) if op[0] == "write" else (GONE, THERE)


def _fates(choices: list[tuple[int, ...]], random: Random, most: int) -> Iterator[tuple[int, ...]]:
    total = 1
    for options in choices:
        total *= len(options)
    if total <= most:
        yield from itertools.product(*choices)
        return
    yield tuple(options[0] for options in choices)
    for _ in range(most - 1):
        yield tuple(random.choice(options) for options in choices)


def _durable(log: list[Op], place: int) -> bool:
    op, later = log[place], log[place + 1 :]
    match op:
        case ("write", inode, *_):
            return ("sync", inode) in later
        case ("link" | "unlink" | "mkdir" | "rename", path, *_):
            return ("sync_dir", str(PurePath(path).parent)) in later
    return True


def _stat(mode: int, size: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, os.geteuid(), os.getegid(), size, 0, 0, 0))


# --- disks that fail ------------------------------------------------------------------------------

OPERATIONS = (
    "make_dir", "names", "stat", "fstat", "create", "create_unnamed", "open", "close", "pread",
    "pwrite", "allocate", "zero", "start_writing", "sync", "sync_dir", "rename", "unlink",
    "free_bytes",
)  # fmt: skip
CHANGING = (
    "make_dir", "create", "create_unnamed", "pwrite", "allocate", "zero", "sync", "sync_dir",
    "rename", "unlink",
)  # fmt: skip


class Stepped(Files):
    """Another disk, with something to be done before each operation."""

    def __init__(self, inner: Files, operations: tuple[str, ...] = OPERATIONS) -> None:
        self.inner = inner
        self.count = 0
        for name in OPERATIONS:
            wrap = self._stepping if name in operations else self._plain
            setattr(self, name, wrap(name))

    def _plain(self, name: str) -> Any:
        return getattr(self.inner, name)

    def _stepping(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.count += 1
            return self.step(name, args)

        return call

    def step(self, name: str, args: tuple[Any, ...]) -> Any:
        """Do the operation, or something else."""
        return getattr(self.inner, name)(*args)


class FailingFiles(Stepped):
    """Fails operation number `at`, counted from 1, once or from then on.

    `code` is an errno, or "short": a write then takes half of what it is given, and the next one
    finds no space. What is closed is closed all the same.
    """

    def __init__(self, inner: Files, at: int, code: int | str, forever: bool) -> None:
        super().__init__(inner)
        self._at = at
        self._code = code
        self._forever = forever

    @property
    def hit(self) -> bool:
        return self.count >= self._at

    def step(self, name: str, args: tuple[Any, ...]) -> Any:
        failing = self.count == self._at or (self._forever and self.count > self._at)
        if not failing:
            return super().step(name, args)
        if self._code == "short":
            if name == "pwrite" and self.count == self._at and len(args[1]) > 1:
                fd, data, offset = args
                return self.inner.pwrite(fd, memoryview(data)[: len(data) // 2], offset)
            code = errno.ENOSPC
        else:
            code = int(self._code)
        if name == "close":
            self.inner.close(*args)
        raise OSError(code, os.strerror(code))


class KillingFiles(Stepped):
    """Kills the process before the operation number `at` that changes the disk."""

    def __init__(self, at: int) -> None:
        super().__init__(Files(), CHANGING)
        self._at = at

    def step(self, name: str, args: tuple[Any, ...]) -> Any:
        if self.count == self._at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(name, args)
