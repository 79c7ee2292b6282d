"""Store: takes the kernel's messages, gives the answers. The host around it has the process.

One object for both lanes, each of which is one thread at a time; what both use is the windows and
the counters of `stats`.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import psutil

from drivers.process import sendable
from drivers.store import base, wire
from drivers.store.base import ABI, MAX_BLOCKS, Emit, FaultKind, SaveState, StoreFault, invalid
from drivers.store.catalogue import CATALOGUE
from drivers.store.faults import disk_errors
from drivers.store.files import Files
from drivers.store.folders import own_folder
from drivers.store.keyring import KEYRING, Keyring
from drivers.store.keys import ROOT_KEY, find_root, lost, make_root
from drivers.store.savefile import SUFFIX
from drivers.store.saves import Saves
from drivers.store.swap import Swap
from drivers.store.windows import Windows

MAX_NOTES = 16
JOB = (
    base.BeginSave, base.AddIds, base.AddBlocks, base.CommitSave, base.AbortSave,
    base.OpenSave, base.ReadIds, base.ReadBlocks, base.CloseSave,
)  # fmt: skip
"""Messages whose Fault ends a job."""


class Store:
    """The swap file and the saves of one state directory."""

    def __init__(
        self,
        emit: Emit,
        windows: Sequence[int],
        files: Files | None = None,
        credentials: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open nothing. `windows` are descriptors; `credentials` is systemd's folder of them."""
        self._emit = emit
        self._windows = Windows(windows)
        self._files = files or Files()
        self._credentials = credentials
        self._clock = clock
        self._swap: Swap | None = None
        self._saves: Saves | None = None
        self._opened = False

    def handle(self, message: Any) -> None:
        """Work on one message and emit its answer. What is no message of the kernel: BadMessage."""
        try:
            answer = self._answer(message)
        except StoreFault as fault:
            if self._saves and isinstance(message, JOB) and fault.kind != FaultKind.NO_JOB:
                self._saves.end(message.job)
            job = getattr(message, "job", 0)
            answer = base.Fault(
                job, fault.kind, _sendable(fault.message), _sendable(fault.hint), fault.needed,
                fault.available,
            )  # fmt: skip
        self._emit(answer)
        if self._saves and isinstance(message, base.CommitSave | base.DropSave):
            self._saves.clean()

    def _answer(self, message: Any) -> Any:
        if isinstance(message, base.Open):
            return self.open(message)
        if not self._opened:
            raise invalid(f"{type(message).__name__} before Open")
        if isinstance(message, base.Stats):
            return self._stats(message.job)
        if isinstance(message, base.SWAP_LANE):
            return self._swapped(message)
        return self._saved(message)

    def close(self, crashed: bool = False) -> None:
        """End all jobs and give the swap file back; `crashed`: as if the process were killed."""
        self._opened = False
        if self._saves:
            self._saves.close(crashed)
        if self._swap:
            self._swap.close()
        self._saves = self._swap = None

    # --- open ---------------------------------------------------------------------------------

    def open(self, message: base.Open) -> base.Opened:
        """Open the state directory; a Fault leaves nothing open."""
        if self._opened:
            raise invalid("the store is open")
        if message.major != ABI[0] or message.schema != wire.schema():
            what = f"the kernel speaks the store ABI {message.major}.{message.minor}"
            raise StoreFault(FaultKind.UNSUPPORTED, f"{what}, this host {ABI[0]}.{ABI[1]}")
        try:
            return self._open(message)
        except StoreFault:
            self.close()
            raise

    def _open(self, message: base.Open) -> base.Opened:
        state_dir = message.state_dir
        notes: list[str] = []
        if state_dir:
            own_folder(self._files, state_dir)
            if message.keys_dir:
                self._saves, notes = self._open_saves(state_dir, message.keys_dir)
            if message.swap_bytes:
                self._swap = Swap(self._files, self._windows, state_dir, message.swap_bytes)
        self._opened = True
        saves = self._saves
        return base.Opened(
            *ABI, wire.schema(), message.epoch, os.getpid(),
            message.swap_bytes if self._swap else 0,
            saves.count(SaveState.CURRENT) if saves else 0,
            saves.count(SaveState.STALE) if saves else 0,
            saves.num_damaged if saves else 0,
            saves.file_bytes if saves else 0,
            _few(notes),
        )  # fmt: skip

    def _open_saves(self, state_dir: str, keys_dir: str) -> tuple[Saves, list[str]]:
        if PurePath(keys_dir).is_relative_to(state_dir):
            what = f"the keys {keys_dir} would lie with what they lock"
            raise StoreFault(FaultKind.UNSAFE, what, f"name a folder outside of {state_dir}")
        folder = f"{state_dir}/saves"
        for path in (folder, keys_dir):
            own_folder(self._files, path)
        keyring, notes = self._open_keys(state_dir, keys_dir)
        saves = Saves(self._files, self._windows, folder, keyring, self._clock)
        return saves, notes + saves.notes

    def _open_keys(self, state_dir: str, keys_dir: str) -> tuple[Keyring, list[str]]:
        """Return the keyring; make the keys only where nothing is kept that needs others."""
        with disk_errors(f"use {keys_dir}"):
            for name in (ROOT_KEY, KEYRING):
                self._files.remove(f"{keys_dir}/{name}.tmp")  # of a process that was killed
        root = find_root(self._files, keys_dir, self._credentials)
        ring = Keyring.exists(self._files, keys_dir)
        with disk_errors(f"read {state_dir}/saves"):
            names = self._files.names(f"{state_dir}/saves")
        kept = any(name.endswith(SUFFIX) or name == CATALOGUE for name in names)
        notes = []
        if root is None:
            if ring or kept:
                raise lost(f"there is no root key {keys_dir}/{ROOT_KEY}", keys_dir, state_dir)
            root = make_root(self._files, keys_dir)
            notes.append(f"a root key was made, {root.path}: llmos key backup FILE keeps a copy")
        if ring:
            keyring = Keyring.load(self._files, keys_dir, root, state_dir)
            with disk_errors(f"be sure of {keys_dir}"):
                # What a killed process has renamed is there; now it also stays.
                self._files.sync_dir(keys_dir)
            return keyring, notes
        if kept:
            raise lost(f"there is no {keys_dir}/{KEYRING}", keys_dir, state_dir)
        return Keyring.make(self._files, keys_dir, root), notes

    # --- lanes --------------------------------------------------------------------------------

    def _swapped(self, message: Any) -> Any:
        if self._swap is None:
            raise StoreFault(FaultKind.UNSUPPORTED, "the store was opened without a swap file")
        match message:
            case base.SwapOut(job, area, window, blocks):
                return base.Blocks(job, *self._swap.out(area, window, blocks))
            case base.SwapIn(job, area, window, blocks):
                return base.Blocks(job, *self._swap.back(area, window, blocks))
            case base.FreeSlots(job, area, slots):
                self._swap.free(area, slots)
                return base.Done(job)

    def _saved(self, message: Any) -> Any:
        saves = self._saves
        if saves is None:
            raise StoreFault(FaultKind.UNSUPPORTED, "the store was opened without saves")
        if isinstance(message, base.AddBlocks | base.ReadBlocks):
            count = len(message.offsets)
            if not 0 < count <= MAX_BLOCKS:
                raise invalid(f"{count} blocks, a message has 1 to {MAX_BLOCKS}")
        match message:
            case base.BeginSave():
                saves.begin(message)
            case base.AddIds():
                saves.add_ids(message)
            case base.AddBlocks():
                saves.add_blocks(message)
            case base.CommitSave():
                return saves.commit(message)
            case base.AbortSave():
                saves.abort(message)
            case base.OpenSave():
                return saves.open(message)
            case base.ReadIds():
                return saves.read_ids(message)
            case base.ReadBlocks():
                return saves.read_blocks(message)
            case base.CloseSave():
                saves.close_job(message)
            case base.ListSaves():
                return saves.listed(message)
            case base.DropSave():
                saves.drop(message)
            case _:
                raise wire.BadMessage(f"{type(message).__name__} goes to the kernel")
        return base.Done(message.job)

    def _stats(self, job: int) -> base.StatsReply:
        swap, saves = self._swap, self._saves
        return base.StatsReply(
            job, psutil.Process().memory_info().rss,
            swap.num_slots if swap else 0,
            swap.out_bytes if swap else 0,
            swap.in_bytes if swap else 0,
            saves.count(SaveState.CURRENT) if saves else 0,
            saves.file_bytes if saves else 0,
        )  # fmt: skip


def _few(notes: list[str]) -> tuple[str, ...]:
    """Return as many notes as a message takes, and how many more there are."""
    if len(notes) > MAX_NOTES:
        notes = [*notes[: MAX_NOTES - 1], f"and {len(notes) - MAX_NOTES + 1} more"]
    return tuple(map(_sendable, notes))


def _sendable(story: str) -> str:
    return sendable(story, wire.MAX_TEXT)
