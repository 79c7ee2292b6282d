"""Sleeper: how a real kernel waits, for whatever comes first."""

import os
import selectors

from kernel.device import Device, DeviceState


class Sleeper:
    """Sleeps on the front, the driver and a wake-up pipe for signals."""

    def __init__(self, device: Device, front_fd: int, wakeup_fd: int) -> None:
        self._device = device
        self._selector = selectors.EpollSelector()
        self._selector.register(front_fd, selectors.EVENT_READ)
        self._selector.register(wakeup_fd, selectors.EVENT_READ)
        self._wakeup_fd = wakeup_fd
        self._link_fd: int | None = None
        self._epoch = 0

    def __call__(self, timeout: float | None) -> None:
        self._follow_link()
        for key, _ in self._selector.select(timeout):
            if key.fd == self._wakeup_fd:
                os.read(self._wakeup_fd, 64)

    def _follow_link(self) -> None:
        """Watch the driver's socket of the present epoch."""
        if self._device.epoch == self._epoch and self._device.state is not DeviceState.FAILED:
            return
        if self._link_fd is not None:
            try:
                self._selector.unregister(self._link_fd)
            except (KeyError, ValueError):
                pass
        self._link_fd = self._device.link.fileno()
        if self._link_fd is not None:
            self._selector.register(self._link_fd, selectors.EVENT_READ)
        self._epoch = self._device.epoch
