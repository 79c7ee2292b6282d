"""Bytes between kernel and store host: what is no message is BadMessage, and nothing else."""

from random import Random
from typing import Any

import msgpack
import pytest

from drivers.store import base, wire
from tests.helpers import golden_store
from tests.helpers.golden_store import MESSAGES

WRONG: list[Any] = [None, True, 1.5, -1, 2**64 - 1, "x", b"x", [], [1], ["x"], [[]], {}, [None]]
NAMES = [type(message).__name__ for message in MESSAGES]
TO_KERNEL = NAMES[NAMES.index("Opened") :]


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_every_message_survives(message: Any) -> None:
    again = wire.decode(wire.encode(message))
    assert again == message and type(again) is type(message)


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_no_field_takes_another_type(message: Any) -> None:
    number, *fields = msgpack.unpackb(wire.encode(message))
    for place, kind in enumerate(type(message).__annotations__.values()):
        for wrong in WRONG:
            changed = [*fields[:place], wrong, *fields[place + 1 :]]
            try:
                read = wire.decode(msgpack.packb([number, *changed]))[place]
            except wire.BadMessage:
                continue
            assert type(read) is (kind if isinstance(kind, type) else tuple), (place, wrong)


def test_random_bytes_and_bent_messages() -> None:
    random = Random(5)
    read = 0
    for _ in range(5_000):
        raw = bytearray(wire.encode(random.choice(MESSAGES)))
        for _ in range(random.randint(1, 4)):
            raw[random.randrange(len(raw))] = random.getrandbits(8)
        if random.random() < 0.3:
            del raw[random.randrange(len(raw)) :]
        try:
            wire.decode(bytes(raw))
            read += 1
        except wire.BadMessage as error:
            assert len(str(error)) < 400
    assert 0 < read < 4_000


@pytest.mark.parametrize("number", [-1, len(MESSAGES), 99, True, 0.0, None, "Open", b"\0"])
def test_numbers_that_nothing_has(number: Any) -> None:
    with pytest.raises(wire.BadMessage):
        wire.decode(msgpack.packb([number]))


def test_sizes_are_looked_at_first() -> None:
    with pytest.raises(wire.BadMessage, match=str(wire.MAX_MESSAGE)):
        wire.decode(bytes(wire.MAX_MESSAGE + 1))
    long = "x" * (wire.MAX_TEXT + 1)
    with pytest.raises(wire.BadMessage):
        wire.decode(wire.encode(base.DropSave(1, 2, long)))


def test_the_largest_messages_fit() -> None:
    block = base.Block(2**62, 2**62, 2**62, bytes(base.MAX_HASH), 2**62)
    area = base.Area(2**62, 2**30, bytes(32), "x" * base.MAX_WORD, "x" * base.MAX_WORD)
    messages = (
        base.SwapOut(1, area, 1, (block,) * base.MAX_BLOCKS),
        base.AddBlocks(1, 2**62, 1, (2**62,) * base.MAX_BLOCKS),
        base.AddIds(1, 2**62, bytes(4 * base.MAX_IDS)),
        base.Ids(1, 2**62, bytes(4 * base.MAX_IDS)),
    )
    for message in messages:
        assert len(wire.encode(message)) <= wire.MAX_MESSAGE


def test_what_was_published_does_not_change() -> None:
    recorded = golden_store.recorded()
    assert wire.schema() == recorded["schema"]
    assert list(recorded["messages"]) == NAMES
    for message in MESSAGES:
        raw = bytes.fromhex(recorded["messages"][type(message).__name__])
        assert wire.encode(message) == raw and wire.decode(raw) == message


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_a_newer_store_says_more_and_a_newer_kernel_wants_more(message: Any) -> None:
    values = msgpack.unpackb(wire.encode(message))
    longer = msgpack.packb([*values, *[0] * (len(type(message)._fields) + 2 - len(values))])
    if type(message).__name__ in TO_KERNEL:
        assert wire.decode(longer)[:1] == message[:1]
    else:
        with pytest.raises(wire.BadMessage):
            wire.decode(longer)
