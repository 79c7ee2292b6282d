"""Sleeper: how a real kernel waits, for whatever comes first."""

import os
import selectors

from kernel.device import Device
from kernel.storehost import StoreHost


class Sleeper:
    """Sleeps on the front, the driver, the store and a wake-up pipe for signals."""

    def __init__(self, device: Device, store: StoreHost, front_fd: int, wakeup_fd: int) -> None:
        self._device = device
        self._store = store
        self._selector = selectors.EpollSelector()
        self._selector.register(front_fd, selectors.EVENT_READ)
        self._selector.register(wakeup_fd, selectors.EVENT_READ)
        self._wakeup_fd = wakeup_fd
        self._fds: dict[str, int] = {}
        self._epochs: dict[str, int] = {}

    def __call__(self, timeout: float | None) -> None:
        self._follow("device", self._device.epoch, self._device.link.fileno())
        link = self._store.link
        if link is not None:
            self._follow("store", self._store.epoch, link.fileno())
        for key, _ in self._selector.select(timeout):
            if key.fd == self._wakeup_fd:
                os.read(self._wakeup_fd, 64)

    def _follow(self, name: str, epoch: int, fd: int | None) -> None:
        """Watch the socket of a process that may be another one by now."""
        if self._epochs.get(name) == epoch and fd == self._fds.get(name):
            return
        old = self._fds.pop(name, None)
        if old is not None:
            try:
                self._selector.unregister(old)
            except (KeyError, ValueError):
                pass
        if fd is not None:
            self._selector.register(fd, selectors.EVENT_READ)
            self._fds[name] = fd
        self._epochs[name] = epoch
