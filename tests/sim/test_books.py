"""Usage and limits over restarts: of users always, of tasks that come back with a kernel."""

from typing import Any

import pytest

from drivers.store.files import Files
from kernel.books import NAME, WRITE_S
from syscalls.abi import UsageRow
from syscalls.errors import Errno
from tests.helpers.disks import MemoryFiles
from tests.helpers.hibernating import HibernatingSim, program
from tests.helpers.sim import SimClient


def row(client: SimClient, kind: str, pid: int = 0) -> Any:
    rows = [UsageRow(*each) for each in client.ask("snapshot", "usage").result.rows]
    return next(each for each in rows if each.kind == kind and (not pid or each.pid == pid))


def boot(files: Files, **config: Any) -> HibernatingSim:
    """Return a kernel that knows what the one before it has kept."""
    sim = HibernatingSim(files, **config)
    sim.until(lambda: sim.system.books.read or not sim.config.state_dir)
    return sim


def written(sim: HibernatingSim) -> int:
    """Return how often the kernel has had its books written."""
    return sum(
        getattr(message, "name", "") == NAME and hasattr(message, "meta") for message in sim.asked
    )


def work(sim: HibernatingSim, count: int = 5) -> SimClient:
    client = sim.client()
    assert client.ask("infer", client.context([1, 2, 3]), count, 0.0).errno == 0
    return client


def shut_down(sim: HibernatingSim) -> None:
    sim.client().send("shutdown", 0.0)
    sim.until(lambda: sim.kernel.stopped)


def test_what_a_user_has_used_is_there_after_a_restart() -> None:
    files, outputs = MemoryFiles(), []
    for _ in range(3):
        sim = boot(files)
        client = work(sim)
        owner, root = row(client, "owner"), row(client, "root")
        assert (owner.output_ids, owner.device_us) == (root.output_ids, root.device_us)
        outputs.append(owner.output_ids)
        assert client.ask("list_saves").result.rows == [], "nobody sees the books"
        shut_down(sim)
    assert outputs == [5, 10, 15]


def test_it_is_written_from_time_to_time_and_a_killed_kernel_loses_no_more() -> None:
    files = MemoryFiles()
    sim = boot(files)
    sim.settle()
    assert sim.kernel.timeout() is None, "nothing was charged"
    work(sim)
    work(sim, 7)
    sim.settle()
    assert written(sim) == 0
    sleeps = sim.kernel.timeout()
    assert sleeps is not None and WRITE_S - 1 < sleeps <= WRITE_S
    sim.clock.now += sleeps
    sim.until(lambda: written(sim) == 1 and not sim.system.books.working)
    assert sim.kernel.timeout() is None, "nothing has changed since"
    work(sim, 9)
    sim.crash()
    sim = boot(files)
    assert row(sim.client(), "owner").output_ids == 12


def test_limits_of_users_stay_and_count_what_was_used_before() -> None:
    files = MemoryFiles()
    sim = boot(files)
    client = work(sim)
    assert client.ask("set_limit", "output_ids", None, 8.0, 0, None, True).errno == 0
    shut_down(sim)
    sim = boot(files)
    client = sim.client()
    infer = client.ask("infer", client.context([1]), 9, 0.0)
    assert (infer.errno, len(infer.tokens)) == (Errno.EDQUOT, 3)
    assert client.ask("set_limit", "output_ids", None, None, 0, None, True).errno == 0
    assert client.ask("infer", client.context([1]), 9, 0.0).errno == 0
    shut_down(sim)
    client = boot(files).client()
    assert client.ask("snapshot", "limits").result.rows == []


def test_tasks_that_come_back_have_used_what_they_had() -> None:
    files = MemoryFiles()
    sim = boot(files)
    client, known = program(sim)
    assert client.ask("infer", client.context([1, 2, 3]), 5, 0.0).errno == 0
    for resource, soft, hard in (("output_ids", 6.0, 8.0), ("wall_s", None, 500.0)):
        assert client.ask("set_limit", resource, soft, hard).errno == 0
    before = row(client, "task", known.pid)
    sim.clock.now += 100.0
    assert sim.hibernate().errno == 0
    sim = boot(files)
    client, answer = sim.attach(known.pid, known.token)
    assert answer.errno == 0
    after = row(client, "task", known.pid)
    same = ("input_ids", "prompt_ids", "output_ids", "prefill_ids", "decode_ids", "device_us")
    assert [getattr(after, key) for key in same] == [getattr(before, key) for key in same]
    assert row(client, "owner").output_ids == 5, "of the user it is not counted twice"
    infer = client.ask("infer", 1, 9, 0.0)
    assert (infer.errno, len(infer.tokens)) == (Errno.EDQUOT, 3)
    used = {each[5]: each[8] for each in client.ask("snapshot", "limits").result.rows}
    assert used["output_ids"] == 8 and used["wall_s"] > 100
    sim.leave()


@pytest.mark.parametrize(
    "change", [b"\xc1", b"\x92\x02\x00", b"\x92\x01\x05", b"\x92\x01\x01\x94\x00\xc2\x01\x90"]
)
def test_books_that_are_no_books_are_told_and_begun_anew(
    change: bytes, monkeypatch: Any, caplog: Any
) -> None:
    files = MemoryFiles()
    sim = boot(files)
    work(sim)
    with monkeypatch.context() as patch:
        patch.setattr("kernel.journal.padded", lambda raw: change + bytes(-len(change) % 4))
        shut_down(sim)
    sim = boot(files)
    client = sim.client()
    assert row(client, "owner").output_ids == 0
    assert "the ledger of users is damaged" in caplog.text
    work(sim)
    shut_down(sim)
    assert row(boot(files).client(), "owner").output_ids == 5


def test_contexts_that_are_being_loaded_count() -> None:
    """Of n loads at once each would see all that is left."""
    sim = boot(MemoryFiles())
    client = sim.client()
    handle = client.context([1, 2, 3])
    assert client.ask("save_ctx", handle, "kept").errno == 0
    assert client.ask("set_limit", "contexts", None, 4.0).errno == 0
    loads = [client.send("load_ctx", client.new_handle(), "kept") for _ in range(6)]
    sim.until(lambda: all(load.done for load in loads))
    assert [load.errno for load in loads] == [0] * 3 + [Errno.EDQUOT] * 3
    sim.leave()


def test_a_kernel_without_a_state_directory_keeps_none() -> None:
    sim = boot(MemoryFiles(), state_dir="")
    work(sim)
    shut_down(sim)
    assert written(sim) == 0


def test_groups_that_come_back_have_their_limits_and_what_was_used() -> None:
    files = MemoryFiles()
    sim = boot(files)
    client, known = program(sim)
    operator = sim.client()
    assert operator.ask("group", known.pid, "lab").errno == 0
    assert operator.ask("set_limit", "output_ids", None, 8.0, 0, "lab").errno == 0
    assert client.ask("infer", client.context([1, 2, 3]), 5, 0.0).errno == 0
    assert sim.hibernate().errno == 0
    sim = boot(files)
    client, answer = sim.attach(known.pid, known.token)
    assert answer.errno == 0 and row(client, "group").output_ids == 5
    infer = client.ask("infer", 1, 9, 0.0)
    assert (infer.errno, len(infer.tokens)) == (Errno.EDQUOT, 3) and "group lab" in infer.message
    sim.leave()
    assert sim.client().ask("group", 0, "lab").errno == 0
    assert row(sim.clients[-1], "group").output_ids == 0, "a group that is made anew begins anew"
