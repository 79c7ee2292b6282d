"""Bytes between kernel and driver host: what is no message is BadMessage, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from random import Random
from typing import Any, NamedTuple

import msgpack
import pytest

from drivers import base, wire
from tests.helpers import golden_driver

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
    again = wire.decode(wire.encode(message))
    assert again == message and type(again) is type(message)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_no_field_takes_another_type(message: Any) -> None:
    """Whatever stands in a field, it is refused or it is of the field's type."""
    number, *fields = msgpack.unpackb(wire.encode(message))
    for place, kind in enumerate(type(message).__annotations__.values()):
        for wrong in WRONG:
            changed = [*fields[:place], wrong, *fields[place + 1 :]]
            try:
                read = wire.decode(msgpack.packb([number, *changed]))[place]
            except wire.BadMessage:
                continue
            assert type(read) is (kind if isinstance(kind, type) else tuple), (place, wrong)
            assert (
                not isinstance(wrong, list) or not wrong or all(type(i) is not list for i in read)
            )


def test_random_bytes_and_bent_messages() -> None:
    random = Random(5)
    read = 0
    for _ in range(20_000):
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
    assert 0 < read < 15_000


@pytest.mark.parametrize("number", [-1, 14, 99, True, 0.0, None, "Hello", b"\0"])
def test_numbers_that_nothing_has(number: Any) -> None:
    with pytest.raises(wire.BadMessage):
        wire.decode(msgpack.packb([number]))


def test_oversized() -> None:
    fits = base.Unload(0)
    assert wire.decode(wire.encode(fits)) == fits
    with pytest.raises(wire.BadMessage, match=str(wire.MAX_MESSAGE)):
        wire.decode(bytes(wire.MAX_MESSAGE + 1))
    with pytest.raises(wire.BadMessage):
        wire.decode(wire.encode(base.Hello(1, 0, "x" * (wire.MAX_TEXT + 1), 1, "")))


# --- growth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", golden_driver.MESSAGES, ids=lambda m: type(m).__name__)
def test_what_was_published_does_not_change(message: Any) -> None:
    raw = bytes.fromhex(golden_driver.recorded()["messages"][type(message).__name__])
    assert wire.encode(message) == raw
    assert wire.decode(raw) == message


@pytest.mark.parametrize("message", golden_driver.OF_1_1, ids=lambda m: type(m).__name__)
def test_what_1_1_has_added_does_not_change(message: Any) -> None:
    raw = bytes.fromhex(golden_driver.recorded()["messages of 1.1"][type(message).__name__])
    assert wire.encode(message) == raw
    assert wire.decode(raw) == message


@pytest.mark.parametrize("message", golden_driver.OF_1_2, ids=lambda m: type(m).__name__)
def test_what_1_2_has_added_does_not_change(message: Any) -> None:
    raw = bytes.fromhex(golden_driver.recorded()["messages of 1.2"][type(message).__name__])
    assert wire.encode(message) == raw
    assert wire.decode(raw) == message


@pytest.mark.parametrize("message", golden_driver.OF_1_3, ids=lambda m: type(m).__name__)
def test_what_1_3_has_added_does_not_change(message: Any) -> None:
    raw = bytes.fromhex(golden_driver.recorded()["messages of 1.3"][type(message).__name__])
    assert wire.encode(message) == raw
    assert wire.decode(raw) == message


def test_the_schema_is_that_of_version_1_0() -> None:
    assert wire.schema() == golden_driver.recorded()["schema"]


class Grown(NamedTuple):
    """A StatsReply of a newer minor version."""

    mem_bytes: int
    pool_bytes: int
    steps: int
    tokens: int
    busy_us: int
    energy_uj: int
    degrees: int = 0


class Asks(NamedTuple):
    """An Unload of a newer minor version."""

    model: int
    gently: bool = False


