"""Bytes between kernel and driver host: what is no message is BadMessage, and nothing else."""

from enum import IntEnum
from random import Random
from typing import Any

import msgpack
import pytest

from drivers import base

SAMPLED = base.Sampled(base.ints([1]), b"\0", base.reals([0]), b"", b"")
TABLE = base.BlockTable(base.ints([0, 1]), base.ints([1]), base.ints([16]))
EXECUTE = base.Execute(0, 1, *[base.ints([0])] * 7, (TABLE,))
GROUP = base.KvGroup(1, "full", 0, 1, 4, "uint8")
MESSAGES: list[Any] = [
    base.Hello(1, 0, "s", 1, "null0"),
    base.Load(0, "null:", "float32", 16, 64, 0, 0, False, 0),
    base.Unload(0),
    base.Submit(1, 0, 2, (base.Fence(1, 0, 1),), 0, (base.Scrub(base.ints([1])), EXECUTE)),
    base.Stats(),
    base.Close(),
    base.Ready(1, 0, "s", 1, "null", "null0", 9, "d", 1, 1, ("float32",), ("scrub",), "none"),
    base.Progress(0, "weights", 1, 2),
    base.Estimate(0, 1, 2, 3, 4),
    base.Loaded(0, "a", 1, 9, 9, 0, (7,), (GROUP,), 16, 128, 64, "float32", 9, 9, 9, 1),
    base.Complete(1, 0, 2, 3, 4, (SAMPLED, ("00", "ff"))),
    base.Fault(1, 0, 2, 1, "story", (4,)),
    base.Heartbeat(1, 2),
    base.StatsReply(1, 2, 3, 4, 5, 6),
]
WRONG: list[Any] = [None, True, 1.5, -1, 2**64 - 1, "x", b"x", [], [1], ["x"], [[]], {}, [None]]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives(message: Any) -> None:
    again = base.decode(base.encode(message))
    assert again == message and type(again) is type(message)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_no_field_takes_another_type(message: Any) -> None:
    """Whatever stands in a field, it is refused or it is of the field's type."""
    number, *fields = msgpack.unpackb(base.encode(message))
    for place, kind in enumerate(type(message).__annotations__.values()):
        for wrong in WRONG:
            changed = [*fields[:place], wrong, *fields[place + 1 :]]
            try:
                read = base.decode(msgpack.packb([number, *changed]))[place]
            except base.BadMessage:
                continue
            assert type(read) is (kind if isinstance(kind, type) else tuple), (place, wrong)
            assert (
                not isinstance(wrong, list) or not wrong or all(type(i) is not list for i in read)
            )


def test_random_bytes_and_bent_messages() -> None:
    random = Random(5)
    read = 0
    for _ in range(20_000):
        raw = bytearray(base.encode(random.choice(MESSAGES)))
        for _ in range(random.randint(1, 4)):
            raw[random.randrange(len(raw))] = random.getrandbits(8)
        if random.random() < 0.3:
            del raw[random.randrange(len(raw)) :]
        try:
            base.decode(bytes(raw))
            read += 1
        except base.BadMessage as error:
            assert len(str(error)) < 400
    assert 0 < read < 15_000


@pytest.mark.parametrize("number", [-1, 14, 99, True, 0.0, None, "Hello", b"\0"])
def test_numbers_that_nothing_has(number: Any) -> None:
    with pytest.raises(base.BadMessage):
        base.decode(msgpack.packb([number]))


def test_oversized() -> None:
    fits = base.Unload(0)
    assert base.decode(base.encode(fits)) == fits
    with pytest.raises(base.BadMessage, match=str(base.MAX_MESSAGE)):
        base.decode(bytes(base.MAX_MESSAGE + 1))
    with pytest.raises(base.BadMessage):
        base.decode(base.encode(base.Hello(1, 0, "x" * (base.MAX_TEXT + 1), 1, "")))


@pytest.mark.parametrize("place", range(4))
def test_schema_knows_the_numbers(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that gives a name another number, or a number another name, is refused."""
    before = base.schema_hash()
    old = base._ENUMS[place]
    members = {member.name: int(member) for member in old}
    last = list(members)[-1]
    fewer = {name: value for name, value in members.items() if name != last}
    others = [{**members, last: 77}, {**members, "NEW": 78}, fewer]
    for changed in others:
        enums = list(base._ENUMS)
        enums[place] = IntEnum(old.__name__, changed)
        monkeypatch.setattr(base, "_ENUMS", tuple(enums))
        assert base.schema_hash() != before
    same = list(base._ENUMS)
    same[place] = IntEnum(old.__name__, members)
    monkeypatch.setattr(base, "_ENUMS", tuple(same))
    assert base.schema_hash() == before
