"""Saves: what was saved comes back, whatever goes wrong in the middle, and the books balance."""

import errno
from collections.abc import Callable
from typing import Any

import pytest

from drivers.store import base
from kernel.storehost import StoreState
from syscalls.errors import Errno
from tests.helpers.disks import FailingFiles, MemoryFiles
from tests.helpers.saving import (
    ALL,
    BLOCK_BYTES,
    DEVICE,
    DISK,
    HOST,
    SavingSim,
    Tiers,
    goes_on,
    grown,
    load,
    slowly,
)
from tests.helpers.sim import UID, Reply, SimClient

OLD = [(7 * n + 3) % 251 for n in range(70)]
NEW = [(11 * n + 5) % 251 for n in range(150)]
SIZE = 16


def full(ids: list[int]) -> int:
    """Return the positions of the blocks that are full, and computed after an infer."""
    return (len(ids) - 1) // SIZE * SIZE


@pytest.fixture(params=[DEVICE, ALL], ids=["device", "all tiers"])
def tiers(request: pytest.FixtureRequest) -> Tiers:
    found: Tiers = request.param
    return found


# --- there and back -------------------------------------------------------------------------------


def test_a_save_outlives_the_kernel_twice(tiers: Tiers) -> None:
    sim = SavingSim(tiers=tiers)
    client = sim.client()
    handle, ids = grown(client, NEW)
    saved = client.ask("save_ctx", handle, "n", b"mine")
    assert saved.errno == 0, saved.message
    assert saved.result[:2] == (len(ids), full(ids))
    sim.end()
    for _ in range(2):
        sim = SavingSim(sim.files, tiers)
        client = sim.client()
        handle, reply = load(client, "n")
        result = reply.result
        assert (result.length, result.kv_tokens, result.note) == (len(ids), full(ids), "")
        assert (result.model, result.extra, result.saved_wall_s) == ("null", b"mine", 1e9)
        answer = goes_on(client, handle, ids)
        assert answer.result.cached == full(ids), "none of it is computed again"
        sim.check()
        sim.end()


def test_a_save_is_of_the_moment(tiers: Tiers) -> None:
    """What happens to the context after the call changes nothing, freeing it included."""
    sim = SavingSim(tiers=tiers)
    client = sim.client()
    handle, ids = grown(client, NEW)
    saving = client.send("save_ctx", handle, "n")
    client.send("trim_ctx", handle, 20)
    client.send("append", handle, ids=[1, 2, 3])
    client.send("free_ctx", handle)
    sim.until(lambda: saving.done)
    assert saving.result.length == len(ids)
    handle, _ = load(client, "n")
    goes_on(client, handle, ids)
    sim.end()


def test_a_save_during_an_infer_is_cut_at_the_committed_length() -> None:
    sim = SavingSim()
    client = sim.client()
    handle = client.context(NEW)
    running = client.send("infer", handle, 40, 0.0)
    sim.until(lambda: len(running.tokens) >= 5)
    saving = client.send("save_ctx", handle, "n")
    sim.until(lambda: saving.done and running.done)
    ids = (NEW + running.tokens)[: saving.result.length]
    assert len(NEW) + 5 <= len(ids) < len(NEW) + 40
    handle, _ = load(client, "n")
    goes_on(client, handle, ids)
    sim.end()


def test_a_save_of_shared_blocks_leaves_the_others_alone(tiers: Tiers) -> None:
    sim = SavingSim(tiers=tiers)
    client = sim.client()
    handle, ids = grown(client, NEW)
    forks = [client.new_handle() for _ in range(3)]
    for fork in forks:
        client.send("fork_ctx", handle, fork)
    client.send("append", forks[0], ids=[9, 9])
    assert client.ask("save_ctx", forks[0], "n").result.length == len(ids) + 2
    sim.check()
    for fork in (handle, *forks[1:]):
        goes_on(client, fork, ids)
    loaded, reply = load(client, "n")
    assert reply.result.kv_tokens >= full(ids), "found where it is, not read"
    goes_on(client, loaded, [*ids, 9, 9])
    sim.end()


