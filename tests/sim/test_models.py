"""Several models on one device: loading, taking turns, refusals, unloading, a driver that dies.

The models are null models of different vocabularies, so that an id of the wrong one shows.
"""

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from drivers import base
from kernel.device import Device, DeviceState
from kernel.idle import IdleOrder
from kernel.loopback import LoopbackLink
from kernel.model import Model, ModelState, ModelTable
from kernel.panic import KernelPanic
from kernel.pool import BlockPool
from syscalls.abi import Event
from syscalls.errors import Errno
from tests.helpers.liar import LyingLink
from tests.helpers.oracle import expected, next_id
from tests.helpers.sim import Sim, SimClient

OTHER = 97


@pytest.fixture
def sim() -> Sim:
    return Sim()


def load(client: SimClient, name: str = "other", vocab: int = OTHER, **fields: Any) -> Any:
    defaults = {"device": None, "dtype": None, "kv_bytes": 0, "num_blocks": 32}
    rest = (defaults | fields).values()
    return client.send("load_model", name, f"null:vocab={vocab}", *rest)


def loaded(client: SimClient, name: str = "other", **fields: Any) -> Any:
    reply = load(client, name, **fields)
    client.sim.until(lambda: reply.done)
    assert reply.errno == 0, reply.message
    return reply.result


def context(client: SimClient, model: str, ids: list[int]) -> int:
    handle = client.new_handle()
    assert client.ask("alloc_ctx", handle, model).errno == 0
    assert client.ask("append", handle, ids=ids).errno == 0
    return handle


