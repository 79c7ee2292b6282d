"""The kernel's log: what an operator wants to know is in it, once, and nothing can fill it."""

import logging
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from kernel.burst import WHOLE, WINDOW_S, Bursts
from kernel.logring import FACILITIES, MAX_TEXT, PAGE, LogRing, RingHandler
from syscalls.abi import KernelRow, LogLevel, LogRow, Sig
from syscalls.errors import EINVAL
from tests.helpers.crowd import Crowd
from tests.helpers.sim import Clock, Sim

# --- the ring -----------------------------------------------------------------------------------


def fill(ring: LogRing, count: int, text: str = "x") -> None:
    for _ in range(count):
        ring.add(LogLevel.INFO, "kern", text, 5.0)


def test_records_have_numbers_times_and_an_order() -> None:
    clock = Clock()
    ring = LogRing(clock)
    clock.now += 1.5
    ring.add(LogLevel.WARN, "mm", "first", 1000.0)
    clock.now += 1.0
    ring.add(LogLevel.ERR, "drv", "second", 999.0)  # somebody has set the wall clock
    first, second = ring.read(0).rows
    assert first == LogRow(1, 1.5, 1000.0, LogLevel.WARN, "mm", "first")
    assert second == LogRow(2, 2.5, 999.0, LogLevel.ERR, "drv", "second")


def test_the_ring_never_grows_and_numbers_go_on() -> None:
    ring = LogRing(Clock(), max_records=10, max_bytes=1000)
    for count in range(1, 500):
        fill(ring, 1, "x" * (count % 300))
        assert len(ring) <= 10
        assert sum(len(row.text) for row in ring.read(0).rows) <= 1000
        assert ring.read(0).rows[-1].number == count == ring.end - 1
    fill(ring, 3, "y" * 900)
    assert len(ring) == 1


