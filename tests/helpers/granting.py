"""Two users of one simulated kernel, and what they grant each other.

Alice runs as the kernel's uid, Bob as another: nothing of hers is his but by a grant.
"""

from typing import Any

from syscalls import abi
from syscalls.abi import Access
from tests.helpers.sim import Sim, SimClient

ALL = Access(15)
BOB = 0
SIZE = 16
PROMPT = [7 * n % 251 for n in range(40)]
OWN = [3, 1, 4, 1, 5]


class Pair:
    """Two programs of two users; `prompt` is a context of the first."""

    def __init__(self, ids: list[int] = PROMPT, **config: Any) -> None:
        self.sim = Sim(**config)
        self.alice, self.bob = self.sim.client(), self.sim.client(uid=BOB)
        self.ids = ids
        self.prompt = self.alice.context(ids)
        self.sim.settle()

    def grant(self, access: Access = ALL, **how: Any) -> bytes:
        """Return the id of a grant of the prompt."""
        return granted(self.alice, self.prompt, access, **how)

    def opened(self, access: Access = ALL, **how: Any) -> int:
        """Return a context of Bob's that was opened."""
        return opened(self.bob, self.grant(access, **how))


def granted(client: SimClient, ctx: int, access: Access = ALL, **how: Any) -> bytes:
    reply = client.ask("grant_ctx", *abi.GrantCtx(ctx, int(access), **how))
    assert reply.errno == 0, reply.message
    grant: bytes = reply.result.grant
    return grant


def opened(client: SimClient, grant: bytes) -> int:
    handle = client.new_handle()
    reply = client.ask("open_ctx", grant, handle)
    assert reply.errno == 0, reply.message
    return handle


def pid_of(client: SimClient) -> int:
    pid: int = client.ask("stat_task").result.pid
    return pid
