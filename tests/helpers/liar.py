"""A null driver whose answers are changed on their way to the kernel."""

from collections.abc import Callable
from typing import Any

import msgpack

from drivers import wire
from kernel.loopback import LoopbackLink

Lie = Callable[[Any], list[Any]]
"""From a true answer to what is said instead: messages, or raw bytes."""


def takes_lies(message: Any, kind: Any) -> bool:
    """Of the Completes, those that have something to lie about."""
    return isinstance(message, kind) and getattr(message, "results", True)


class LyingLink(LoopbackLink):
    """Tells `lie` instead of the next answers of the kind that it takes, `times` times."""

    def __init__(self, kind: Any, lie: Lie, times: int = 1, after: int = 0) -> None:
        super().__init__("null0")
        self.kind = kind
        self.lie = lie
        self.times = times
        self.after = after  # that many answers of the kind are true first

    def _emit(self, message: Any) -> None:
        said = [message]
        if takes_lies(message, self.kind):
            self.after -= 1
            if self.after < 0 and self.times > 0:
                self.times -= 1
                said = self.lie(message)
        for item in said:
            self.outbox.append(item if isinstance(item, bytes) else wire.encode(item))


def raw(number: Any, *fields: Any) -> bytes:
    """Return a message as it would be packed, whatever it is."""
    packed: bytes = msgpack.packb([number, *fields], use_bin_type=True)
    return packed


def number_of(message: Any) -> int:
    return int(msgpack.unpackb(wire.encode(message))[0])


def retyped(message: Any, field: str, value: Any) -> bytes:
    """Return the message with one field of another type."""
    fields = list(msgpack.unpackb(wire.encode(message)))
    fields[1 + message._fields.index(field)] = value
    return raw(*fields)
