"""The policy of a running kernel: chosen from the next step on, by whom it may be."""

from syscalls.errors import Errno
from tests.helpers.oracle import expected
from tests.helpers.sim import Sim


def test_a_policy_is_chosen_while_requests_run() -> None:
    sim = Sim(num_blocks=30, block_size=4)
    client, other = sim.client(), sim.client()
    prompts = [[7 * n, 3, 5] for n in range(12)]
    infers = [client.send("infer", client.context(ids), 12, 0.0) for ids in prompts]
    for name in ("fifo", "priority", "fair"):
        answer = other.ask("set_policy", name).result
        assert (answer.policy, answer.policies) == (name, ["fair", "fifo", "priority"])
        for _ in range(5):
            sim.turn()
            sim.check()
    sim.until(lambda: all(infer.done for infer in infers))
    assert [infer.tokens for infer in infers] == [expected(ids, 12) for ids in prompts]
    sim.leave()


def test_who_may_choose_and_what() -> None:
    sim = Sim()
    client, root = sim.client(), sim.client(uid=0)
    unknown = client.ask("set_policy", "lottery")
    assert unknown.errno == Errno.ENOENT and "fair, fifo, priority" in unknown.message
    assert root.ask("set_policy", "fifo").errno == Errno.EPERM
    assert root.ask("set_policy").result.policy == "fair"
    assert root.ask("set_policy", "fair").errno == 0, "nothing changes"