@contextmanager
def newer(old: Any, new: Any) -> Iterator[None]:
    """Speak for a moment as a side that has grown."""
    before = wire._MESSAGES
    grown = tuple(new if cls is old else cls for cls in before)
    wire._MESSAGES = grown
    try:
        yield
    finally:
        wire._MESSAGES = before


def test_a_field_that_says_nothing_is_not_sent() -> None:
    with newer(base.Unload, Asks):
        assert wire.encode(Asks(4)) == wire.encode(Asks(4, False))
        raw = wire.encode(Asks(4))
        assert wire.decode(raw) == Asks(4)
    assert wire.decode(raw) == base.Unload(4)


def test_a_driver_refuses_a_field_that_it_does_not_know() -> None:
    with newer(base.Unload, Asks):
        raw = wire.encode(Asks(4, True))
    with pytest.raises(wire.BadMessage, match="Unload has 1 to 1 fields, got 2"):
        wire.decode(raw)


def test_the_kernel_leaves_out_what_a_newer_driver_adds() -> None:
    with newer(base.StatsReply, Grown):
        raw = wire.encode(Grown(1, 2, 3, 4, 5, 6, 451))
    assert wire.decode(raw) == base.StatsReply(1, 2, 3, 4, 5, 6)


def test_a_field_that_is_missing_has_its_default() -> None:
    raw = wire.encode(base.StatsReply(1, 2, 3, 4, 5, 6))
    with newer(base.StatsReply, Grown):
        assert wire.decode(raw) == Grown(1, 2, 3, 4, 5, 6, 0)
    with pytest.raises(wire.BadMessage):
        wire.decode(msgpack.packb([13, 1, 2, 3, 4, 5]))


def test_rows_in_rows_grow_too() -> None:
    submit = base.Submit(1, 0, 1, (), 0, (base.Scrub(base.ints([1]), 2), base.Scrub(b"")))
    assert wire.decode(wire.encode(submit)) == submit
    raw = msgpack.packb([3, 1, 0, 1, [], 0, [[2, b"", 0, 1]]])
    with pytest.raises(wire.BadMessage, match="Scrub has 1 to 2 fields"):
        wire.decode(raw)
    loaded = [9, 0, "a", 1, 9, 9, 0, [7], [[1, "full", 0, 1, 4, "uint8", "new"]], 16, 128, 64,
              "float32", 9, 9, 9, 1]  # fmt: skip
    assert wire.decode(msgpack.packb(loaded)).kv_groups == (GROUP,)


def test_growth_leaves_the_schema_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = wire.schema()
    grown = NamedTuple("StatsReply", [*base.StatsReply.__annotations__.items(), ("new", int)])
    grown.__new__.__defaults__ = (0,)
    grown._field_defaults = {"new": 0}
    with newer(base.StatsReply, grown), monkeypatch.context() as patch:
        patch.setattr(wire, "_MESSAGES", (*wire._MESSAGES, Asks))
        assert wire.schema() == before
    grown._field_defaults = {}
    with newer(base.StatsReply, grown):
        assert wire.schema() != before, "a field without a default is no growth"


@pytest.mark.parametrize("place", range(4))
def test_schema_knows_the_numbers(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that gives a name of 1.0 another number, or has it not, is refused."""
    before = wire.schema()
    old, count = wire._ENUMS[place]
    members = {member.name: int(member) for member in old}
    last = list(members)[count - 1]

    def schema_with(changed: dict[str, int]) -> str:
        enums = list(wire._ENUMS)
        enums[place] = IntEnum(old.__name__, changed), count  # type: ignore[misc]
        monkeypatch.setattr(wire, "_ENUMS", tuple(enums))
        return wire.schema()

    assert schema_with({**members, last: 77}) != before
    assert schema_with({name: value for name, value in members.items() if name != last}) != before
    assert schema_with({"FIRST": 78, **members}) != before
    assert schema_with(members) == before
    assert schema_with({**members, "LATER": 78}) == before
