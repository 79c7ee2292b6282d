"""Grammars: what infers are to follow, and whether the driver of a device has it.

    WAITING --Compile--> COMPILING --Compiled--> READY --nobody uses it, room is needed--> gone
       ^----- the driver's epoch ends: all of them ----|      COMPILING --refused--> gone

The kernel reads no grammar: its text is bytes that the driver is asked to compile, one at a time,
beside its steps. An infer waits for that, and one whose grammar is refused ends with EINVAL. Infers
of one user that have the same text share a Grammar, and the last ones that were used are kept for
the next infer; those of another user are not shared, for time would tell who has used which.
"""

import logging
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple

from drivers import base
from kernel.answer import Lie
from kernel.context import Context
from kernel.grant import require
from kernel.link import Link
from kernel.model import Model
from kernel.request import Request
from kernel.watch import Patience, Watch
from syscalls.abi import Access, GrammarKind, Infer
from syscalls.errors import EAGAIN, EINVAL, EIO, ENOTSUP, KernelError

log = logging.getLogger(__name__)

MAX_DEATHS = 2
"""Epochs that may end while one grammar is being compiled."""
MAX_STORY = 1000
"""Characters kept of why a grammar is refused."""
REFUSALS: dict[int, type[KernelError]] = {
    base.FaultKind.PLAN_INVALID: EINVAL, base.FaultKind.UNSUPPORTED: ENOTSUP,
}  # fmt: skip


class GrammarState(Enum):
    WAITING = "waiting"
    COMPILING = "compiling"
    READY = "ready"


class GrammarKey(NamedTuple):
    """What is the same grammar."""

    model: int
    uid: int
    kind: int
    text: bytes


class Grammar:
    """One grammar of one user and model. `number` is the driver's name for it."""

    def __init__(self, number: int, key: GrammarKey, model: Model) -> None:
        self.number = number
        self.key = key
        self.model = model
        self.state = GrammarState.WAITING
        self.users: set[Request] = set()  # that are not done
        self.pid = 0  # of the task that was the first to use it
        self.deaths = 0

    @property
    def ready(self) -> bool:
        return self.state is GrammarState.READY


Ended = list[tuple[Request, KernelError]]
"""Requests that end, each with its error."""


def check_grammar(ctx: Context, args: Infer, length: int) -> None:
    """Raise EINVAL or EPERM unless an infer may be asked to follow this grammar.

    `length` is that of the context with the ids of the call.
    """
    if not args.grammar_kind:
        if args.grammar or args.grammar_from is not None:
            raise EINVAL("a grammar without its kind", "set grammar_kind")
        return
    if args.grammar_kind not in list(GrammarKind):
        kinds = ", ".join(f"{kind.value} {kind.name.lower()}" for kind in GrammarKind)
        raise EINVAL(f"grammar_kind {args.grammar_kind}; there are {kinds}")
    if not args.grammar:
        raise EINVAL("the grammar is empty", "leave grammar_kind out for any text")
    if args.ignore_eos:
        hint = "leave ignore_eos out: the text ends where the grammar does"
        raise EINVAL("ignore_eos with a grammar: it would not end", hint)
    start = length if args.grammar_from is None else args.grammar_from
    if start > length:
        raise EINVAL(f"grammar_from {start} of a context of {length} ids")
    if start < ctx.foreign:
        # Whether ids fit a grammar tells what they are.
        require(ctx, Access.READ, f"a grammar for what it was opened with, {ctx.foreign} ids,")


