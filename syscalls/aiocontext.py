"""The asyncio Context and Stream; see `context` for what they are, `aio` for how they wait."""

from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Unpack, overload

from syscalls import abi, forks, grants, messages
from syscalls.abi import Advice
from syscalls.ctxflow import ContextFacts, ContextFlow
from syscalls.following import Schema
from syscalls.forks import Answer, Held, Scored
from syscalls.generation import Generation, StreamFacts
from syscalls.grants import GrantFacts, GrantFlow
from syscalls.output import Piece
from syscalls.sampling import Options, asked

if TYPE_CHECKING:
    from syscalls.aio import Task


class Stream(StreamFacts, AsyncIterator[Piece]):
    """The pieces of one infer."""

    def __init__(self, task: "Task", generation: Generation) -> None:
        super().__init__(generation)
        self._task = task

    async def __anext__(self) -> Piece:
        piece = await self._task.run_for(self._generation.next(), None)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def read(self) -> str:
        """Wait for the end; return all the text."""
        async for _ in self:
            pass
        return self.text

    async def cancel(self, keep: int | None = None) -> int:
        """Stop generating, keep that many output ids (None: all); return the context's length."""
        return await self._task.run(self._generation.cancel(keep))


class Grant(GrantFacts):
    """A context that others may open. Made by `Context.grant`."""

    def __init__(self, task: "Task", flow: GrantFlow) -> None:
        super().__init__(flow)
        self._task = task

    async def revoke(self) -> int:
        """Take it back; harmless if repeated. Return how many contexts have lost their ids."""
        return await self._task.run(self._flow.revoke())


class Context(ContextFacts):
    """A context of a task. Made by `Task.alloc_ctx` and `fork`."""

    def __init__(self, task: "Task", flow: ContextFlow) -> None:
        super().__init__(flow)
        self._task = task

    async def append(self, what: "str | Sequence[int] | array[int]") -> int:
        """Add text, as it is, or ids; return the length."""
        return await self._task.run(self._flow.append(what))

    async def system(self, text: str) -> int:
        """Add a system message; return the length."""
        return await self._task.run(self._flow.say("system", text))

    async def user(self, text: str) -> int:
        """Add a user message; return the length."""
        return await self._task.run(self._flow.say("user", text))

    async def infer(
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
        """Generate; `context.Context.infer` says what each argument does."""
        how = Options(
            max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            seed=seed, stop=stop, stop_ids=stop_ids, ignore_eos=ignore_eos, logprobs=logprobs,
            text=text, repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, logit_bias=logit_bias,
            penalize_from=penalize_from, schema=schema, regex=regex, lark=lark,
            grammar_from=grammar_from,
        )  # fmt: skip
        return Stream(self._task, await self._task.run(self._flow.infer(asked(how))))

    async def infer_n(
        self, n: int, *, same_seed: bool = False, **how: Unpack[Options]
    ) -> "Answers":
        """Generate n answers, each on a fork; see `context.Context.infer_n`."""
        flow = forks.infer_n(self._flow, n, asked(how), same_seed)
        return Answers(self._task, await self._task.run(flow))

    async def cancel(self, keep: int | None = None) -> int:
        """End the running infer, if there is one; return the length."""
        return await self._task.run(self._flow.cancel(keep))

    async def read(self, start: int = 0, max_ids: int | None = None) -> list[int]:
        """Return ids of the context."""
        return await self._task.run(self._flow.read(start, max_ids))

    async def score(
        self, continuations: "Sequence[str | Sequence[int] | array[int]]", top: int = 0
    ) -> list[Scored]:
        """Return the log-probabilities of each text or list of ids, if it came next."""
        return await self._task.run_for(forks.score(self._flow, continuations, top), None)

    async def prompt_logprobs(self, top: int = 0) -> Scored:
        """Return the log-probability of each id of the context, from the second on."""
        return await self._task.run_for(forks.prompt_logprobs(self._flow, top), None)

    @overload
    async def fork(self, n: None = None, name: str | None = None) -> "Context": ...
    @overload
    async def fork(self, n: int, name: str | None = None) -> "list[Context]": ...
    async def fork(
        self, n: int | None = None, name: str | None = None
    ) -> "Context | list[Context]":
        """Make a context that shares every block with this one; with n, a list of n."""
        forks = await self._task.run(self._flow.fork(1 if n is None else n, name))
        contexts = [Context(self._task, flow) for flow in forks]
        return contexts[0] if n is None else contexts

    async def grant(
        self,
        access: abi.Access,
        length: int | None = None,
        uid: int | None = None,
        pid: int = 0,
        ttl_s: float = 0.0,
        opens: int = 0,
    ) -> Grant:
        """Let whoever has the id of the grant open this context; see `context.Context.grant`."""
        flow = grants.grant(self._flow, access, length, uid, pid, ttl_s, opens)
        return Grant(self._task, await self._task.run(flow))

    async def feed(self, topic: str, window: int = 4096) -> None:
        """Add the ids of a topic as they are published; see `context.Context.feed`."""
        await self._task.run(messages.feed(self._flow.caller, self.handle, topic, window))

    async def trim(self, length: int) -> int:
        """Drop ids from the end; return the length."""
        return await self._task.run(self._flow.trim(length))

    async def save(self, name: str) -> abi.SaveCtxResult:
        """Keep the context under a name; see `context.Context.save`."""
        return await self._task.run_for(self._flow.save(name), None)

    async def free(self) -> None:
        """Give the context back; harmless if repeated."""
        await self._task.run(self._flow.free())

    async def prefetch(self) -> int:
        """Bring its KV back to the device; return how many blocks come."""
        return await self._task.run(self._flow.advise(Advice.PREFETCH))

    async def demote(self) -> int:
        """Let its KV leave the device now; return how many blocks do."""
        return await self._task.run(self._flow.advise(Advice.DEMOTE))

    async def pin(self) -> int:
        """Keep its KV on the device until `unpin` or `free`; return how many blocks it has."""
        return await self._task.run(self._flow.advise(Advice.PIN))

    async def unpin(self) -> int:
        """Undo `pin`; return how many blocks were pinned, 0 if it was not."""
        return await self._task.run(self._flow.advise(Advice.UNPIN))

    async def retain(self, seconds: float) -> int:
        """For so many seconds, let the KV of others leave first; return how many blocks it has."""
        return await self._task.run(self._flow.advise(Advice.RETAIN, seconds))

    async def stat(self) -> abi.CtxRow:
        """Ask the kernel what it knows of the context."""
        return await self._task.run(self._flow.stat())

    async def explain(self) -> abi.ExplainResult:
        """Ask what it waits for and what became of its KV; see `context.Context.explain`."""
        return await self._task.run(self._flow.explain())

    async def __aenter__(self) -> "Context":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        await self.free()


class Answers(Held[Context, Stream]):
    """The streams of `Context.infer_n`; `context.Answers` is its twin."""

    def __init__(self, task: "Task", answers: list[Answer]) -> None:
        contexts = [Context(task, answer.context) for answer in answers]
        super().__init__(contexts, [Stream(task, answer.generation) for answer in answers])
        self._task = task

    async def read(self) -> list[str]:
        """Wait for all of them and free their forks; return the texts."""
        async with self:
            return [await stream.read() for stream in self._streams]

    async def free(self) -> None:
        """Give all forks back that are not kept; what still runs on them ends."""
        await self._task.run(self.free_all())

    async def __aenter__(self) -> "Answers":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        await self.free()