@pytest.mark.parametrize("below", [HOST, DISK, ALL], ids=["host", "disk", "both"])
@pytest.mark.parametrize("waits", [0, 1, 2, 50], ids="after {} turns".format)
def test_a_save_of_what_is_swapped_out(below: Tiers, waits: int) -> None:
    """Some of it in a lower tier, some on its way there, some on the device."""
    sim = SavingSim(tiers=below)
    client = sim.client()
    handle, ids = grown(client, NEW)
    assert client.ask("advise_ctx", handle, "demote").errno == 0
    for _ in range(waits):
        sim.turn(pump=1)
    saving = client.send("save_ctx", handle, "n")
    for _ in slowly(sim, lambda: saving.done):
        sim.check()
    assert saving.result.kv_tokens == full(ids)
    row = client.ask("stat_ctx", handle).result
    assert waits < 50 or row.host_blocks + row.disk_blocks >= full(ids) // SIZE
    sim.end()
    again = SavingSim(sim.files, below)
    client = again.client()
    handle, _ = load(client, "n")
    goes_on(client, handle, ids)
    again.end()


@pytest.mark.parametrize("at", range(12))
def test_the_store_dies_in_the_middle_of_a_save_from_the_swap_file(at: int) -> None:
    """What was in the swap file is gone; the context computes it again, and is saved again."""
    sim = SavingSim(tiers=DISK)
    client = sim.client()
    handle, ids = grown(client, NEW)
    assert client.ask("advise_ctx", handle, "demote").errno == 0
    for _ in range(50):
        sim.turn()
    saving = client.send("save_ctx", handle, "n")
    _with_accident(sim, client, saving, _store_dies, at)
    assert saving.errno in (0, Errno.EIO)
    sim.until(lambda: not sim.system.store.busy)
    goes_on(client, handle, ids)
    assert client.ask("save_ctx", handle, "n").result.kv_tokens == full(ids)
    goes_on(client, load(client, "n")[0], ids)
    sim.end()


def test_saves_and_swap_share_the_window_and_not_a_byte_of_it() -> None:
    """Long ones, while another context goes to the swap file and comes back."""
    sim = SavingSim(tiers=DISK, num_blocks=256)
    client = sim.client()
    handle, ids = grown(client, [n % 251 for n in range(70 * SIZE)])
    other, _ = grown(client, NEW)
    store: Any = sim.store
    part, send, seen = sim.system.save_part, store.send, set()

    def watched(message: Any) -> None:
        match message:
            case base.SwapOut(blocks=blocks, window=0) | base.SwapIn(blocks=blocks, window=0):
                offsets, least, most = _offsets(blocks), part, sim.config.bulk_bytes
            case base.AddBlocks(_, _, 0, offsets) | base.ReadBlocks(_, _, 0, offsets):
                least, most = 0, part
            case _:
                offsets, least, most = (0,), 0, BLOCK_BYTES
        assert min(offsets) >= least and max(offsets) + BLOCK_BYTES <= most, message
        seen.add(type(message))
        send(message)

    def busily(call: Reply) -> None:
        client.send("advise_ctx", other, "demote")
        for moment in slowly(sim, lambda: call.done):
            if moment % 4 == 3:
                client.send("advise_ctx", other, "demote" if moment % 8 == 7 else "prefetch")
        assert call.errno == 0, call.message

    store.send = watched
    busily(client.send("save_ctx", handle, "n"))
    client.ask("free_ctx", handle)
    sim.drop_cache()
    handle = client.new_handle()
    busily(client.send("load_ctx", handle, "n"))
    goes_on(client, handle, ids)
    assert {base.SwapOut, base.SwapIn, base.AddBlocks, base.ReadBlocks} <= seen
    sim.end()


