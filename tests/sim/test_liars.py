"""Drivers that lie: whatever one says, the kernel goes on, and no client sees a wrong id.

A lie ends the driver's epoch. Told once, the streams do not show it; told for ever, the requests
that were in flight fail with EIO and the device with it, and the kernel still answers.
"""

from math import inf, nan
from typing import Any

import pytest

from drivers import base, wire
from kernel.device import DeviceState
from syscalls.errors import Errno
from tests.helpers.liar import Lie, LyingLink, number_of, raw, retyped
from tests.helpers.oracle import VOCAB, expected
from tests.helpers.sim import Sim

FOR_EVER = 1 << 30


def sampled(**fields: Any) -> Lie:
    """Change fields of the Sampled of a Complete."""

    def lie(complete: base.Complete) -> list[Any]:
        return [complete._replace(results=(complete.results[0]._replace(**fields),))]

    return lie


def changed(**fields: Any) -> Lie:
    return lambda message: [message._replace(**fields)]


def typed(field: str, value: Any) -> Lie:
    return lambda message: [retyped(message, field, value)]


def fault(kind: int, value_of: Any = lambda value: value) -> Lie:
    return lambda c: [base.Fault(c.epoch, c.queue, value_of(c.value), kind, "story", ())]


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\x00"


LIES: dict[str, Lie] = {
    "no ids": sampled(ids=b""),
    "half an id": sampled(ids=b"\1\0"),
    "too many ids": sampled(ids=base.ints([1, 2])),
    "id of the vocabulary's size": sampled(ids=base.ints([VOCAB])),
    "largest id": sampled(ids=base.ints([2**31 - 1])),
    "negative id": sampled(ids=base.ints([-1])),
    "no flags": sampled(flags=b""),
    "unknown flag": sampled(flags=b"\x82"),
    "logprob NaN": sampled(logprobs=base.reals([nan])),
    "logprob inf": sampled(logprobs=base.reals([inf])),
    "no logprobs": sampled(logprobs=b""),
    "no best": sampled(top_ids=b""),
    "too many best": sampled(top_ids=base.ints([1] * 9), top_logprobs=base.reals([-1] * 9)),
    "best negative": sampled(top_ids=base.ints([0, -5])),
    "best NaN": sampled(top_logprobs=base.reals([-1, nan])),
    "ids are text": sampled(ids="1234"),
    "ids are numbers": sampled(ids=[1]),
    "no result": changed(results=()),
    "two results": lambda c: [c._replace(results=c.results * 2)],
    "a checksum": changed(results=(["00"],)),
    "an op as result": lambda c: [retyped(c, "results", [[2, b"\1\0\0\0"]])],
    "result of negative number": lambda c: [retyped(c, "results", [[-1, b"", b"", b"", b"", b""]])],
    "results are a number": typed("results", 7),
    "results are a map": typed("results", {1: 2}),
    "fence to come": lambda c: [c._replace(value=c.value + 1)],
    "fence far away": changed(value=2**62),
    "fence 0": changed(value=0),
    "fence negative": changed(value=-3),
    "fence of another epoch": lambda c: [c._replace(epoch=c.epoch - 1)],
    "fence of another queue": changed(queue=1),
    "fence is true": typed("value", True),
    "fence is a real": typed("value", 2.0),
    "fence is nil": typed("value", None),
    "fence twice": lambda c: [c, c],
    "done before it began": lambda c: [c._replace(start_us=9, end_us=8)],
    "fault of an unknown kind": fault(99),
    "fault of a negative kind": fault(-1),
    "fault of another fence": fault(1, lambda value: value + 1),
    "fault of nothing": fault(2, lambda value: 0),
    "fault after the end": lambda c: [c, *fault(6)(c)],
    "fault items are text": lambda c: [raw(11, c.epoch, 0, c.value, 1, "x", ["y"])],
    "greets again": lambda c: [base.Ready(1, 0, "", c.epoch, "", "", 0, "", 0, 0, (), (), "")],
    "asks the kernel": lambda c: [base.Stats()],
    "submits to the kernel": lambda c: [base.Submit(c.epoch, 0, 1, (), 0, ())],
    "number -1": lambda c: [raw(-1, *[0] * 6)],
    "number 99": lambda c: [raw(99)],
    "number true": lambda c: [raw(True, *[0] * 9)],
    "number is text": lambda c: [raw("Complete")],
    "number is nil": lambda c: [raw(None)],
    "a field too few": lambda c: [raw(number_of(c), *c[:-1])],
    "a field too many": lambda c: [raw(number_of(c), *c[:-1], [], 0)],
    "not an array": lambda c: [b"\x81\x01\x02"],
    "a number": lambda c: [b"\x07"],
    "no msgpack": lambda c: [b"\xc1" * 40],
    "two messages in one": lambda c: [wire.encode(c) * 2],
    "an extension": lambda c: [b"\x91\xc7\x00\x05"],
    "text that is no UTF-8": lambda c: [b"\x91\xa2\xff\xfe"],
    "nested deep": lambda c: [nested(100_000)],
    "nested to the limit": lambda c: [nested(500)],
    "oversized": lambda c: [raw(number_of(c), *[b"x" * wire.MAX_MESSAGE] * 6)],
    "array that claims 4 Gi items": lambda c: [b"\xdd\xff\xff\xff\xff"],
}
TRUNCATED = (1, 2, 5, 20, -1)


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_lie_is_not_seen_in_the_stream(lie: Lie) -> None:
    tell_once(lie)


