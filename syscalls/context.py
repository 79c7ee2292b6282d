"""The synchronous Context and Stream: a token sequence with its KV, and what it generates.

Text goes in through `append` (as it is), `system` and `user` (as turns of the model's chat
template); ids go in through `append`. `infer` returns a Stream: iterate it, or take `read()`.
Streams of several contexts may be read in turns by one thread; what arrives for the others waits.
A context is the kernel's until `free`, the end of a `with` block, or the end of the task.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Unpack, overload

from syscalls import abi, forks, grants, messages
from syscalls.abi import Advice
from syscalls.ctxflow import ContextFacts, ContextFlow
from syscalls.errors import ETIMEDOUT
from syscalls.following import Schema
from syscalls.forks import Answer, Held, Scored
from syscalls.generation import Generation, StreamFacts
from syscalls.grants import GrantFacts, GrantFlow
from syscalls.output import Piece
from syscalls.sampling import Options, asked

if TYPE_CHECKING:
    from syscalls.client import Task


class Stream(StreamFacts, Iterator[Piece]):
    """The pieces of one infer."""

    def __init__(self, task: "Task", generation: Generation) -> None:
        super().__init__(generation)
        self._task = task

    def __next__(self) -> Piece:
        piece = self._task.run_for(self._generation.next(), None)
        if piece is None:
            raise StopIteration
        return piece

    def wait(self, timeout: float) -> bool:
        """Wait until the next step of the iteration is at once; False after `timeout` seconds."""
        try:
            self._task.run_for(self._generation.settled(), timeout)
        except ETIMEDOUT:
            return False
        return True

    def read(self) -> str:
        """Wait for the end; return all the text."""
        for _ in self:
            pass
        return self.text

    def cancel(self, keep: int | None = None) -> int:
        """Stop generating, keep that many output ids (None: all); return the context's length."""
        return self._task.run(self._generation.cancel(keep))


class Grant(GrantFacts):
    """A context that others may open. Made by `Context.grant`."""

    def __init__(self, task: "Task", flow: GrantFlow) -> None:
        super().__init__(flow)
        self._task = task

    def revoke(self) -> int:
        """Take it back; harmless if repeated. Return how many contexts have lost their ids."""
        return self._task.run(self._flow.revoke())