def _offsets(blocks: tuple[base.Block, ...]) -> tuple[int, ...]:
    return tuple(block.window_offset for block in blocks)


def test_a_slot_that_is_damaged_ends_the_kv_of_a_save() -> None:
    sim = SavingSim(tiers=DISK)
    client = sim.client()
    handle, ids = grown(client, NEW)
    assert client.ask("advise_ctx", handle, "demote").errno == 0
    for _ in range(50):
        sim.turn()
    disk: Any = sim.files
    (swap,) = set(disk.inodes) - set(disk.names_of.values())
    slot = sim.system.context(sim.system.tasks.find(2), handle).blocks[4].disk
    disk.inodes[swap][slot * BLOCK_BYTES] ^= 1
    saved = client.ask("save_ctx", handle, "n")
    assert (saved.errno, saved.result.kv_tokens) == (0, 4 * SIZE)
    goes_on(client, handle, ids)
    goes_on(client, load(client, "n")[0], ids)
    sim.end()


def test_a_save_that_replaces_one_and_one_that_is_dropped() -> None:
    sim = SavingSim()
    client = sim.client()
    first, old = grown(client, OLD)
    second, new = grown(client, NEW)
    client.ask("save_ctx", first, "n")
    generation = client.ask("save_ctx", second, "n").result.generation
    handle, reply = load(client, "n")
    assert reply.result.generation == generation
    goes_on(client, handle, new)
    assert [row[0] for row in client.ask("list_saves").result.rows] == ["n"]
    assert client.ask("drop_save", "n").errno == 0
    assert client.ask("drop_save", "n").errno == Errno.ENOENT
    assert load(client, "n")[1].errno == Errno.ENOENT
    assert client.ask("list_saves").result.rows == []
    goes_on(client, first, old)
    sim.end()


def test_two_owners_have_a_name_each() -> None:
    """Nobody sees, loads, replaces or drops what is another's; the list tells of one's own."""
    sim = SavingSim()
    mine, theirs = sim.client(uid=UID), sim.client(uid=0)
    handle, old = grown(mine, OLD)
    other, new = grown(theirs, NEW)
    assert mine.ask("save_ctx", handle, "n").errno == 0
    assert load(theirs, "n")[1].errno == Errno.ENOENT
    assert theirs.ask("list_saves").result.rows == []
    assert theirs.ask("drop_save", "n").errno == Errno.ENOENT
    assert theirs.ask("save_ctx", other, "n").errno == 0
    for client, ids in ((mine, old), (theirs, new)):
        (row,) = client.ask("list_saves").result.rows
        assert row[4] == len(ids)
        goes_on(client, load(client, "n")[0], ids)
    assert theirs.ask("drop_save", "n").errno == 0
    goes_on(mine, load(mine, "n")[0], old)
    sim.end()


def test_many_saves_are_listed_in_pages() -> None:
    sim = SavingSim()
    client = sim.client()
    handle = client.context([1, 2, 3])
    names = sorted(f"save {n:03}" for n in range(300))
    for name in names:
        assert client.ask("save_ctx", handle, name).errno == 0
    found: list[str] = []
    while True:
        page = client.ask("list_saves", found[-1] if found else "").result
        found += [row[0] for row in page.rows]
        if not page.more:
            break
    assert found == names
    sim.end()


# --- room -----------------------------------------------------------------------------------------


def test_a_load_into_a_full_pool_has_its_ids(tiers: Tiers) -> None:
    """What finds no room is computed when it is needed, and the result says so."""
    sim = SavingSim(tiers=tiers, num_blocks=16, overcommit=16.0)
    client = sim.client()
    handle, ids = grown(client, NEW)
    client.ask("save_ctx", handle, "n")
    client.ask("free_ctx", handle)
    sim.drop_cache()
    others = [grown(client, [seed] * 60) for seed in range(1, 4)]
    handle, reply = load(client, "n")
    assert reply.errno == 0, reply.message
    assert tiers.host_blocks or "found no free place" in reply.result.note
    sim.check()
    goes_on(client, handle, ids)
    for other, theirs in others:
        goes_on(client, other, theirs)
    sim.end()