def test_a_reader_goes_on_from_the_cursor_and_sees_what_is_missing() -> None:
    ring = LogRing(Clock(), max_records=300)
    assert ring.read(0) == ring.read(1) == ([], 1, 1)
    fill(ring, 2 * PAGE)
    seen, cursor = [], 0
    while True:
        page = ring.read(cursor)
        assert len(page.rows) <= PAGE
        seen += [row.number for row in page.rows]
        cursor = page.cursor
        if cursor == page.end:
            break
    assert seen == list(range(1, 2 * PAGE + 1))
    assert ring.read(cursor).rows == []
    fill(ring, 400)
    late = ring.read(cursor).rows
    assert late[0].number == 2 * PAGE + 400 - 300 + 1, "and the reader can tell"
    with pytest.raises(EINVAL, match="no record"):
        ring.read(ring.end + 1)
    with pytest.raises(EINVAL):
        ring.read(2**64 - 1)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\x1b[2Jb\x07\x9b\x7f", "a�[2Jb���"),
        ("two\nlines\tand", "two lines and"),
        ("half \ud800 a character", "half ? a character"),
        ("ü" * MAX_TEXT, "ü" * ((MAX_TEXT - 3) // 2) + "…"),
        ("", ""),
    ],
    ids=["escapes", "lines", "surrogate", "long", "empty"],
)
def test_a_record_is_one_line_that_any_terminal_can_show(text: str, kept: str) -> None:
    ring = LogRing(Clock())
    ring.add(LogLevel.INFO, "drv", text, 0.0)
    (row,) = ring.read(0).rows
    assert row.text == kept
    assert len(row.text.encode()) <= MAX_TEXT


def test_every_facility_is_of_a_module_that_exists() -> None:
    assert set(FACILITIES.values()) == {"mm", "sched", "drv", "ctx", "ipc", "model"}
    for name in FACILITIES:
        assert find_spec(name) is not None, name


def test_a_handler_names_level_and_facility() -> None:
    ring = LogRing(Clock())
    logger = logging.Logger("kernel.pager", logging.DEBUG)
    logger.addHandler(RingHandler(ring))
    for level in (10, 20, 25, 30, 40, 50):
        logger.log(level, "%d of %s", level, "it")
    rows = ring.read(0).rows
    assert [row.level for row in rows] == [7, 6, 6, 4, 3, 2]
    assert {row.facility for row in rows} == {"mm"}
    assert rows[0].text == "10 of it" and rows[0].wall_s > 1e9
    other = logging.Logger("kernel.main")
    other.addHandler(RingHandler(ring))
    other.warning("x")
    assert ring.read(ring.end - 1).rows[0].facility == "kern"


# --- bursts -------------------------------------------------------------------------------------


def test_a_burst_is_told_in_a_few_lines_and_nothing_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "kernel")
    clock, logger = Clock(), logging.getLogger("kernel.loop")
    bursts = Bursts(clock)
    assert bursts.deadline is None
    for number in range(100):
        bursts.tell(logger, logging.WARNING, "refused", f"number {number}")
    bursts.tell(logger, logging.INFO, "dropped", "7", 7, whole=1)
    bursts.tell(logger, logging.INFO, "dropped", "5", 5, whole=1)
    assert caplog.messages == [*(f"refused: number {n}" for n in range(WHOLE)), "dropped: 7"]
    assert bursts.deadline == clock.now + WINDOW_S
    bursts.expire(clock.now + WINDOW_S / 2)
    assert len(caplog.messages) == WHOLE + 1
    bursts.expire(clock.now + WINDOW_S)
    assert caplog.messages[WHOLE + 1 :] == [
        f"refused: {100 - WHOLE} more in 5 s", "dropped: 5 more in 5 s",
    ]  # fmt: skip
    assert bursts.deadline is None
    bursts.tell(logger, logging.WARNING, "refused", "again")
    assert caplog.messages[-1] == "refused: again"
    bursts.tell(logger, logging.WARNING, "other", "x", 1, whole=0)
    bursts.close()
    assert caplog.messages[-1] == "other: 1 more in 5 s"


# --- what is in it ------------------------------------------------------------------------------


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What the kernel logs, each with its facility."""
    told: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(f"{FACILITIES.get(record.name, 'kern')} {record.getMessage()}")

    logger, ear = logging.getLogger("kernel"), Ear()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(ear)
    yield told
    logger.removeHandler(ear)
    logger.setLevel(before)


def test_the_life_of_a_driver(heard: list[str]) -> None:
    sim = Sim(max_restarts=1)
    assert any(line.startswith("drv device null0: epoch 1 begins, driver host ") for line in heard)
    up = [line for line in heard if line.startswith("model null: up on null0 in epoch 1 after ")]
    assert len(up) == 1 and "64 KV blocks of " in up[0] and "of weights" in up[0]
    sim.link.die()
    sim.turn()
    sim.settle()
    assert sum("epoch 1 ended: null0: loopback driver died" in line for line in heard) == 1
    assert sum("epoch 2 begins" in line for line in heard) == 1
    sim.link.die()
    sim.turn()
    assert any("device null0 failed: " in line and "1 restarts" in line for line in heard)


def test_a_decode_logs_nothing(heard: list[str]) -> None:
    sim = Sim()
    client = sim.client()
    context = client.context([1, 2, 3])
    del heard[:]
    assert len(client.ask("infer", context, 300, 0.0).tokens) == 300
    assert heard == []
    sim.leave()


def test_calls_that_limits_refuse(heard: list[str]) -> None:
    sim = Sim(num_blocks=8)
    client = sim.client()
    client.ask("alloc_ctx", 1, None, "a secret title")
    client.ask("append", 1, ids=[201] * 1000)
    client.ask("append", 1, ids=[202] * 90000)
    client.ask("append", 77, ids=[1])
    refused = [line for line in heard if "refused" in line]
    assert len(refused) == 2, "a wrong handle is no limit's"
    assert refused[0].startswith(
        "ipc append refused by a limit (ENOMEM): program 5000: needs 63 KV"
    )
    assert refused[1].startswith("ipc append refused by a limit (E2BIG): program 5000: 90000 ids")
    for _ in range(500):
        client.send("append", 1, ids=[201] * 1000)
    sim.turn()
    sim.clock.now += WINDOW_S
    sim.turn()
    refused = [line for line in heard if "ENOMEM" in line]
    assert len(refused) == WHOLE + 1
    assert refused[-1].endswith(f"{501 - WHOLE} more in 5 s")
    assert not any("secret" in line or "201" in line for line in heard)
    sim.leave()


def test_sessions_that_are_closed_on(heard: list[str]) -> None:
    sim = Sim(stalled_s=5.0)
    rude, deaf = sim.client(), sim.client()
    for _ in range(3):
        rude.send_raw([b"\xc1"])
    deaf.send("infer", deaf.context([1]), 1000, 0.0)
    sim.front.blocked.add(deaf.route)
    for _ in range(10):
        sim.turn()
    sim.clock.now += 6
    sim.turn()
    closed = [line for line in heard if "session closed" in line]
    assert closed == [
        "ipc session closed: program 5000 (task 2, c1): it broke the protocol",
        "ipc session closed: program 5001 (task 3, c2): its program read nothing for 5 s",
    ]
    sim.leave()


def test_a_program_that_ends_is_no_news(heard: list[str]) -> None:
    sim = Sim()
    first, second = sim.client(), sim.client()
    del heard[:]
    first.ask("exit")
    sim.front.dead.add(second.route)
    sim.turn()
    assert heard == []


def test_kills_and_who_did_it(heard: list[str]) -> None:
    sim = Sim()
    victim, killer = sim.client(), sim.client()
    killer.ask("kill", 2, int(Sig.KILL))
    killer.ask("kill", 99, int(Sig.KILL))
    told = [line for line in heard if "killed" in line]
    assert told == ["kern killed by KILL: task 2 (c1) by task 3 (c2)"]
    assert victim.session_events
    sim.leave()


def test_all_that_is_dropped_is_counted_in_the_log(heard: list[str]) -> None:
    sim = Sim(5, num_blocks=20)
    crowd = Crowd(sim, 12)
    crowd.run(1_500)
    sim.system.bursts.close()
    told = [line for line in heard if line.startswith("mm KV blocks dropped to make room: ")]
    amounts = [int(line.split(": ")[1].split()[0]) for line in told]
    assert sum(amounts) == sim.pool.evicted > 50
    assert len(told) <= 2 + 2 * sim.clock.now / WINDOW_S
    crowd.leave()
    sim.check_empty()


def test_the_log_is_read_by_calls() -> None:
    sim = Sim()
    client = sim.client()
    fill(sim.system.log, PAGE + 5)
    page = client.ask("log").result
    assert len(page.rows) == PAGE and page.cursor < page.end
    rest = client.ask("log", page.cursor).result
    assert len(rest.rows) == 5 and rest.cursor == rest.end
    row = KernelRow(*client.ask("snapshot", "kernel").result.rows[0])
    assert row.log_records == PAGE + 5
    sim.leave()


def test_a_kernel_with_a_window_open_wakes_up_for_it_once() -> None:
    sim = Sim()
    client = sim.client()
    for _ in range(10):
        client.ask("append", 1, ids=[1] * 90000)  # EBADCTX: no limit's
    assert sim.system.bursts.deadline is None
    client.context([1])
    for _ in range(10):
        client.ask("append", 1, ids=[1] * 90000)
    assert 0 < (sim.kernel.timeout() or 0) <= WINDOW_S
    sim.clock.now += WINDOW_S
    assert sim.kernel.timeout() == 0.0
    sim.turn()
    assert sim.kernel.timeout() is None
    sim.leave()