@pytest.mark.parametrize("length", TRUNCATED)
def test_a_truncated_answer_is_not_seen_in_the_stream(length: int) -> None:
    tell_once(lambda complete: [wire.encode(complete)[:length]])


def tell_once(lie: Lie) -> None:
    link = LyingLink(base.Complete, lie, after=4)
    sim = Sim(link=link)
    client, other = sim.client(), sim.client()
    begin(client, [1, 2, 3])
    infer = client.send("infer", 1, 12, 0.0, 0, 1.0, 0.0, None, (), False, 2)
    sim.until(lambda: infer.done)
    assert infer.errno == 0 and infer.tokens == expected([1, 2, 3], 12)
    assert link.times == 0, "the lie was told"
    assert sim.system.device.epoch == 2, "the liar was replaced"
    assert sim.system.device.note
    assert other.ask("snapshot", "tasks").errno == 0
    leave(sim)


def begin(client: Any, ids: list[int]) -> None:
    handle = client.new_handle()
    assert client.ask("alloc_ctx", handle).errno == 0
    assert client.ask("append", handle, ids=ids).errno == 0


def leave(sim: Sim) -> None:
    for client in sim.clients:
        client.send("exit")
    sim.turn()
    sim.check_empty()


@pytest.mark.parametrize(
    "name", ["no ids", "negative id", "fence to come", "fault of an unknown kind", "number -1"]
)
def test_a_lie_told_for_ever_fails_the_request_and_spares_the_kernel(name: str) -> None:
    link = LyingLink(base.Complete, LIES[name], times=FOR_EVER)
    sim = Sim(link=link)
    client = sim.client()
    begin(client, [1, 2])
    infer = client.send("infer", 1, 5, 0.0)
    sim.until(lambda: infer.done)
    assert infer.errno == Errno.EIO and infer.tokens == []
    link.times = 0
    assert client.ask("infer", 1, 5, 0.0).tokens == expected([1, 2], 5), "an honest one goes on"
    leave(sim)


def test_a_device_that_only_lies_is_given_up() -> None:
    sim = Sim(link=LyingLink(base.Complete, LIES["no ids"], times=FOR_EVER), max_restarts=2)
    client = sim.client()
    begin(client, [1, 2])
    assert client.ask("infer", 1, 5, 0.0).errno in (Errno.EIO, Errno.ENODEV)
    sim.until(lambda: sim.system.device.state in (DeviceState.FAILED, DeviceState.UP))
    client.ask("infer", 1, 5, 0.0)
    assert sim.system.device.state is DeviceState.FAILED
    row = client.ask("list_devices").result.rows[0]
    assert row[2] == "failed" and "bytes of ids" in row[7]
    assert client.ask("append", 1, ids=[1]).errno == Errno.ENODEV


