"""What is said of an answer whose next word does not come."""

from types import SimpleNamespace
from typing import Any, cast

from syscalls import ECONNRESET, Context, Task
from userland.waiting import READING, Watch


class Device:
    """A kernel with one device, of which the state can be set."""

    model = "null"

    def __init__(self) -> None:
        self.state, self.epoch, self.gone = "up", 1, False
        self.length = self.computed = 9

    def models(self) -> list[Any]:
        return [SimpleNamespace(name="null", device="null0")]

    def devices(self) -> list[Any]:
        if self.gone:
            raise ECONNRESET("the kernel went away")
        return [SimpleNamespace(device="null0", state=self.state, epoch=self.epoch)]

    def stat(self) -> Any:
        """As a context."""
        return SimpleNamespace(length=self.length, computed=self.computed)


def watching(device: Device, said: list[str]) -> Watch:
    return Watch(cast(Task, device), cast(Context, device), said.append)


def test_a_device_that_is_not_up_or_was_not_is_said_once() -> None:
    device, said = Device(), list[str]()
    watch = watching(device, said)
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


def test_a_long_prompt_is_told_at_once_and_then_now_and_then() -> None:
    device, said = Device(), list[str]()
    device.length = 4000
    watch = watching(device, said)
    for _ in range(READING + 1):
        device.computed += 512
        watch.look()
    device.computed = device.length - 1
    for _ in range(READING):
        watch.look()
    assert said == [
        "reading the prompt: 521 of 4,000 tokens", "reading the prompt: 3,081 of 4,000 tokens"
    ]  # fmt: skip
