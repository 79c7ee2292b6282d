"""Grants: capabilities with which tasks let others open their contexts.

A grant names a context and says what may be done with it. Whoever shows its id (128 random bits,
told once) opens a context that shares the granted one's blocks as a fork does. What is opened can
be granted on, with fewer rights or the same, so grants form trees:

    context of A --grant--> opened by B --fork--> another of B's
                        `-> opened by C --grant--> opened by D        revoking the first takes all

A grant is in the table until it is revoked, or until nothing is left of it: nobody can open it any
more (its context was freed, its time or its openings are over), and nothing that was opened lives.
Revoking is a mark that holds at once, for the whole tree: what it is to be seen by looks upwards.
The contexts below lose their blocks after that, in slices (kernel/sys_grant.py).

The table keeps a keyed hash of each id, not the id: what compares equal is found, in a time that
tells nothing of ids that are not the caller's own. "Not yours", "never existed" and "revoked" are
one answer.
"""

import hashlib
import hmac
from collections.abc import Iterable
from random import Random
from typing import TypeVar

from kernel.context import Context
from kernel.panic import check
from syscalls.abi import Access
from syscalls.errors import EBADCTX, EDQUOT, EINVAL, EPERM, EREVOKED

K = TypeVar("K")

MAX_DEPTH = 16
"""Of a tree: how often a context can be granted on. Each call on an opened one looks up so far."""


class Grant:
    """One grant."""

    def __init__(self, pid: int, ctx: Context, access: Access, length: int | None) -> None:
        self.pid = pid  # the task that granted it
        self.ctx: Context | None = ctx  # None: it was freed, and can be opened no more
        self.access = access
        self.length = length  # the most ids to be opened; None: all
        self.uid: int | None = None  # who may open it; None: anyone
        self.for_pid = 0  # which task may; 0: any
        self.expires = 0.0  # when it can be opened no more; 0: never
        self.opens: int | None = None  # that are left; None: no limit
        self.revoked = False
        self.digest = b""
        self.parent: Grant | None = ctx.grant  # through which its context was opened
        self.children: dict[Grant, None] = {}  # grants of contexts that were opened through it
        self.contexts: dict[Context, None] = {}  # these, and their forks

    @property
    def depth(self) -> int:
        """Grants on the way to the root, itself included."""
        return 1 + (self.parent.depth if self.parent is not None else 0)

    def opens_for(self, uid: int, pid: int, now: float) -> bool:
        """Whether a task may open it."""
        bound = self.uid not in (None, uid) or self.for_pid not in (0, pid)
        return not bound and self.opens_at(now) and not self.taken

    def opens_at(self, now: float) -> bool:
        """Whether there is anything that somebody could still open."""
        in_time = not self.expires or now < self.expires
        return self.ctx is not None and in_time and self.opens != 0

    @property
    def taken(self) -> bool:
        """Whether it was revoked, or one was that it comes from."""
        grant: Grant | None = self
        while grant is not None:
            if grant.revoked:
                return True
            grant = grant.parent
        return False