class Grammars:
    """The grammars of one device."""

    def __init__(self, patience: Patience, clock: Callable[[], float]) -> None:
        self.watch = Watch(patience, clock)
        self._grammars: dict[GrammarKey, Grammar] = {}  # the one used last is the last
        self._forgotten: list[Grammar] = []  # the driver has not been told yet
        self._compiling: Grammar | None = None
        self._number = 0
        self._served = 0  # pid of the task whose grammar was compiled last

    def check_room(self) -> None:
        """Raise EAGAIN if as many are in use as a driver holds."""
        used = sum(bool(grammar.users) for grammar in self._grammars.values())
        if used >= base.MAX_GRAMMARS - 1:  # one that nobody uses any more may be compiling
            raise EAGAIN(
                f"{used} grammars are in use on this device, that is the limit",
                "wait until another infer has ended, or use the same text",
                {"used": used, "limit": used},
            )

    def use(self, request: Request, uid: int, kind: int, text: bytes) -> None:
        """Let a request follow a grammar; there is room for it."""
        model = request.ctx.model
        key = GrammarKey(model.number, uid, kind, text)
        grammar = self._grammars.pop(key, None)
        if grammar is None:
            self._make_room()
            self._number += 1
            grammar = Grammar(self._number, key, model)
            grammar.pid = request.ctx.pid
        self._grammars[key] = grammar
        grammar.users.add(request)
        request.grammar = grammar

    def _make_room(self) -> None:
        """Forget what nobody uses, the longest unused first, until one more fits."""
        for grammar in list(self._grammars.values()):
            if len(self._grammars) < base.MAX_GRAMMARS:
                return
            if not grammar.users and grammar is not self._compiling:
                self._drop(grammar)

    def _drop(self, grammar: Grammar) -> None:
        del self._grammars[grammar.key]
        if grammar.ready:
            self._forgotten.append(grammar)

    # --- the driver ---------------------------------------------------------------------------

    def send(self, link: Link, up: Iterable[Model]) -> None:
        """Tell the driver what to forget, and what to compile next; `up` are the models it has."""
        models = {model.number for model in up}
        for grammar in self._forgotten:
            if grammar.key.model in models:
                link.send(base.Forget(grammar.key.model, grammar.number))
        self._forgotten.clear()
        if self._compiling is not None:
            return
        for grammar in self._in_turn():
            if not grammar.users:
                self._drop(grammar)
            elif grammar.key.model in models:
                self._compiling, grammar.state = grammar, GrammarState.COMPILING
                self._served = grammar.pid
                self.watch.loading()
                key = grammar.key
                link.send(base.Compile(key.model, grammar.number, key.kind, key.text))
                return

    def _in_turn(self) -> list[Grammar]:
        """Return what waits: tasks take turns, so that one with many holds up no other."""
        waiting = [g for g in self._grammars.values() if g.state is GrammarState.WAITING]
        return sorted(waiting, key=lambda g: (g.pid <= self._served, g.pid, g.number))

    def compiled(self, answer: base.Compiled) -> Ended:
        """Take the driver's answer; return the requests that it ends. Lie if it was not asked."""
        grammar, self._compiling = self._compiling, None
        if grammar is None or (answer.model, answer.number) != (grammar.key.model, grammar.number):
            raise Lie(f"compiled grammar {answer.number} of model {answer.model}, unasked")
        self.watch.done()
        if not answer.kind:
            grammar.state = GrammarState.READY
            if self._grammars.get(grammar.key) is not grammar:
                self._forgotten.append(grammar)
            return []
        if answer.kind not in REFUSALS:
            raise Lie(f"refused a grammar with fault {answer.kind}")
        why = f"the grammar is refused: {answer.message[:MAX_STORY]}"
        return self._refuse(grammar, REFUSALS[answer.kind](why))

    def _refuse(self, grammar: Grammar, error: KernelError) -> Ended:
        if self._grammars.get(grammar.key) is grammar:
            del self._grammars[grammar.key]
        return [(request, error) for request in grammar.users]

    def lose(self) -> Ended:
        """Begin anew: the driver's epoch has ended, and with it all that it had compiled.

        Returns the requests that end because their grammar has ended the driver too often.
        """
        self.watch.done()
        self._forgotten.clear()
        blamed, self._compiling = self._compiling, None
        for grammar in self._grammars.values():
            grammar.state = GrammarState.WAITING
        if blamed is None:
            return []
        blamed.deaths += 1
        if blamed.deaths < MAX_DEATHS:
            return []
        log.error("%s: a grammar ended its device %d times", blamed.model.name, blamed.deaths)
        story = f"the device ended {blamed.deaths} times while compiling this grammar"
        return self._refuse(blamed, EIO(story))

    def remove_model(self, model: Model) -> None:
        """Drop those of a model that has gone; the driver will, too."""
        for grammar in list(self._grammars.values()):
            if grammar.model is model:
                del self._grammars[grammar.key]

    @property
    def waiting(self) -> bool:
        """Whether one is being compiled, or is to be."""
        states = (grammar.state for grammar in self._grammars.values() if grammar.users)
        return self._compiling is not None or GrammarState.WAITING in states
