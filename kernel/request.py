"""Request: one infer or score, or the background prefill of an append, scheduled on a context.

A request counts its own progress; ids belong to the context. States, with the letters of ps:

    QUEUED Q --> PREFILL P --> DECODE R --> DONE
       any of them --> BLOCKED D (waits for blocks) --> QUEUED; any --> DONE

DONE is final: results that arrive for a done request are discarded and counted.
"""

from array import array
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from kernel.account import Account
from kernel.context import Context
from kernel.panic import KernelPanic
from syscalls.abi import Finish, Infer, Score

if TYPE_CHECKING:
    from kernel.grammars import Grammar


class RequestState(Enum):
    """What the request is doing; the value is the letter that ps shows."""

    QUEUED = "Q"
    PREFILL = "P"
    DECODE = "R"
    BLOCKED = "D"
    DONE = "-"


class Token(NamedTuple):
    """One sampled id on its way to the client."""

    id: int
    logprob: float
    top: list[tuple[int, float]]
    last: bool = False  # its grammar allows nothing after it


class Scores(NamedTuple):
    """Ids of a context from where its score has come to, each with its probability."""

    logprobs: list[float]
    top: list[list[tuple[int, float]]]


class Request:
    """One request. Neither `infer` nor `score`: a prefill that nobody waits for."""

    def __init__(
        self,
        arrival: int,
        ctx: Context,
        infer: Infer | None,
        owner: Any,
        call: int,
        seed: int,
        payer: Account,
        rank: Account,
        score: Score | None = None,
    ) -> None:
        self.arrival = arrival  # order of acceptance, unique
        self.ctx = ctx
        self.infer = infer
        self.score = score
        self.owner = owner  # the Session that gets the events
        self.call = call
        self.seed = seed
        self.payer = payer  # is charged for what this computes
        self.rank = rank  # in whose place it stands in the order: the payer, or one that waits
        self.prompt = ctx.length
        self.cached = min(ctx.computed, max(0, ctx.length - 1))
        self.output = 0
        self.overrun = 0
        self.scored = score.start if score else 0  # the next position to be scored
        self.counted = infer is not None and (penalizes(infer) or infer.grammar_kind > 0)
        self.adjusted = infer is not None and (self.counted or bool(infer.logit_bias))
        from_ = infer.penalize_from if infer else None
        self.penalize_from = self.prompt if from_ is None else from_
        self.grammar: Grammar | None = None
        from_ = infer.grammar_from if infer else None
        self.grammar_from = self.prompt if from_ is None else from_
        self.told = 0  # ids that the driver has been told for this slot, if it is adjusted
        self.since = 0.0  # when an infer was accepted
        self.stop_ids: frozenset[int] = frozenset()
        self.start = 0  # where the next step begins, as its plan has found it
        self.sought = 0  # blocks that were looked for in the prefix index
        self.seeking = False  # there are more to look for
        self.missed = False  # one that was evicted
        self.lacks = 0  # blocks that it waits for, if it does
        self.slot: int | None = None
        self.generation = 0
        self.device_us = 0  # its part of the steps that it was in
        self.flying = 0  # steps in flight that it is in
        self.sampling = 0  # of them, those that sample an id for it
        self.ahead: deque[Any] = deque()  # its Entries among them whose ids are not known yet
        self.deaths = 0  # epochs that ended while this was in flight
        self.held = ""  # why it may not run: its task is stopped, its client does not read
        self._state = RequestState.QUEUED

    @property
    def state(self) -> RequestState:
        return self._state

    @property
    def shown(self) -> RequestState:
        """Its state for ps: what copies have brought since the last plan is not waited for."""
        if self._state is RequestState.BLOCKED and not self.lacks:
            at = self.start // self.ctx.pool.block_size
            if not any(block.away for block in self.ctx.blocks[at : at + 1]):  # or it was trimmed
                return RequestState.QUEUED
        return self._state

    def become(self, state: RequestState) -> None:
        """Change state; only DONE is final."""
        if self._state is RequestState.DONE and state is not RequestState.DONE:
            raise KernelPanic(
                f"request {self.arrival} of pid {self.ctx.pid} is done after {self.output} ids "
                f"and was made {state.name}"
            )
        self._state = state
        if state is RequestState.DONE and self.grammar is not None:
            self.grammar.users.discard(self)

    @property
    def runnable(self) -> bool:
        """Whether it may be in a step."""
        return not self.held and not self.ctx.revoked and not self.awaits_grammar

    @property
    def awaits_grammar(self) -> bool:
        """Whether the driver does not have its grammar yet."""
        return self.grammar is not None and not self.grammar.ready

    @property
    def done(self) -> bool:
        return self._state is RequestState.DONE

    @property
    def background(self) -> bool:
        """Nobody waits for it: it computes the ids of an append before an infer needs them."""
        return self.infer is None and self.score is None

    @property
    def untold(self) -> bool:
        """Whether the driver lacks what it needs to adjust the next sample."""
        return self.adjusted and self.told != self.ctx.length

    @property
    def target(self) -> int:
        """Positions to compute: an infer needs the logits of the last id, nobody else does."""
        length = self.ctx.length
        return length + self.sampling if self.infer else max(0, length - 1)

    @property
    def remaining(self) -> int:
        """Positions before its next id, that one included."""
        return max(1, self.target - self.start)

    @property
    def decoding(self) -> bool:
        """One position away from its next id, which it has sampled from before."""
        return self.output + self.sampling > 0 and self.start >= self.ctx.length - 1

    def take(self, token: Token, max_ctx: int) -> Finish | None:
        """Commit a sampled id; return why the request ends with it, if it does.

        A stop id ends the request and does not become part of the context.
        """
        assert self.infer is not None
        if token.id in self.stop_ids:
            self.overrun += 1
            return Finish.STOP
        self.ctx.append(array("i", (token.id,)))
        self.output += 1
        self.told += self.told > 0  # the driver has counted it
        if token.last:
            return Finish.STOP
        if self.output == self.infer.max_tokens or self.ctx.length == max_ctx:
            return Finish.LENGTH
        return None


def penalizes(infer: Infer) -> bool:
    """Whether an infer's ids have to be counted."""
    off = infer.repetition_penalty == 1 and not infer.presence_penalty
    return not off or bool(infer.frequency_penalty)
