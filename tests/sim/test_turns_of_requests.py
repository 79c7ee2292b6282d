"""Who runs when there is not enough: slots, block references, blocks. Everybody, in the end."""

from drivers import base
from kernel.loopback import LoopbackLink
from kernel.request import RequestState
from tests.helpers.liar import LyingLink
from tests.helpers.sim import Sim, SimClient

STOP, CONT = 19, 18


def limited(**limits: int) -> LyingLink:
    """A driver whose steps are smaller than the null driver's."""
    return LyingLink(base.Loaded, lambda loaded: [loaded._replace(**limits)], times=1 << 30)


def pid_of(sim: Sim, client: SimClient) -> int:
    task = sim.system.sessions[client.route].task
    assert task is not None
    return task.pid


def test_a_stopped_elder_gets_a_slot_when_it_goes_on() -> None:
    """The only slot is with a younger one that waits for blocks which the elder holds."""
    sim = Sim(link=limited(max_seqs=1), num_blocks=64)
    elder, younger, operator = sim.client(), sim.client(), sim.client()
    elder.ask("alloc_ctx", 1)
    elder.ask("append", 1, ids=[1] * 720)
    first = elder.send("infer", 1, 100, 0.0)
    sim.until(lambda: len(first.tokens) > 3)
    operator.ask("kill", pid_of(sim, elder), STOP)
    younger.ask("alloc_ctx", 1)
    second = younger.send("infer", 1, 10, 0.0, ids=[2] * 640)
    sim.until(lambda: sim.pool.num_free <= 2)
    operator.ask("kill", pid_of(sim, elder), CONT)
    sim.until(lambda: first.done and second.done, turns=3000)
    assert (len(first.tokens), len(second.tokens)) == (100, 10)


def test_a_long_request_is_not_overtaken_for_ever() -> None:
    """Short ones come all the time and would decode with the references that it needs."""
    sim = Sim(path="null:vocab=251,max_ctx=512", link=limited(max_block_refs=64), num_blocks=600)
    patient, crowd = sim.client(), sim.client()
    patient.ask("alloc_ctx", 1)
    patient.ask("append", 1, ids=[1] * 480)
    sim.settle()
    handles: dict[int, int] = {}

    def come() -> None:
        handle = crowd.new_handle()
        crowd.send("alloc_ctx", handle)
        handles[crowd.send("infer", handle, 40, 0.0, ids=[handle % 251] * 112).call] = handle

    for _ in range(8):
        come()
        for _ in range(3):
            sim.turn()
    infer = patient.send("infer", 1, 20, 0.0)
    for _ in range(600):
        sim.turn()
        for call in [call for call in handles if crowd.calls[call].done]:
            crowd.send("free_ctx", handles.pop(call))
            come()
        if infer.done:
            break
    assert len(infer.tokens) == 20


def test_prefill_that_nobody_waits_for_gives_way_to_an_infer() -> None:
    """400 appends of one client; another one's first token comes within a few steps."""
    sim = Sim(num_blocks=2000, prefill_chunk=512)
    flood, other = sim.client(), sim.client()
    other.ask("alloc_ctx", 1)
    other.ask("append", 1, ids=[5, 6])
    for handle in range(1, 401):
        flood.send("alloc_ctx", handle)
        flood.send("append", handle, ids=[handle % 251] * 500)
    sim.turn()
    assert len(sim.system.device.requests) > 200
    steps = sim.model.sched.steps
    infer = other.send("infer", 1, 3, 0.0)
    sim.until(lambda: infer.tokens)
    assert sim.model.sched.steps - steps <= 3


def test_background_prefill_evicts_nothing() -> None:
    """What nobody has asked for is not worth what somebody has."""
    sim = Sim(num_blocks=40, prefill_chunk=512)
    client = sim.client()
    for handle in range(1, 9):
        client.ask("alloc_ctx", handle)
        client.ask("append", handle, ids=[handle] * 160)
        sim.settle()
    assert sim.pool.evicted == 0
    assert sim.pool.num_free < 10, "as many as there was room for are computed"
    for handle in range(1, 9):
        assert client.ask("infer", handle, 1, 0.0).errno == 0


def test_ps_of_a_prefill_whose_copies_come_and_whose_context_is_cut() -> None:
    """Found by a walk: what comes next lay in a block that the context had no longer."""
    link = LoopbackLink("null0", host_bytes=4096)
    sim = Sim(link=link, num_blocks=17, host_bytes=4096)
    client, other = sim.client(), sim.client()
    handle = client.context(list(range(40)))
    assert client.ask("infer", handle, 1, 0.0).errno == 0
    assert client.ask("advise_ctx", handle, "demote").result.blocks == 3
    sim.settle()
    client.send("advise_ctx", handle, "prefetch")
    client.send("append", handle, ids=[7] * 20)
    sim.turn(pump=0)
    sim.turn(pump=0)
    request = next(iter(sim.loaded[0].sched.requests.values()))
    assert (request.state, request.lacks) == (RequestState.BLOCKED, 0), "copies come"
    client.send("trim_ctx", handle, 0)
    rows = other.send("snapshot", "tasks")
    sim.turn(pump=0)
    assert rows.errno == 0 and len(rows.result.rows) == 3
    sim.settle()
    sim.leave()