def test_a_block_that_is_larger_than_the_window_goes_without_kv() -> None:
    sim = SavingSim(bulk_bytes=64)
    client = sim.client()
    handle, ids = grown(client, NEW)
    saved = client.ask("save_ctx", handle, "n")
    assert (saved.errno, saved.result.kv_tokens) == (0, 0)
    handle, _ = load(client, "n")
    goes_on(client, handle, ids)
    sim.end()


def test_a_save_with_kv_is_loaded_where_the_window_is_too_small() -> None:
    sim = SavingSim()
    client = sim.client()
    handle, ids = grown(client, NEW)
    client.ask("save_ctx", handle, "n")
    sim.end()
    sim = SavingSim(sim.files, bulk_bytes=64)
    client = sim.client()
    handle, reply = load(client, "n")
    assert reply.errno == 0 and "window" in reply.result.note
    goes_on(client, handle, ids)
    sim.end()


# --- in the middle --------------------------------------------------------------------------------


def _driver_dies(sim: SavingSim, _: SimClient) -> None:
    sim.link.die()


def _store_dies(sim: SavingSim, _: SimClient) -> None:
    assert sim.store is not None
    sim.store.die()


def _both_die(sim: SavingSim, client: SimClient) -> None:
    _driver_dies(sim, client)
    _store_dies(sim, client)


def _task_is_killed(sim: SavingSim, client: SimClient) -> None:
    sim.front.dead.add(client.route)


def _model_is_unloaded(sim: SavingSim, _: SimClient) -> None:
    helper = sim.client()
    if sim.system.device.models.find("null"):
        helper.send("unload_model", "null", True)


ACCIDENTS = [_driver_dies, _store_dies, _both_die, _task_is_killed, _model_is_unloaded]
Accident = Callable[[SavingSim, SimClient], None]


def _prepared(tiers: Tiers) -> tuple[SavingSim, list[int]]:
    """Return a kernel whose user has a save `n`, and its ids."""
    sim = SavingSim(tiers=tiers)
    client = sim.client()
    handle, old = grown(client, OLD)
    assert client.ask("save_ctx", handle, "n").errno == 0
    assert client.ask("exit").errno == 0
    sim.drop_cache()
    return sim, old


def _survives(sim: SavingSim, possible: list[list[int]]) -> int:
    """Check the books, and that one of the possible saves loads in the next kernel; say which."""
    sim.settle()
    sim.until(lambda: not sim.system.store.busy)
    sim.check()
    if not sim.system.device.models.find("null"):
        helper = sim.client()
        assert helper.ask("load_model", "null", sim.config.model_dir).errno == 0
    sim.end()
    again = SavingSim(sim.files, sim.tiers)
    client = again.client()
    handle, reply = load(client, "n")
    assert reply.errno == 0, reply.message
    ids = next(ids for ids in possible if len(ids) == reply.result.length)
    goes_on(client, handle, ids)
    again.end()
    return possible.index(ids)


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_at_every_moment_of_a_save(accident: Accident, tiers: Tiers) -> None:
    """The old save is there or the new one, and what was answered is true."""
    at, seen, errors = 0, [], set()
    over = False
    while not over:
        sim, old = _prepared(tiers)
        client = sim.client()
        handle, new = grown(client, NEW)
        saving = client.send("save_ctx", handle, "n")
        over = not _with_accident(sim, client, saving, accident, at)
        if saving.done and saving.errno:
            errors.add(Errno(saving.errno))
        which = _survives(sim, [old, new])
        assert which == 1 or not (saving.done and saving.errno == 0), "what was answered is there"
        seen.append(which)
        at += 1
    assert at > 6
    assert errors <= {Errno.EIO, Errno.ENODEV, Errno.EAGAIN}, errors
    assert seen[-1] == 1