class Context(ContextFacts):
    """A context of a task. Made by `Task.alloc_ctx` and `fork`."""

    def __init__(self, task: "Task", flow: ContextFlow) -> None:
        super().__init__(flow)
        self._task = task

    # --- in -----------------------------------------------------------------------------------

    def append(self, what: "str | Sequence[int] | array[int]") -> int:
        """Add text, as it is, or ids; return the length."""
        return self._task.run(self._flow.append(what))

    def system(self, text: str) -> int:
        """Add a system message; return the length."""
        return self._task.run(self._flow.say("system", text))

    def user(self, text: str) -> int:
        """Add a user message; return the length."""
        return self._task.run(self._flow.say("user", text))

    # --- out ----------------------------------------------------------------------------------

    def infer(
        self,
        max_tokens: int = 512,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        logprobs: int | None = None,
        text: bool = True,
        *,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        penalize_from: int | None = None,
        schema: Schema | None = None,
        regex: str | None = None,
        lark: str | None = None,
        grammar_from: int | None = None,
    ) -> Stream:
        """Generate. With text=False pieces have ids only, and no tokenizer is loaded.

        What is done to the logits, in this order: `logit_bias` (id: -100 to 100) is added, the
        penalties, then temperature, top_k, top_p, min_p. `repetition_penalty` is on all ids of the
        context, the two others on generated ones: those from position `penalize_from` on, by
        default from where this output begins.

        With one of `schema` (a JSON schema: the answer is JSON that it allows), `regex` and `lark`
        (a Lark grammar in the dialect of llguidance) only what fits is generated; the stream ends
        with "stop" when it is complete, and with "length" if `max_tokens` cut it before. A stream
        that was cancelled, or a fork, goes on with `grammar_from`: where the text has begun.

        What the kernel refuses is raised by the first step of the stream.
        """
        how = Options(
            max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            seed=seed, stop=stop, stop_ids=stop_ids, ignore_eos=ignore_eos, logprobs=logprobs,
            text=text, repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, logit_bias=logit_bias,
            penalize_from=penalize_from, schema=schema, regex=regex, lark=lark,
            grammar_from=grammar_from,
        )  # fmt: skip
        return Stream(self._task, self._task.run(self._flow.infer(asked(how))))

    def infer_n(self, n: int, *, same_seed: bool = False, **how: Unpack[Options]) -> "Answers":
        """Generate n answers, each on a fork; `how` is what `infer` takes.

        Their seeds come from one, by their index, so they differ unless `same_seed`. Use it in a
        `with` block, or `read()` all: then the forks are freed, but for those that are kept.
        """
        flow = forks.infer_n(self._flow, n, asked(how), same_seed)
        return Answers(self._task, self._task.run(flow))

    def cancel(self, keep: int | None = None) -> int:
        """End the running infer, if there is one; return the length."""
        return self._task.run(self._flow.cancel(keep))

    def read(self, start: int = 0, max_ids: int | None = None) -> list[int]:
        """Return ids of the context."""
        return self._task.run(self._flow.read(start, max_ids))

    def score(
        self, continuations: "Sequence[str | Sequence[int] | array[int]]", top: int = 0
    ) -> list[Scored]:
        """Return the log-probabilities of each text or list of ids, if it came next.

        With the `top` best alternatives of each id. The context stays as it is.
        """
        return self._task.run_for(forks.score(self._flow, continuations, top), None)

    def prompt_logprobs(self, top: int = 0) -> Scored:
        """Return the log-probability of each id of the context, from the second on."""
        return self._task.run_for(forks.prompt_logprobs(self._flow, top), None)

    # --- shape --------------------------------------------------------------------------------

    @overload
    def fork(self, n: None = None, name: str | None = None) -> "Context": ...
    @overload
    def fork(self, n: int, name: str | None = None) -> "list[Context]": ...
    def fork(self, n: int | None = None, name: str | None = None) -> "Context | list[Context]":
        """Make a context that shares every block with this one; with n, a list of n."""
        forks = self._task.run(self._flow.fork(1 if n is None else n, name))
        contexts = [Context(self._task, flow) for flow in forks]
        return contexts[0] if n is None else contexts

    def grant(
        self,
        access: abi.Access,
        length: int | None = None,
        uid: int | None = None,
        pid: int = 0,
        ttl_s: float = 0.0,
        opens: int = 0,
    ) -> Grant:
        """Let whoever has the id of the grant open this context, as it is then.

        With the rights of `access` only, at most `length` ids from the start (None: all); for one
        user (`uid`) or one task (`pid`); within `ttl_s` seconds, `opens` times (0: no limit). The
        grant ends with the task, or by `revoke`; what was opened through it loses its ids then.
        """
        flow = grants.grant(self._flow, access, length, uid, pid, ttl_s, opens)
        return Grant(self._task, self._task.run(flow))

    def feed(self, topic: str, window: int = 4096) -> None:
        """Add the ids of a topic as they are published, computed ahead; window=0: not any more.

        Publishers get EAGAIN while `window` ids are not computed. `length` learns of it with the
        next infer; a question that must not be parted by the feed is asked on a fork.
        """
        self._task.run(messages.feed(self._flow.caller, self.handle, topic, window))

    def trim(self, length: int) -> int:
        """Drop ids from the end; return the length."""
        return self._task.run(self._flow.trim(length))

    def save(self, name: str) -> abi.SaveCtxResult:
        """Keep the context under a name, in place of the save that had it; return how it went.

        Whole or not at all: when this returns it is on the disk, encrypted, and outlives task and
        kernel. It has the ids of now and the KV that is computed; an infer may go on meanwhile. Who
        loads it has the messages, too (some 600 short ones; older ones are ids only then). ENOSPC,
        EIO, ENOTSUP if the kernel keeps nothing.
        """
        return self._task.run_for(self._flow.save(name), None)

    def free(self) -> None:
        """Give the context back; harmless if repeated."""
        self._task.run(self._flow.free())

    def __enter__(self) -> "Context":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.free()

    # --- where its KV is: the ids are the kernel's in any case --------------------------------

    def prefetch(self) -> int:
        """Bring its KV back to the device, because it runs soon; return how many blocks come.

        As many as there are free blocks for; nothing else has to leave for them.
        """
        return self._task.run(self._flow.advise(Advice.PREFETCH))

    def demote(self) -> int:
        """Let its KV leave the device, because it runs late; return how many blocks do.

        They go to the host tier if that has room and a copy is quicker than computing them again,
        else they are dropped. Blocks that other contexts have, too, stay. EINVAL if it is pinned.
        """
        return self._task.run(self._flow.advise(Advice.DEMOTE))

    def pin(self) -> int:
        """Keep its KV on the device until `unpin` or `free`; return how many blocks it has.

        All pins together may hold half of the pool: EDQUOT, with the numbers.
        """
        return self._task.run(self._flow.advise(Advice.PIN))

    def unpin(self) -> int:
        """Undo `pin`; return how many blocks were pinned, 0 if it was not."""
        return self._task.run(self._flow.advise(Advice.UNPIN))

    def retain(self, seconds: float) -> int:
        """For so many seconds, let the KV of others leave first; return how many blocks it has.

        EINVAL unless 0 < seconds <= 86,400. It promises nothing: what has to leave in the end does.
        """
        return self._task.run(self._flow.advise(Advice.RETAIN, seconds))

    # --- facts: see ContextFacts for the rest -------------------------------------------------

    def stat(self) -> abi.CtxRow:
        """Ask the kernel what it knows of the context."""
        return self._task.run(self._flow.stat())

    def explain(self) -> abi.ExplainResult:
        """Ask what it waits for, where its KV is, and which of it had to be computed again, why.

        `losses` has the last 16 at most, the newest first; costs are microseconds.
        """
        return self._task.run(self._flow.explain())


class Answers(Held[Context, Stream]):
    """The streams of `Context.infer_n`. They may be read in any order, or all by `read`."""

    def __init__(self, task: "Task", answers: list[Answer]) -> None:
        contexts = [Context(task, answer.context) for answer in answers]
        super().__init__(contexts, [Stream(task, answer.generation) for answer in answers])
        self._task = task

    def read(self) -> list[str]:
        """Wait for all of them and free their forks; return the texts."""
        with self:
            return [stream.read() for stream in self._streams]

    def free(self) -> None:
        """Give all forks back that are not kept; what still runs on them ends."""
        self._task.run(self.free_all())

    def __enter__(self) -> "Answers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.free()
