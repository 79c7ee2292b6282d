"""What is said of an answer whose next word does not come."""

from types import SimpleNamespace
from typing import Any, cast

from syscalls import ECONNRESET, Task
from userland.waiting import Watch


class Device:
    """A kernel with one device, of which the state can be set."""

    def __init__(self) -> None:
        self.state, self.epoch, self.gone = "up", 1, False

    def models(self) -> list[Any]:
        return [SimpleNamespace(name="null", device="null0")]

    def devices(self) -> list[Any]:
        if self.gone:
            raise ECONNRESET("the kernel went away")
        return [SimpleNamespace(device="null0", state=self.state, epoch=self.epoch)]


def test_a_device_that_is_not_up_or_was_not_is_said_once() -> None:
    device, said = Device(), []
    watch = Watch(cast(Task, device), "null", said.append)
    watch.look()
    assert said == []  # it is slow, and that is all
    device.state = "loading"
    watch.look()
    watch.look()
    device.state, device.epoch = "up", 2
    watch.look()
    watch.look()
    assert said == [
        "null0 is loading; the answer waits for it",
        "the driver of null0 was restarted; computing again",
    ]
    device.gone = True
    watch.look()
    assert len(said) == 2