NUMERIC = bytes([base.RowFlag.NUMERIC])


def test_what_a_numeric_flag_says_is_not_read() -> None:
    """The id of such a row means nothing: the request fails, the driver is not to blame."""
    lie = sampled(flags=NUMERIC, ids=base.ints([-1]), logprobs=base.reals([nan]))
    sim = Sim(link=LyingLink(base.Complete, lie, after=4))
    client = sim.client()
    begin(client, [1, 2, 3])
    infer = client.ask("infer", 1, 12, 0.0)
    assert infer.errno == Errno.EIO and "NaN" in infer.message
    assert sim.system.device.epoch == 1
    assert client.ask("infer", 1, 2, 0.0).errno == 0
    leave(sim)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_blocks": 0}, {"num_blocks": 1}, {"num_blocks": 65}, {"num_blocks": 2**60},
        {"block_size": 0}, {"block_size": 32}, {"vocab": 0}, {"vocab": -1}, {"vocab": 2**40},
        {"max_ctx": 0}, {"max_ctx": 2**31}, {"max_tokens": 0}, {"max_seqs": 0},
        {"max_block_refs": -1}, {"model": 1}, {"kv_groups": ()}, {"eos_ids": (7,) * 5000},
        {"max_block_refs": 2},
    ],
    ids=str,
)  # fmt: skip
def test_a_model_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    sim = Sim(link=LyingLink(base.Loaded, changed(**fields), times=FOR_EVER), max_restarts=2)
    assert sim.system.device.state is DeviceState.FAILED
    assert sim.client().ask("alloc_ctx", 1).errno == Errno.ENODEV


@pytest.mark.parametrize(
    "fields", [{"vocab": 250}, {"num_blocks": 63}, {"max_tokens": 2}, {"max_ctx": 100}], ids=str
)
def test_another_model_after_a_restart_is_refused(fields: dict[str, Any]) -> None:
    sim = Sim(
        link=LyingLink(base.Loaded, changed(**fields), times=FOR_EVER, after=1), max_restarts=2
    )
    client = sim.client()
    begin(client, [250, 1])
    sim.link.die()
    sim.until(lambda: sim.system.device.state is DeviceState.FAILED)
    assert client.ask("infer", 1, 5).errno == Errno.ENODEV
    assert list(client.ask("read_ctx", 1).ids) == [250, 1], "ids are the kernel's, they stay"


@pytest.mark.parametrize("fields", [{"schema": "0" * 32}, {"major": 2}], ids=str)
def test_a_host_of_another_abi_is_refused(fields: dict[str, Any]) -> None:
    sim = Sim(link=LyingLink(base.Ready, changed(**fields), times=FOR_EVER))
    assert sim.system.device.state is DeviceState.FAILED
    assert "ABI" in sim.system.device.note


def test_a_flood_of_messages_does_not_hold_the_loop() -> None:
    def flood(complete: base.Complete) -> list[Any]:
        return [*[base.Heartbeat(complete.epoch, 0)] * 1_000, complete]

    sim = Sim(link=LyingLink(base.Complete, flood, after=4))
    client = sim.client()
    begin(client, [1, 2])
    infer = client.send("infer", 1, 12, 0.0)
    sim.until(lambda: len(sim.link.outbox) > 500)
    before = len(sim.link.outbox)
    sim.turn()
    assert 0 < before - len(sim.link.outbox) < 500, "some each turn"
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([1, 2], 12) and sim.system.device.epoch == 1
    leave(sim)


def test_long_stories_of_a_driver_are_cut() -> None:
    lie: Lie = lambda c: [base.Fault(c.epoch, c.queue, c.value, 1, "x" * 8000, ())]  # noqa: E731
    sim = Sim(link=LyingLink(base.Complete, lie, after=4))
    client = sim.client()
    begin(client, [1, 2])
    assert client.ask("infer", 1, 12, 0.0).errno == 0
    assert 0 < len(client.ask("list_devices").result.rows[0][7]) <= 1000
    leave(sim)