class GrantTable:
    """All grants of a kernel."""

    def __init__(self, random: Random, max_grants: int) -> None:
        self.max_grants = max_grants  # of one task
        self._random = random
        self._secret = random.randbytes(32)
        self._grants: dict[bytes, Grant] = {}  # by digest
        self._of_task: dict[int, dict[Grant, None]] = {}
        self._of_ctx: dict[Context, dict[Grant, None]] = {}

    def __len__(self) -> int:
        return len(self._grants)

    def add(self, grant: Grant, now: float) -> bytes:
        """Enter a grant and return its id; EDQUOT, EINVAL if there would be too many."""
        count = self._count(grant.pid, now)
        if count >= self.max_grants:
            raise EDQUOT(
                f"task {grant.pid} has {count} grants, the limit is {self.max_grants}",
                "revoke some, or start the kernel with a larger --max-grants",
                {"needed": count + 1, "limit": self.max_grants},
            )
        if grant.depth > MAX_DEPTH:
            raise EINVAL(
                f"the context was granted on {MAX_DEPTH} times, that is the limit",
                "ask for a grant whoever is nearer to the first",
            )
        name = self._random.randbytes(16)
        grant.digest = self._digest(name)
        assert grant.ctx is not None
        self._grants[grant.digest] = grant
        self._of_task.setdefault(grant.pid, {})[grant] = None
        self._of_ctx.setdefault(grant.ctx, {})[grant] = None
        if grant.parent is not None:
            grant.parent.children[grant] = None
        return name

    def _count(self, pid: int, now: float) -> int:
        """Return how many grants a task has; if it is at the limit, those that are over go."""
        if len(self._of_task.get(pid, ())) >= self.max_grants:
            for grant in self.of_task(pid):
                self._forget_spent(grant, now)
        return len(self._of_task.get(pid, ()))

    def find(self, name: bytes) -> Grant | None:
        """Return the grant that has an id."""
        digest = self._digest(name)
        grant = self._grants.get(digest)
        same = hmac.compare_digest(digest, grant.digest if grant is not None else bytes(32))
        return grant if same else None

    def _digest(self, name: bytes) -> bytes:
        return hashlib.blake2b(name, digest_size=32, key=self._secret).digest()

    def of_task(self, pid: int) -> list[Grant]:
        """Return the grants that a task has made."""
        return list(self._of_task.get(pid, ()))

    # --- what comes and goes ------------------------------------------------------------------

    def opened(self, ctx: Context) -> None:
        """Note a context that was opened, or forked from such a one."""
        if ctx.grant is not None:
            ctx.grant.contexts[ctx] = None

    def freed(self, ctx: Context, now: float) -> None:
        """Note that a context has gone: its grants cannot be opened any more."""
        for grant in list(self._of_ctx.pop(ctx, ())):
            grant.ctx = None
            self._forget_spent(grant, now)
        grant = ctx.grant
        if grant is not None and ctx in grant.contexts:
            del grant.contexts[ctx]
            self._forget_spent(grant, now)

    def _forget_spent(self, grant: Grant, now: float) -> None:
        """Forget a grant of which nothing is left, and those above it that only it was left of."""
        while not (grant.contexts or grant.children or grant.revoked or grant.opens_at(now)):
            self.remove(grant)
            if grant.parent is None:
                return
            grant = grant.parent

    def remove(self, grant: Grant) -> None:
        """Take a grant out that nothing was opened through, or is left of."""
        check(not grant.contexts and not grant.children, "a grant goes, and its contexts stay")
        if self._grants.pop(grant.digest, None) is None:
            return
        _discard(self._of_task, grant.pid, grant)
        if grant.ctx is not None:
            _discard(self._of_ctx, grant.ctx, grant)
        if grant.parent is not None:
            grant.parent.children.pop(grant, None)

    def check(self, contexts: Iterable[Context]) -> None:
        """Panic unless the books agree; for tests."""
        live = {ctx for ctx in contexts if ctx.grant is not None and not ctx.revoked}
        named: set[Context] = set()
        for digest, grant in self._grants.items():
            check(digest == grant.digest, "a grant lies under another's id")
            check(grant in self._of_task[grant.pid], "a grant is not its task's")
            check(grant.ctx is None or grant in self._of_ctx[grant.ctx], "nor its context's")
            above = grant.parent
            check(above is None or grant in above.children, "a grant is not under its parent")
            check(above is None or grant.access in above.access, "a right was added")
            named.update(() if grant.taken else grant.contexts)
        check(named == live, f"{len(live)} contexts are opened, grants name {len(named)}")
        listed = sum(map(len, self._of_task.values()))
        check(listed == len(self._grants), f"{listed} grants of tasks, {len(self._grants)} in all")


def _discard(table: dict[K, dict[Grant, None]], key: K, grant: Grant) -> None:
    grants = table[key]
    del grants[grant]
    if not grants:
        del table[key]


# --- what an opened context may ---------------------------------------------------------------


def unknown() -> EBADCTX:
    """Return the one answer to an id that opens nothing for the caller, whatever the reason."""
    return EBADCTX("there is no such grant, or not for this task", "ask whoever gave the id")


def revoked(ctx: Context) -> EREVOKED:
    """Return the end of everything on a context whose grant was taken back."""
    return EREVOKED(
        f"the grant through which context {ctx.handle} was opened has been revoked",
        "free it, and ask for another grant",
    )


def check_revoked(ctx: Context) -> None:
    """Raise EREVOKED if the grant was taken back through which a context was opened."""
    if ctx.revoked:
        raise revoked(ctx)


def require(ctx: Context, need: Access, what: str) -> None:
    """Raise EPERM unless the context has the rights that `what` needs."""
    lacks = need & ~ctx.access
    if lacks:
        names = " and ".join(str(right.name).lower() for right in lacks)
        raise EPERM(
            f"{what} needs the right {names}, and context {ctx.handle} was opened without it",
            "ask for another grant",
        )
