"""Grants at random, against a plain model of who may what: trees of any shape, and any end."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from kernel.loopback import LoopbackLink
from syscalls.abi import Access
from syscalls.errors import Errno
from tests.helpers.granting import ALL, BOB
from tests.helpers.oracle import expected
from tests.helpers.sim import UID, Sim

HOST = 1 << 16


@dataclass
class Ctx:
    """A context, by a plain model."""

    client: int
    handle: int
    ids: list[int]
    access: Access = ALL
    foreign: int = 0
    above: "tuple[Grant, ...]" = ()
    live: bool = True

    @property
    def revoked(self) -> bool:
        return any(grant.taken for grant in self.above)


@dataclass
class Grant:
    """A grant, likewise."""

    name: bytes
    ctx: Ctx
    access: Access
    length: int | None
    taken: bool = False
    opens: int = 0
    above: "tuple[Grant, ...]" = field(default=())

    @property
    def openable(self) -> bool:
        dead = self.taken or any(grant.taken for grant in self.above)
        return self.ctx.live and not dead and self.opens != 0


class Trees:
    """Four clients of two users who grant, open, pass on, fork, free, revoke and die at random."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        link = LoopbackLink("null0", host_bytes=HOST, beside=Random(seed))
        self.sim = Sim(seed, num_blocks=24, host_bytes=HOST, overcommit=100.0, link=link)
        self.clients = [self.sim.client(uid=uid) for uid in (UID, BOB, UID, BOB)]
        self.contexts: list[Ctx] = []
        self.grants: list[Grant] = []
        self.refused = 0

    def run(self, operations: int) -> None:
        names = ["alloc", *["grant"] * 4, *["open"] * 6, "fork", "fork", "grow", "grow", "free"]
        for _ in range(operations):
            name = self.random.choice([*names, "revoke"])
            if self.random.random() < 0.005:
                name = "die"
            getattr(self, name)()
            self.sim.check()
            self.probe()
        for ctx in self.contexts:
            if ctx.live:
                self.probe(ctx)

    def pick(self, things: list[Any]) -> Any:
        return self.random.choice(things) if things else None

    def some(self) -> Ctx | None:
        """Return a context, more often a deep one than by chance."""
        live = [ctx for ctx in self.contexts if ctx.live]
        if not live:
            return None
        chosen = [self.random.choice(live) for _ in range(3)]
        return max(chosen, key=lambda ctx: (not ctx.revoked, len(ctx.above)))

    def alloc(self) -> None:
        number = self.random.randrange(4)
        ids = [self.random.randrange(251) for _ in range(self.random.randrange(1, 50))]
        self.contexts.append(Ctx(number, self.clients[number].context(ids), ids))

    def grant(self) -> None:
        ctx = self.some()
        if ctx is None:
            return
        anything = Access(self.random.randrange(1, 16))
        access = ctx.access if self.random.random() < 0.6 else anything
        length = self.pick([None, self.random.randrange(60)])
        opens = self.random.choice([0, 0, 1, 2])
        call = ("grant_ctx", ctx.handle, int(access), length, None, 0, 0.0, opens)
        reply = self.clients[ctx.client].ask(*call)
        need = access | Access.FORK
        if length is not None and length < ctx.foreign:
            need |= Access.READ
        if ctx.revoked:
            assert reply.errno == Errno.EREVOKED
        elif ctx.above and need not in ctx.access:
            assert reply.errno == Errno.EPERM, "a right that the grantor does not have"
            self.refused += 1
        else:
            assert reply.errno == 0, reply.message
            grant = Grant(reply.result.grant, ctx, access, length, False, opens or -1, ctx.above)
            self.grants.append(grant)

    def open(self) -> None:
        grants = [grant for grant in self.grants if grant.openable]
        if self.random.random() < 0.2:
            grants = self.grants
        grant, number = self.pick(grants), self.random.randrange(4)
        if grant is None:
            return
        client = self.clients[number]
        handle = client.new_handle()
        reply = client.ask("open_ctx", grant.name, handle)
        if not grant.openable:
            assert reply.errno == Errno.EBADCTX
            client.handle -= 1
            return
        assert reply.errno == 0, reply.message
        assert Access(reply.result.access) == grant.access
        grant.opens -= 1
        ids = grant.ctx.ids[: grant.length]
        above = (*grant.above, grant)
        self.contexts.append(Ctx(number, handle, list(ids), grant.access, len(ids), above))

    def fork(self) -> None:
        ctx = self.some()
        if ctx is None or ctx.revoked or Access.FORK not in ctx.access:
            return
        client = self.clients[ctx.client]
        handle = client.new_handle()
        assert client.ask("fork_ctx", ctx.handle, handle).errno == 0
        args = (list(ctx.ids), ctx.access, ctx.foreign, ctx.above)
        self.contexts.append(Ctx(ctx.client, handle, *args))

    def grow(self) -> None:
        """Infer, with ids: what comes is right whoever has computed what lies before."""
        ctx = self.some()
        if ctx is None or ctx.revoked or Access.INFER not in ctx.access:
            return
        ids = [self.random.randrange(251) for _ in range(self.random.randrange(1, 20))]
        reply = self.clients[ctx.client].ask("infer", ctx.handle, 3, 0.0, ids=ids)
        assert reply.errno == 0, reply.message
        ctx.ids += ids
        assert reply.tokens == expected(ctx.ids, 3)
        ctx.ids += reply.tokens

    def free(self) -> None:
        ctx = self.some()
        if ctx is not None:
            assert self.clients[ctx.client].ask("free_ctx", ctx.handle).errno == 0
            ctx.live = False

    def revoke(self) -> None:
        grant = self.pick([grant for grant in self.grants if not grant.taken])
        if grant is None:
            return
        lost = [c for c in self.contexts if c.live and grant in c.above and not c.revoked]
        reply = self.clients[grant.ctx.client].ask("revoke", grant.name)
        if lost or grant.openable:
            assert reply.result.contexts == len(lost)
        else:
            assert reply.errno == Errno.EBADCTX or not reply.result.contexts
        grant.taken = True

    def die(self) -> None:
        number = self.random.randrange(4)
        self.sim.front.dead.add(self.clients[number].route)
        self.sim.turn()
        for ctx in self.contexts:
            ctx.live = ctx.live and ctx.client != number
        for grant in self.grants:
            grant.taken = grant.taken or grant.ctx.client == number
        uid = self.clients[number].uid
        self.clients[number] = self.sim.client(uid=uid)

    def probe(self, ctx: Ctx | None = None) -> None:
        """What a context gives is what the model says."""
        ctx = ctx or self.some()
        if ctx is None:
            return
        read = self.clients[ctx.client].ask("read_ctx", ctx.handle)
        if ctx.revoked:
            assert read.errno == Errno.EREVOKED
        elif ctx.foreign and Access.READ not in ctx.access:
            assert read.errno == Errno.EPERM
        else:
            assert list(read.ids) == ctx.ids


@pytest.mark.parametrize("seed", range(4))
def test_random_trees_of_grants(seed: int) -> None:
    trees = Trees(seed)
    trees.run(1000)
    assert trees.refused > 10 and sum(grant.taken for grant in trees.grants) > 20
    assert max(len(ctx.above) for ctx in trees.contexts) >= 4
    assert sum(ctx.revoked for ctx in trees.contexts) > 20
    trees.sim.leave()