def _with_accident(
    sim: SavingSim, client: SimClient, call: Reply, accident: Accident, at: int
) -> bool:
    """Let a call go on slowly, with an accident at a moment; False if it was over before."""
    happened = False
    for moment in slowly(sim, lambda: call.done or client.route in sim.front.dead):
        if moment == at:
            accident(sim, client)
            happened = True
        sim.check()
    return happened


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_at_every_moment_of_a_load(accident: Accident, tiers: Tiers) -> None:
    at, over = 0, False
    while not over:
        sim, ids = _prepared(tiers)
        client = sim.client()
        handle = client.new_handle()
        loading = client.send("load_ctx", handle, "n")
        over = not _with_accident(sim, client, loading, accident, at)
        served = sim.system.device.models.find("null") is not None
        if loading.done and loading.errno == 0 and served:
            goes_on(client, handle, ids)
        elif loading.done and loading.errno:
            assert loading.errno in (Errno.EIO, Errno.ENODEV, Errno.EAGAIN, Errno.ENOENT)
            assert client.ask("stat_ctx", handle).errno == Errno.EBADCTX
        _survives(sim, [ids])
        at += 1
    assert at > 5


def test_errands_wait_for_each_other_and_all_end() -> None:
    """Many at once, of one context and of several, while driver and store die now and then."""
    sim = SavingSim(tiers=ALL)
    client = sim.client()
    made = [grown(client, [seed] * (20 * seed)) for seed in range(1, 6)]
    calls: list[Reply] = []
    for n in range(60):
        handle, _ = made[n % 5]
        if n % 3:
            calls.append(client.send("save_ctx", handle, f"n{n % 5}"))
        else:
            calls.append(client.send("load_ctx", client.new_handle(), f"n{n % 5}"))
    for moment in slowly(sim, lambda: all(call.done for call in calls), 20_000):
        if moment % 97 == 96:
            _driver_dies(sim, client)
        if moment % 61 == 60:
            _store_dies(sim, client)
    for handle, ids in made:
        goes_on(client, handle, ids)
    assert {call.errno for call in calls} <= {0, Errno.EIO, Errno.ENOENT, Errno.EAGAIN}
    assert any(call.errno == 0 for call in calls)
    sim.settle()
    sim.end()


# --- the disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_every_operation_of_a_save(code: int, forever: bool) -> None:
    """The kernel lives, the context is as it was, its owner is told, old or new is there."""
    at, hit = 1, True
    seen: list[int] = []
    while hit:
        disk = MemoryFiles()
        failing = FailingFiles(disk, 0, code, False)  # not yet
        sim, old = _prepared_on(failing)
        client = sim.client()
        handle, new = grown(client, NEW)
        failing.count, failing._at, failing._forever = 0, at, forever
        saving = client.ask("save_ctx", handle, "n")
        hit = failing.hit
        if saving.errno:
            assert saving.errno in (Errno.ENOSPC, Errno.EIO), saving.message
            assert saving.message
        goes_on(client, handle, new)
        failing._at, failing._forever = 0, False
        assert client.ask("list_saves").errno == 0
        sim.files = disk
        which = _survives(sim, [old, new])
        assert saving.errno or which == 1, "what was answered is there"
        seen.append(which)
        at += 1
    assert at > 20 and (seen[0], seen[-1]) == (0, 1)


def _prepared_on(files: Any) -> tuple[SavingSim, list[int]]:
    sim = SavingSim(files)
    client = sim.client()
    handle, old = grown(client, OLD)
    assert client.ask("save_ctx", handle, "n").errno == 0
    client.ask("exit")
    sim.drop_cache()
    return sim, old