def other_ids(ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(next_id(ids, vocab=OTHER))
    return ids[-count:]


def rows(client: SimClient) -> dict[str, list[Any]]:
    return {row[0]: row for row in client.ask("list_models").result.rows}


# --- loading ------------------------------------------------------------------------------------


def test_a_second_model_serves_beside_the_first(sim: Sim) -> None:
    client = sim.client()
    row = loaded(client)
    assert (row.name, row.state, row.num_blocks, row.vocab) == ("other", "up", 32, OTHER)
    first, second = context(client, "null", [1, 2, 3]), context(client, "other", [1, 2, 3])
    infers = [client.send("infer", handle, 20, 0.0) for handle in (first, second)]
    sim.until(lambda: all(infer.done for infer in infers))
    assert infers[0].tokens == expected([1, 2, 3], 20)
    assert infers[1].tokens == other_ids([1, 2, 3], 20)
    assert list(rows(client)) == ["null", "other"]
    assert rows(client)["other"][-2] == 1, "one context uses it"
    sim.leave()


def test_models_take_turns(sim: Sim) -> None:
    """Neither waits for the end of the other's work."""
    client = sim.client()
    loaded(client)
    handles = [context(client, model, [5]) for model in ("null", "other")]
    infers = [client.send("infer", handle, 30, 0.0) for handle in handles]
    sim.until(lambda: any(infer.done for infer in infers))
    sim.turn()
    sim.turn()
    lengths = [len(infer.tokens) for infer in infers]
    assert min(lengths) >= 29, lengths
    sim.until(lambda: all(infer.done for infer in infers))
    sim.leave()


def test_a_context_is_of_the_first_model_unless_it_says_otherwise(sim: Sim) -> None:
    client = sim.client()
    loaded(client)
    assert client.ask("alloc_ctx", client.new_handle()).result.model == "null"
    unknown = client.ask("alloc_ctx", client.new_handle(), "third")
    assert unknown.errno == Errno.ENOENT and "null, other" in unknown.message
    sim.leave()


def test_ids_are_checked_against_the_model_of_their_context(sim: Sim) -> None:
    client = sim.client()
    loaded(client)
    handle = context(client, "other", [1])
    assert client.ask("append", handle, ids=[OTHER]).errno == Errno.EINVAL
    assert client.ask("infer", handle, 1, 0.0, 0, 1.0, 0.0, None, (OTHER,)).errno == Errno.EINVAL
    assert client.ask("append", context(client, "null", [1]), ids=[OTHER]).errno == 0
    sim.leave()


def test_what_no_memory_has_room_for_is_refused_and_the_rest_goes_on(sim: Sim) -> None:
    client = sim.client()
    infer = client.send("infer", context(client, "null", [1]), 20, 0.0)
    reply = load(client, num_blocks=(1 << 28) // (8 * 16) + 1)
    sim.until(lambda: reply.done and infer.done)
    assert reply.errno == Errno.ENOMEM and "bytes" in reply.message
    assert infer.tokens == expected([1], 20)
    assert list(rows(client)) == ["null"]
    assert sim.system.device.state is DeviceState.UP and sim.system.device.epoch == 1
    loaded(client)
    sim.leave()


def test_a_load_that_is_none(sim: Sim) -> None:
    client = sim.client()
    assert client.ask("load_model", "other", "llama:7b").errno == Errno.EIO
    assert client.ask("load_model", "other", "").errno == Errno.EINVAL
    assert client.ask("load_model", "null", "null").errno == Errno.EEXIST
    assert client.ask("load_model", "x", "null", "null7").errno == Errno.ENODEV
    assert list(rows(client)) == ["null"]
    sim.leave()


def test_no_more_models_than_the_limit() -> None:
    sim = Sim(max_models=3)
    client = sim.client()
    loaded(client, "a")
    loaded(client, "b")
    refused = client.ask("load_model", "c", "null")
    assert refused.errno == Errno.EAGAIN and "3" in refused.message
    assert client.ask("unload_model", "a").errno == 0
    loaded(client, "c")
    sim.leave()


def test_loads_are_done_one_after_the_other_and_all_are_answered(sim: Sim) -> None:
    clients = [sim.client() for _ in range(4)]
    replies = [load(client, f"m{i}", 50 + i) for i, client in enumerate(clients)]
    twice = load(clients[0], "m1")
    sim.until(lambda: all(reply.done for reply in [*replies, twice]))
    assert [reply.errno for reply in replies] == [0] * 4 and twice.errno == Errno.EEXIST
    assert [reply.result.vocab for reply in replies] == [50, 51, 52, 53]
    sim.leave()


def test_loads_without_end_stop_nobody(sim: Sim) -> None:
    """Whenever one is done, another one waits already."""
    client, others = sim.client(), [sim.client() for _ in range(3)]
    infer = client.send("infer", context(client, "null", [1]), 40, 0.0)
    replies = {}
    for _ in range(400):
        for other in others:
            name, reply = f"m{other.pid}", replies.get(other)
            if reply is None or reply.done:
                up = reply is not None and reply.name == "load_model"
                replies[other] = other.send("unload_model", name) if up else load(other, name)
        sim.turn()
    assert infer.done and infer.tokens == expected([1], 40)
    sim.until(lambda: all(reply.done and not reply.errno for reply in replies.values()))
    sim.leave()


def test_a_model_that_is_on_its_way_is_listed_and_worth_another_try(sim: Sim) -> None:
    client = sim.client()
    reply = load(client)
    sim.turn(pump=0)
    listed = client.send("list_models")
    early = client.send("alloc_ctx", client.new_handle(), "other")
    unload = client.send("unload_model", "other")
    sim.turn(pump=0)
    assert [row[9] for row in listed.result.rows] == ["up", "loading"]
    assert (early.errno, unload.errno) == (Errno.EAGAIN, Errno.EBUSY)
    sim.until(lambda: reply.done)
    assert rows(client)["other"][9] == "up"
    sim.leave()


def test_whoever_asked_may_go_and_the_model_comes_all_the_same(sim: Sim) -> None:
    client, other = sim.client(), sim.client()
    load(client)
    sim.turn(pump=0)
    sim.front.dead.add(client.route)
    sim.until(lambda: rows(other)["other"][9] == "up")
    sim.leave()


def test_progress_goes_to_whoever_asked(sim: Sim) -> None:
    client = sim.client()
    reply = load(client)
    sim.turn(pump=0)
    number = sim.system.device.models.find("other").number
    for done in (1, 2):
        sim.link._emit(base.Progress(number, "weights", done, 2))
    sim.until(lambda: reply.done)
    progress = [event[2:] for event in client.take() if event[0] == Event.PROGRESS]
    assert progress == [["weights", 1, 2], ["weights", 2, 2]]
    sim.leave()


@pytest.mark.parametrize(
    "message", [base.Progress(0, "weights", 1, 2), base.Estimate(0, 1, 1, 1, 1)]
)
def test_news_of_another_model_are_not_passed_on(sim: Sim, message: Any) -> None:
    client = sim.client()
    reply = load(client)
    sim.turn(pump=0)
    sim.link._emit(message)
    sim.until(lambda: reply.done)
    assert sim.system.device.epoch == 2 and "of model 0" in sim.system.device.note
    assert not [event for event in client.take() if event[0] == Event.PROGRESS]
    assert reply.errno == 0
    sim.leave()


def test_a_kernel_without_a_model_takes_one() -> None:
    sim = Sim(model="")
    client = sim.client()
    nothing = client.ask("alloc_ctx", client.new_handle())
    assert nothing.errno == Errno.ENOENT and "llmos load" in str(client.take()[-1])
    loaded(client)
    assert client.ask("alloc_ctx", client.new_handle()).result.model == "other"
    sim.front.dead.add(client.route)
    sim.turn()
    sim.check_empty()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_a_part_that_is_no_file_is_not_read(sim: Sim, kind: str, tmp_path: Path) -> None:
    """A pipe would be waited for, and by then the kernel would serve nobody."""
    part = tmp_path / "tokenizer.json"
    {
        "pipe": lambda: os.mkfifo(part),
        "device": lambda: part.symlink_to("/dev/zero"),
        "folder": part.mkdir,
        "loop": lambda: part.symlink_to(part),
    }[kind]()
    client = sim.client()
    sim.model.spec = sim.model.spec._replace(path=str(tmp_path))
    read = client.ask("read_model", None, "tokenizer.json")
    assert read.errno == Errno.EIO and "cannot read tokenizer.json" in read.message
    (tmp_path / "config.json").write_text("{}")
    result = client.ask("read_model", None, "config.json").result
    assert (result.data, result.total) == (b"{}", 2)
    sim.leave()


# --- unloading ----------------------------------------------------------------------------------


def test_unload_gives_everything_back(sim: Sim) -> None:
    client = sim.client()
    for _ in range(20):  # 20 pools of a tenth of the memory would not fit
        loaded(client, num_blocks=(1 << 28) // (8 * 16) // 10)
        assert client.ask("unload_model", "other").result.contexts == 0
    assert list(rows(client)) == ["null"]
    assert client.ask("unload_model", "other").errno == Errno.ENOENT
    sim.settle()
    driver: Any = sim.link._driver
    assert list(driver.models) == [sim.model.number]
    sim.leave()


def test_a_model_in_use_stays_unless_forced(sim: Sim) -> None:
    client, operator = sim.client(), sim.client()
    loaded(operator)
    handle = context(client, "other", [1, 2, 3])
    busy = operator.ask("unload_model", "other")
    assert busy.errno == Errno.EBUSY and "1 contexts" in busy.message
    infer = client.send("infer", handle, 50, 0.0)
    sim.until(lambda: len(infer.tokens) > 3)
    assert operator.ask("unload_model", "other", True).result.contexts == 1
    sim.until(lambda: infer.done)
    sim.check()
    assert infer.errno == Errno.ENODEV and "unloaded" in infer.message
    ids = client.ask("read_ctx", handle).ids
    assert list(ids) == [1, 2, 3, *infer.tokens] == [1, 2, 3, *other_ids([1, 2, 3], len(ids) - 3)]
    for call in ("append", "infer"):
        assert client.ask(call, handle, ids=[1]).errno == Errno.ENODEV
    assert client.ask("trim_ctx", handle, 1).errno == 0
    assert client.ask("free_ctx", handle).errno == 0
    sim.leave()


@pytest.mark.parametrize("pump", [0, 1])
def test_unloading_in_the_middle_of_a_step(sim: Sim, pump: int) -> None:
    """What the step would have written is nobody's, and the model may come back at once."""
    client, operator = sim.client(), sim.client()
    loaded(operator)
    handle = context(client, "other", list(range(40)))
    infer = client.send("infer", handle, 50, 0.0)
    sim.turn(pump=0)
    assert sim.system.device.busy
    forced = operator.send("unload_model", "other", True)
    again = load(operator)
    sim.turn(pump=pump)
    sim.until(lambda: forced.done and again.done and infer.done)
    assert (forced.errno, again.errno, infer.errno) == (0, 0, Errno.ENODEV)
    assert client.ask("infer", handle, 1).errno == Errno.ENODEV, "it is of the model that has gone"
    new = context(client, "other", [9])
    done = client.ask("infer", new, 9, 0.0)
    assert done.errno == 0 and done.tokens == other_ids([9], 9)
    assert sim.system.device.epoch == 1
    sim.leave()


def test_counters_do_not_fall_when_a_model_goes(sim: Sim) -> None:
    client = sim.client()
    loaded(client)
    client.ask("infer", context(client, "other", [1]), 9, 0.0)
    before = sim.system.device.models.totals.steps
    client.ask("unload_model", "other", True)
    assert sim.system.device.models.totals.steps == before > 8
    sim.leave()


# --- a driver that dies --------------------------------------------------------------------------


def test_all_models_come_back_after_a_death_and_streams_go_on(sim: Sim) -> None:
    client = sim.client()
    loaded(client)
    handles = [context(client, model, [7, 8]) for model in ("null", "other")]
    infers = [client.send("infer", handle, 30, 0.0) for handle in handles]
    sim.until(lambda: all(len(infer.tokens) > 5 for infer in infers))
    sim.link.die()
    sim.until(lambda: all(infer.done for infer in infers))
    assert sim.system.device.epoch == 2
    assert infers[0].tokens == expected([7, 8], 30)
    assert infers[1].tokens == other_ids([7, 8], 30)
    assert [row[9] for row in rows(client).values()] == ["up", "up"]
    sim.leave()


@pytest.mark.parametrize("turns", range(6))
def test_a_death_while_a_model_is_being_loaded(sim: Sim, turns: int) -> None:
    client = sim.client()
    reply = load(client)
    for _ in range(turns):
        sim.turn(pump=turns % 2)
    sim.link.die()
    sim.until(lambda: reply.done)
    assert reply.errno == 0 and reply.result.state == "up", "the new driver loads it too"
    sim.leave()


class Deadly(LoopbackLink):
    """A driver that some models kill."""

    def _handle(self, message: Any) -> None:
        if isinstance(message, base.Load) and "vocab=66" in message.path:
            self.die()
        else:
            super()._handle(message)


def test_a_model_that_kills_its_driver_is_given_up_and_the_others_go_on() -> None:
    sim = Sim(link=Deadly("null0"), max_restarts=5)
    client = sim.client()
    infer = client.send("infer", context(client, "null", [1]), 40, 0.0)
    reply = load(client, vocab=66)
    sim.until(lambda: reply.done)
    assert reply.errno == Errno.EIO and "2 times" in reply.message
    assert sim.system.device.epoch == 3
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([1], 40)
    assert list(rows(client)) == ["null"]
    sim.leave()


def lying_of_the_second() -> Sim:
    """A driver that says of every model but the first what cannot be."""

    def lie(loaded: base.Loaded) -> list[Any]:
        return [loaded._replace(eos_ids=(7,) * 300) if loaded.model else loaded]

    return Sim(link=LyingLink(base.Loaded, lie, times=1 << 30), max_restarts=5)


def test_a_model_of_which_the_driver_lies_is_given_up_and_the_others_go_on() -> None:
    sim = lying_of_the_second()
    client = sim.client()
    infer = client.send("infer", context(client, "null", [1]), 40, 0.0)
    reply = load(client)
    sim.until(lambda: reply.done and infer.done)
    assert reply.errno == Errno.EIO and "2 times" in reply.message and "300" in reply.message
    assert infer.tokens == expected([1], 40)
    assert sim.system.device.epoch == 3 and list(rows(client)) == ["null"]
    sim.leave()


def test_a_model_that_cannot_come_back_fails_alone() -> None:
    """It was up; after a death it is another one on the disk, or it kills the new driver."""
    sim = lying_of_the_second()
    link: Any = sim.link
    link.after = 1  # the first load of it is told as it is
    client = sim.client()
    loaded(client)
    infers = [client.send("infer", context(client, name, [7]), 30, 0.0) for name in rows(client)]
    sim.until(lambda: all(len(infer.tokens) > 5 for infer in infers))
    link.after = 0
    sim.link.die()
    sim.until(lambda: all(infer.done for infer in infers))
    assert infers[0].tokens == expected([7], 30)
    assert infers[1].errno == Errno.ENODEV and "300 end ids" in infers[1].message
    assert [row[9] for row in rows(client).values()] == ["up", "failed"]
    link.times = 0
    loaded(client)  # anew
    assert [row[9] for row in rows(client).values()] == ["up", "up"]
    sim.leave()


def test_a_device_that_fails_for_good_tells_all_that_wait(sim: Sim) -> None:
    sim = Sim(max_restarts=0)
    client = sim.client()
    handle = context(client, "null", [1])
    infer, reply = client.send("infer", handle, 9, 0.0), load(client)
    sim.turn(pump=0)
    sim.link.die()
    sim.until(lambda: infer.done and reply.done)
    assert (infer.errno, reply.errno) == (Errno.ENODEV, Errno.ENODEV)
    assert client.ask("alloc_ctx", client.new_handle()).errno == Errno.ENODEV
    assert client.ask("load_model", "more", "null").errno == Errno.ENODEV
    row = rows(client)["null"]
    assert row[9] == ModelState.FAILED.value and row[10]


def test_a_first_model_that_cannot_be_loaded_takes_its_device_along() -> None:
    sim = Sim(path="llama")
    client = sim.client()
    assert sim.system.device.state is DeviceState.FAILED
    refused = client.ask("alloc_ctx", client.new_handle())
    assert refused.errno == Errno.ENODEV and "llama" in refused.message


# --- loading beside steps -------------------------------------------------------------------------


class Beside(LoopbackLink):
    """A driver that loads beside its steps: each load ends when the test says so."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.loads: list[Any] = []

    def _emit(self, message: Any) -> None:
        if isinstance(message, base.Ready):
            message = message._replace(features=(*message.features, "load_beside"))
        super()._emit(message)

    def _handle(self, message: Any) -> None:
        if isinstance(message, base.Load) and self._driver.models:  # type: ignore[union-attr]
            self.loads.append(message)
        else:
            super()._handle(message)

    def finish(self) -> None:
        """End the load that is under way."""
        super()._handle(self.loads.pop(0))

    def die(self) -> None:
        self.loads = []
        super().die()


@pytest.fixture
def beside() -> Sim:
    return Sim(link=Beside("null0"))


def test_streams_go_on_while_a_model_is_being_loaded(beside: Sim) -> None:
    client, link = beside.client(), beside.link
    assert isinstance(link, Beside)
    reply = load(client)
    infer = client.ask("infer", context(client, "null", [1]), 30, 0.0)
    assert infer.tokens == expected([1], 30) and not reply.done
    assert len(link.loads) == 1 and beside.system.device.state is DeviceState.UP
    link.finish()
    beside.until(lambda: reply.done)
    assert client.ask("infer", context(client, "other", [2]), 5, 0.0).tokens == other_ids([2], 5)
    beside.leave()


def test_one_load_at_a_time_and_a_refused_one_beside_a_step(beside: Sim) -> None:
    client, link = beside.client(), beside.link
    assert isinstance(link, Beside)
    first, second = load(client, num_blocks=1 << 30), load(client, "b", 83)
    infer = client.send("infer", context(client, "null", [1]), 60, 0.0)
    beside.turn(pump=0)
    assert len(link.loads) == 1 and beside.system.device._flights
    link.finish()
    beside.until(lambda: first.done)
    assert first.errno == Errno.ENOMEM and not infer.done
    beside.until(lambda: bool(link.loads))
    link.finish()
    beside.until(lambda: second.done and infer.done)
    assert second.errno == 0 and infer.tokens == expected([1], 60)
    beside.leave()


def test_a_load_and_a_step_have_their_own_deadlines() -> None:
    sim = Sim(link=Beside("null0"), hang_s=1e6, step_s=5.0, load_s=50.0)
    client = sim.client()
    reply = load(client)
    sim.turn()
    sim.clock.now += 40
    infer = client.ask("infer", context(client, "null", [1]), 5, 0.0)
    assert infer.tokens == expected([1], 5) and sim.system.device.epoch == 1
    sim.clock.now += 20
    sim.until(lambda: sim.system.device.epoch == 2)
    assert "loading took 50 s" in sim.system.device.note
    sim.until(lambda: len(sim.link.loads) == 1)  # type: ignore[attr-defined]
    sim.link.finish()  # type: ignore[attr-defined]
    sim.until(lambda: reply.done)
    assert reply.errno == 0
    sim.leave()


def test_the_end_of_a_load_is_not_that_of_a_step() -> None:
    link = Beside("null0")
    sim = Sim(link=link, hang_s=1e6, step_s=5.0, load_s=500.0)
    client = sim.client()
    reply, handle = load(client), context(client, "null", [1])
    sim.until(lambda: bool(link.loads))
    infer = client.send("infer", handle, 5, 0.0)
    sim.turn(pump=0)
    assert sim.system.device._flights
    link.finish()
    sim.turn(pump=0)
    assert reply.done and sim.system.device.epoch == 1
    sim.clock.now += 6
    sim.turn(pump=0)
    assert sim.system.device.epoch == 2 and "a step took 5 s" in sim.system.device.note
    sim.until(lambda: bool(link.loads))
    link.finish()
    sim.until(lambda: infer.done)
    assert infer.tokens == expected([1], 5)
    sim.leave()


def test_a_death_beside_a_load_brings_both_back(beside: Sim) -> None:
    client, link = beside.client(), beside.link
    assert isinstance(link, Beside)
    reply = load(client)
    infer = client.send("infer", context(client, "null", [1]), 40, 0.0)
    beside.until(lambda: len(infer.tokens) > 3)
    link.die()
    beside.until(lambda: infer.done and bool(link.loads))
    assert infer.tokens == expected([1], 40) and beside.system.device.epoch == 2
    link.finish()
    beside.until(lambda: reply.done)
    assert reply.errno == 0
    beside.leave()


def test_a_load_that_kills_the_driver_costs_no_stream_its_life(beside: Sim) -> None:
    """Three deaths in flight end a request, but not those of a model that is loaded beside it."""
    client, link = beside.client(), beside.link
    assert isinstance(link, Beside)
    infer = client.send("infer", context(client, "null", [1]), 90, 0.0)
    for _ in range(2):
        reply = load(client)
        while not reply.done:
            if link.loads and beside.system.device._flights:
                link.die()
            beside.turn(pump=1)
        assert reply.errno == Errno.EIO and "2 times" in reply.message
    assert beside.system.device.epoch == 5 and not infer.done
    beside.until(lambda: infer.done)
    assert infer.tokens == expected([1], 90)
    beside.leave()


# --- all of it at once ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_loading_using_unloading_and_dying(seed: int) -> None:
    """Whatever happens, each call ends once, every id is right, and nothing is left."""
    sim, random = Sim(seed, num_blocks=40), Random(seed)
    clients = [sim.client() for _ in range(3)]
    streams: list[tuple[list[int], int, Any]] = []
    vocab = {"null": 251, "a": 61, "b": 83}
    for _ in range(120):
        client = random.choice(clients)
        name = random.choice(["a", "b"])
        match random.randrange(8):
            case 0 | 1:
                load(client, name, vocab[name], num_blocks=random.choice([8, 20, 1 << 24]))
            case 2:
                client.send("unload_model", name, random.random() < 0.5)
            case 3:
                if random.random() < 0.3:
                    sim.link.die()
            case _:
                name = random.choice(list(vocab))
                ids = [random.randrange(60) for _ in range(random.randrange(1, 40))]
                handle = client.new_handle()
                client.send("alloc_ctx", handle, name)
                stream = client.send("infer", handle, random.randrange(1, 30), 0.0, ids=ids)
                streams.append((ids, vocab[name], stream))
                if random.random() < 0.5:
                    client.send("free_ctx", handle) if random.random() < 0.3 else None
        for _ in range(random.randrange(4)):
            sim.turn(pump=random.randrange(3))
            sim.check()
    sim.until(lambda: all(reply.done for client in clients for reply in client.calls.values()))
    for ids, size, stream in streams:
        want = list(ids)
        for token in stream.tokens:
            assert token == next_id(want, vocab=size)
            want.append(token)
    assert sum(not stream.errno for *_, stream in streams) > 10
    for name in ("a", "b"):
        clients[0].ask("unload_model", name, True)
    sim.leave()


# --- planted bugs --------------------------------------------------------------------------------


def room_from_any_model(patch: pytest.MonkeyPatch) -> None:
    take, order = Model.take, IdleOrder()

    def sees_all(self: Model, loaded: Any, *rest: Any) -> str:
        why = take(self, loaded, *rest)
        self.sched.pager.idle = order
        return why

    patch.setattr(Model, "take", sees_all)


def kv_survives_an_unload(patch: pytest.MonkeyPatch) -> None:
    lose_device = Model.lose_device

    def stays(self: Model) -> Any:
        return [] if self.state is ModelState.GONE else lose_device(self)

    patch.setattr(Model, "lose_device", stays)
    patch.setattr(BlockPool, "lose_all", lambda self: None)


def driver_is_not_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Device, "remove", lambda self, model, note: self.models.remove(model) or [])


def always_the_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ModelTable, "served", lambda self, model: None)


def not_loaded_again(patch: pytest.MonkeyPatch) -> None:
    lose_device = Model.lose_device

    def stays_up(self: Model) -> Any:
        state = self.state
        hit = lose_device(self)
        self.state = state
        return hit

    patch.setattr(Model, "lose_device", stays_up)


def results_of_a_model_that_has_gone(patch: pytest.MonkeyPatch) -> None:
    def flown(self: Device, answer: Any) -> Any:
        return self._flights.of(answer, self.epoch)

    patch.setattr(Device, "_flown", flown)


def small_pools(_: Sim) -> None:
    """Two models whose contexts do not fit their pools."""
    sim = Sim(num_blocks=12)
    client = sim.client()
    loaded(client, num_blocks=12)
    prompts = [list(range(n, n + 60)) for n in range(8)]
    handles = [context(client, "other" if ids[0] % 2 else "null", ids) for ids in prompts]
    infers = [client.send("infer", handle, 20, 0.0) for handle in handles]
    sim.until(lambda: all(infer.done for infer in infers))
    assert infers[0].tokens == expected(prompts[0], 20)
    sim.leave()


FOUND_BY: list[tuple[Any, Any]] = [
    (room_from_any_model, small_pools),
    (kv_survives_an_unload, test_a_model_in_use_stays_unless_forced),
    (driver_is_not_told, test_unload_gives_everything_back),
    (always_the_first, test_models_take_turns),
    (not_loaded_again, test_all_models_come_back_after_a_death_and_streams_go_on),
    (results_of_a_model_that_has_gone, lambda sim: test_unloading_in_the_middle_of_a_step(sim, 0)),
]


@pytest.mark.parametrize(("plant", "test"), FOUND_BY, ids=lambda it: getattr(it, "__name__", "-"))
def test_a_planted_bug_is_found(plant: Any, test: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    test(Sim())
    plant(monkeypatch)
    with pytest.raises((AssertionError, KernelPanic, KeyError, IndexError)):
        test(Sim())
