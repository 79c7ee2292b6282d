"""Grants as flows: what both `Grant` twins do.

`context.grant(Access.READ | Access.INFER, ttl_s=600)` makes one. Its id goes to another program, by
whatever way; there `task.open_ctx(id)` is a context with these rights, until `grant.revoke()`.
"""

from contextlib import suppress

from syscalls import abi
from syscalls.ctxflow import ContextFlow
from syscalls.errors import EBADCTX
from syscalls.flow import Caller, Flow


class GrantFlow:
    """A grant that this program has made."""

    def __init__(self, caller: Caller, name: bytes) -> None:
        self.caller = caller
        self.name = name
        self.revoked = False

    def revoke(self) -> Flow[int]:
        """Take it back; the second time nothing happens."""
        if self.revoked:
            return 0
        self.revoked = True
        with suppress(EBADCTX):  # its time or its openings are over, and nothing is left of it
            return (yield from revoke(self.caller, self.name))
        return 0


def grant(
    context: ContextFlow,
    access: abi.Access,
    length: int | None,
    uid: int | None,
    pid: int,
    ttl_s: float,
    opens: int,
) -> Flow[GrantFlow]:
    """Let others open a context."""
    caller = context.caller
    made: abi.GrantCtxResult = yield from caller.ask(
        "grant_ctx", context.handle, int(access), length, uid, pid, ttl_s, opens
    )
    return GrantFlow(caller, made.grant)


def open_ctx(caller: Caller, name: bytes, title: str | None) -> Flow[ContextFlow]:
    """Make a context from a granted one."""
    handle = caller.session.handle()
    try:
        made: abi.OpenCtxResult = yield from caller.ask("open_ctx", name, handle, title)
    except BaseException:
        caller.forget("free_ctx", handle)
        raise
    about = abi.AllocCtxResult(made.model, made.max_ctx, made.block_size, made.load)
    context = ContextFlow(caller, handle, about)
    context.length = made.length
    context.access = abi.Access(made.access)
    return context


def revoke(caller: Caller, name: bytes) -> Flow[int]:
    """Take a grant back by its id; return how many contexts have lost their ids."""
    result: abi.RevokeResult = yield from caller.ask("revoke", name)
    return result.contexts


class GrantFacts:
    """What both Grant twins tell without asking the kernel."""

    def __init__(self, flow: GrantFlow) -> None:
        self._flow = flow

    @property
    def id(self) -> bytes:
        """What whoever is to open the context must have: keep it as a password is kept."""
        return self._flow.name

    def __repr__(self) -> str:
        return "<Grant, revoked>" if self._flow.revoked else "<Grant>"  # not its id
