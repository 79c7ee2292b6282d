"""Loading: the model of a device that its driver is loading now, and how that ends.

One model is loaded at a time. It comes up, or it is refused: by its driver, by the kernel, or
because loading it has ended the driver too often. A refused model fails alone; one that a call
asked for is then as if it had never been, and the call gets the reason.
"""

import logging
from typing import NamedTuple

from drivers import base
from kernel.answer import Lie, Result
from kernel.model import Model, ModelState, ModelTable
from kernel.request import Request
from syscalls.errors import EIO, ENOMEM, ENOTSUP, KernelError

log = logging.getLogger("kernel.model")

MAX_NOTE = 1000
"""Characters kept of a reason in which a driver has its say."""
MAX_DEATHS = 2
"""Epochs that may end, one after the other, while the same model is being loaded."""
REFUSALS = {base.FaultKind.OOM: ENOMEM, base.FaultKind.UNSUPPORTED: ENOTSUP}
"""What a refused load is to whoever asked for it; otherwise EIO."""


class News(NamedTuple):
    """Of a model that is being loaded: how far it is, that it is up (None), or why it is not."""

    model: Model
    what: base.Progress | KernelError | None


Outcome = tuple[Request, Result]
"""What a step gave a request."""


class Loading:
    """What a device's driver is loading."""

    def __init__(self, models: ModelTable, device: str) -> None:
        self._models = models
        self._device = device
        self.model: Model | None = None

    def begin(self) -> base.Load | None:
        """Take the next model that waits; return the message that loads it."""
        self.model = self._models.waiting()
        return None if self.model is None else self.model.load()

    def progress(self, message: base.Progress) -> list[Outcome | News]:
        """Return the news that a driver's message is; Lie if it is of another model."""
        if self.model is None:
            return []  # it was on its way when the loading ended
        self._of_this("progress", message.model, self.model)
        return [News(self.model, message)]

    def estimate(self, message: base.Estimate) -> None:
        """Log what the driver is about to take."""
        if self.model is not None:
            self._of_this("an estimate", message.model, self.model)
            log.info(
                "%s: about to take %s of %s that are free on %s",
                self.model.name, _sizes(message), mib(message.mem_free), self._device,
            )  # fmt: skip

    def _of_this(self, what: str, number: int, model: Model) -> None:
        if number != model.number:
            raise Lie(f"told {what} of model {number}, it loads {model.number}")

    def current(self, said: str) -> Model:
        """Return the model that the driver loads; Lie if it loads none."""
        if self.model is None:
            raise Lie(said)
        return self.model

    def over(self) -> None:
        """Note that the driver has ended the loading."""
        self.model = None

    def up(self, model: Model, loaded: base.Loaded, epoch: int) -> list[Outcome | News]:
        """Say that a model serves."""
        log.info(
            "%s: up on %s in epoch %d after %.1f s, takes %s",
            model.name, self._device, epoch, loaded.load_us / 1e6, _sizes(loaded),
        )  # fmt: skip
        model.deaths = 0
        return [News(model, None)]

    def alone(self, model: Model) -> bool:
        """Whether the device has no other model, and this one was to be there from its start."""
        others = (other for other in self._models if other is not model and other.serves)
        return model.asked is None and not any(others)

    def refused(self, model: Model, why: str, error: type[KernelError]) -> list[Outcome | News]:
        """Go on without a model."""
        what = f"cannot load {model.name} on {self._device}: {why}"
        return self.fail(model, why, error(what))

    def blame(self, why: str) -> list[Outcome | News]:
        """Give up the model that is being loaded if that has ended the driver too often.

        Not one that the device has alone from its start: then restarts are what can help.
        """
        model, self.model = self.model, None
        if model is None or self.alone(model):
            return []
        model.deaths += 1
        if model.deaths < MAX_DEATHS:
            return []
        story = f"device {self._device} ended {model.deaths} times while loading {model.name}"
        return self.fail(model, why, EIO(f"{story}; the last time: {why}"))

    def fail(self, model: Model, why: str, told: KernelError) -> list[Outcome | News]:
        """End a model; nobody sees one again that a call asked for."""
        ended = model.end(ModelState.FAILED, why)
        if model.asked is not None:
            self._models.remove(model)
        return [News(model, told), *((request, model.unavailable()) for request in ended)]


def mib(size: int) -> str:
    """Bytes as a log says them."""
    return f"{size / 2**20:,.1f} MiB"


def _sizes(of: base.Estimate | base.Loaded) -> str:
    pool = f"{of.num_blocks:,} KV blocks of {of.block_bytes:,} bytes"
    return f"{mib(of.weights_bytes)} of weights and {mib(of.num_blocks * of.block_bytes)} ({pool})"