def test_a_kernel_that_is_killed_at_every_operation_of_a_save() -> None:
    """What its disk has then, the next kernel loads: the old save or the new one."""
    sim, old = _prepared(DEVICE)
    disk = sim.files
    assert isinstance(disk, MemoryFiles)
    before, first = disk.copy(), len(disk.log)
    client = sim.client()
    handle, new = grown(client, NEW)
    assert client.ask("save_ctx", handle, "n").errno == 0
    log = disk.log[first:]
    sim.end()
    seen = []
    for count in range(len(log) + 1):
        again = SavingSim(before.replayed(log[:count]))
        client = again.client()
        handle, reply = load(client, "n")
        ids = new if reply.result.length == len(new) else old
        goes_on(client, handle, ids)
        assert reply.result.kv_tokens == full(ids)
        seen.append(ids is new)
        again.end()
    assert len(log) > 10 and not seen[0] and seen[-1]
    assert seen == sorted(seen)


def test_blocks_that_are_damaged_are_computed_again(tiers: Tiers) -> None:
    sim, old = _prepared(tiers)
    disk = sim.files
    assert isinstance(disk, MemoryFiles)
    sim.end()
    (path,) = [path for path in disk.names_of if path.endswith(".safetensors")]
    data = disk.inodes[disk.names_of[path]]
    data[-1] ^= 1  # in the last block
    sim = SavingSim(disk, tiers)
    client = sim.client()
    handle, reply = load(client, "n")
    assert "1 blocks of it are damaged" in reply.result.note
    assert 0 < reply.result.kv_tokens < full(old)
    goes_on(client, handle, old)
    data[len(data) // 3] ^= 1
    sim.end()


# --- a store that is not there --------------------------------------------------------------------


def test_without_a_state_directory_saves_are_not_supported() -> None:
    sim = SavingSim(state_dir="", keys_dir="")
    client = sim.client()
    handle = client.context([1, 2, 3])
    for reply in (
        client.ask("save_ctx", handle, "n"), load(client, "n")[1], client.ask("list_saves"),
        client.ask("drop_save", "n"),
    ):  # fmt: skip
        assert reply.errno == Errno.ENOTSUP and "--state-dir" in reply.message
    sim.end()


def _gone(disk: MemoryFiles) -> str:
    del disk.names_of["/keys/root.key"]
    return "there is no root key"


def _another(disk: MemoryFiles) -> str:
    disk.inodes[disk.names_of["/keys/root.key"]][0] ^= 1
    return "is under the root key"


@pytest.mark.parametrize("wrong", [_gone, _another])
def test_a_store_without_its_key_says_so_and_the_kernel_runs_on(
    wrong: Callable[[MemoryFiles], str],
) -> None:
    sim, old = _prepared(DEVICE)
    disk = sim.files
    assert isinstance(disk, MemoryFiles)
    sim.end()
    before = disk.copy()
    said = wrong(disk)
    sim = SavingSim(disk)
    assert sim.system.store.state is StoreState.FAILED
    client = sim.client()
    handle, ids = grown(client, OLD)
    for _ in range(3):
        reply = client.ask("save_ctx", handle, "n")
        assert reply.errno == Errno.EIO and said in reply.message
    (row,) = client.ask("snapshot", "store").result.rows
    assert (row[0], row[1]) == ("failed", 0) and said in row[2] and "llmos key restore" in row[3]
    goes_on(client, handle, ids)
    assert sim.system.store.epoch == 1, "nobody tries it again"
    sim.end()
    sim = SavingSim(before)
    client = sim.client()
    goes_on(client, load(client, "n")[0], old)
    sim.end()


def test_a_store_that_fails_while_it_is_opened_again_answers_all() -> None:
    """It dies in the middle of a save, and is refused its keys when it comes back."""
    for at in range(0, 30, 3):
        sim, old = _prepared(DEVICE)
        disk = sim.files
        assert isinstance(disk, MemoryFiles)
        client = sim.client()
        handle, _ = grown(client, NEW)
        calls = [client.send("save_ctx", handle, name) for name in ("n", "m", "o")]
        for moment in slowly(sim, lambda: all(call.done for call in calls)):  # noqa: B023
            if moment == at:
                key = disk.names_of.pop("/keys/root.key")
                _store_dies(sim, client)
        assert {call.errno for call in calls} <= {0, Errno.EIO}
        sim.until(lambda: not sim.system.store.busy)  # noqa: B023
        store = sim.system.store
        assert (store.state, store.epoch) == (StoreState.FAILED, 2), "and is not tried again"
        sim.settle()
        sim.end()
        disk.names_of["/keys/root.key"] = key
        again = SavingSim(disk)
        assert load(again.client(), "n")[1].errno == 0
        again.end()
    assert old


def test_a_context_that_is_freed_while_it_is_loaded() -> None:
    """A client that gives up waiting frees what it has not got yet."""
    for at in range(9):
        sim, _ = _prepared(DEVICE)
        client = sim.client()
        handle = client.new_handle()
        loading = client.send("load_ctx", handle, "n")
        freed = None
        for moment in slowly(sim, lambda: loading.done):  # noqa: B023
            if moment == at:
                freed = client.send("free_ctx", handle)
        if freed is None:
            freed = client.send("free_ctx", handle)
        sim.until(lambda: freed.done)  # noqa: B023
        assert loading.errno in (0, Errno.ECANCELED) and freed.errno == 0
        assert client.ask("stat_ctx", handle).errno == Errno.EBADCTX
        sim.end()


@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
def test_a_disk_that_fails_at_every_operation_of_a_load(forever: bool) -> None:
    """The ids come or an error does; KV that could not be read is computed again."""
    at, hit, notes = 1, True, set()
    while hit:
        disk = MemoryFiles()
        failing = FailingFiles(disk, 0, errno.EIO, False)
        sim, old = _prepared_on(failing)
        client = sim.client()
        failing.count, failing._at, failing._forever = 0, at, forever
        handle, reply = load(client, "n")
        hit = failing.hit
        failing._at, failing._forever = 0, False
        if reply.errno:
            assert reply.errno in (Errno.EIO, Errno.ECORRUPT), reply.message
            assert client.ask("stat_ctx", handle).errno == Errno.EBADCTX
        else:
            notes.add(bool(reply.result.note))
            goes_on(client, handle, old)
        goes_on(client, load(client, "n")[0], old)
        sim.check()
        sim.end()
        at += 1
    assert at > 5 and notes == {False, True}


def test_a_store_that_gives_up_while_it_serves_takes_no_context_with_it() -> None:
    """What is in its swap file cannot come back: it is computed again, not waited for."""
    sim = SavingSim(tiers=DISK)
    client = sim.client()
    handle, ids = grown(client, NEW)
    assert client.ask("advise_ctx", handle, "demote").errno == 0
    sim.until(lambda: not sim.model.disk_swap.busy)
    assert client.ask("stat_ctx", handle).result.disk_blocks > 0
    assert sim.store is not None
    sim.store._emit(base.Fault(0, base.FaultKind.IO, "the folder has gone", ""))
    sim.until(lambda: sim.system.store.state is StoreState.FAILED)
    goes_on(client, handle, ids)
    sim.end()


def test_contexts_that_wait_to_be_saved_count() -> None:
    sim = SavingSim(max_contexts=6)
    client = sim.client()
    handle, _ = grown(client, OLD)
    saving = [client.send("save_ctx", handle, f"n{number}") for number in range(8)]
    sim.kernel_turn()
    client.read()
    assert [save.errno for save in saving] == [0] * 5 + [Errno.EAGAIN] * 3
    assert "6 contexts exist, the limit is 6" in saving[-1].message
    sim.until(lambda: all(save.done for save in saving))
    assert client.ask("save_ctx", handle, "again").errno == 0
    sim.end()
