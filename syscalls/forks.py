"""Several contexts from one, as flows: n answers to one prompt, and scores of continuations.

    context ---+--- fork 0 --infer, seed s0-->          the prompt is computed once: forks share
               +--- fork 1 --infer, seed s1-->          its blocks, computed or not
               +--- fork 2 ...

All calls are under way before the first answer is waited for. Whatever happens, no fork is left
that nobody holds.
"""

import secrets
from array import array
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar, overload

from syscalls.conversation import encode
from syscalls.ctxflow import ContextFacts, ContextFlow
from syscalls.errors import EINVAL
from syscalls.flow import Flow, finish
from syscalls.generation import Generation
from syscalls.sampling import Asked
from syscalls.session import Pending, Token

C = TypeVar("C", bound=ContextFacts)
S = TypeVar("S")


class Scored(NamedTuple):
    """Ids, each with its log-probability given all before it, and the best alternatives."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[list[tuple[int, float]], ...] = ()  # of each id, if any were asked for

    @property
    def total(self) -> float:
        """The log-probability of all of them together."""
        return sum(self.logprobs)

    @property
    def mean(self) -> float:
        """That per id: what compares texts of different lengths."""
        return self.total / len(self.logprobs)


class Answer(NamedTuple):
    """One of n: a fork and what it generates."""

    context: ContextFlow
    generation: Generation


class Held(Sequence[S], Generic[C, S]):
    """The streams of n answers, and the forks under them: what both twins have of `Answers`."""

    def __init__(self, contexts: list[C], streams: list[S]) -> None:
        self.contexts = contexts
        self._streams = streams
        self._kept: set[int] = set()

    @overload
    def __getitem__(self, index: int) -> S: ...
    @overload
    def __getitem__(self, index: slice) -> list[S]: ...
    def __getitem__(self, index: int | slice) -> S | list[S]:
        return self._streams[index]

    def __len__(self) -> int:
        return len(self._streams)

    def keep(self, index: int) -> C:
        """Return the fork of one answer, which will not be freed with the others."""
        context = self.contexts[index]
        self._kept.add(context.handle)
        return context

    def free_all(self) -> Flow[None]:
        """Give the forks back that nobody has freed or kept, all at once."""
        held = [context.flow for context in self.contexts if context.handle not in self._kept]
        calls = []
        for context in held:
            if not context.freed:
                calls.append(context.caller.call("free_ctx", context.handle))
                context.freed = True  # only now: an interrupted program may come again
        for call in calls:
            yield from finish(call)


def infer_n(context: ContextFlow, n: int, asked: Asked, same_seed: bool) -> Flow[list[Answer]]:
    """Start n infers, each on a fork of its own."""
    sampling = asked.sampling
    if sampling.seed is None:
        sampling = sampling._replace(seed=secrets.randbits(64))
    forks = yield from context.fork(n, None)
    try:
        answers: list[Answer] = []
        for index, fork in enumerate(forks):
            own = asked._replace(sampling=sampling.of_fork(index, same_seed))
            answers.append(Answer(fork, (yield from fork.infer(own))))
    except BaseException:
        _give_up(forks)
        raise
    return answers


def score(
    context: ContextFlow, continuations: "Sequence[str | Sequence[int] | array[int]]", top: int
) -> Flow[list[Scored]]:
    """Score each continuation after the context, which does not change.

    After a message to the assistant, the prompt that makes it answer goes first, as in an infer.
    """
    if isinstance(continuations, str):
        raise EINVAL("score takes a list of continuations, and got one text", "put it into a list")
    if context.length == 0:
        raise EINVAL("the context is empty: nothing goes before the first id", "append ids first")
    prompt = yield from context.answer_prompt()
    parts = []
    for number, what in enumerate(continuations):
        ids = (
            encode((yield from context.text()), what, context.length)
            if isinstance(what, str)
            else what
        )
        if len(ids) == 0:
            raise EINVAL(f"continuation {number} has no ids")
        parts.append([*prompt, *ids])
    if not parts:
        return []
    forks = yield from context.fork(len(parts), None)
    try:
        calls = [
            fork.caller.call("score", fork.handle, fork.length + len(prompt), top, ids=ids)
            for fork, ids in zip(forks, parts, strict=True)
        ]
        scores = []
        for call in calls:
            scores.append((yield from _scored(call)))
        return scores
    finally:
        _give_up(forks)


def prompt_logprobs(context: ContextFlow, top: int) -> Flow[Scored]:
    """Score the ids of the context itself, from the second on."""
    (fork,) = yield from context.fork(1, None)
    try:
        return (yield from _scored(fork.caller.call("score", fork.handle, 1, top)))
    finally:
        _give_up([fork])


def _scored(call: Pending) -> Flow[Scored]:
    ids: list[int] = []
    logprobs: list[float] = []
    best: list[list[tuple[int, float]]] = []
    while True:
        while call.events:
            event = call.events.popleft()
            if isinstance(event, Token):
                ids += event.ids
                logprobs += event.logprobs or ()
                best += event.top or ()
        if call.done:
            call.value()
            return Scored(tuple(ids), tuple(logprobs), tuple(best))
        yield call


def _give_up(forks: Iterable[ContextFlow]) -> None:
    """Free forks without waiting for the answers; what runs on them ends."""
    for fork in forks:
        if not fork.freed:
            fork.freed = True
            fork.caller.forget("free_ctx", fork.handle)
