"""The asyncio Context and Stream; see `context` for what they are, `aio` for how they wait."""

from array import array
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, overload

from syscalls import abi
from syscalls.ctxflow import ContextFacts, ContextFlow, Sampling
from syscalls.errors import ENOTSUP
from syscalls.generation import Generation, StreamFacts
from syscalls.output import Piece

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
    ) -> Stream:
        """Generate. With text=False pieces have ids only, and no tokenizer is loaded."""
        ids = tuple(stop_ids)
        sampling = Sampling(
            max_tokens, temperature, top_k, top_p, min_p, seed, ids, ignore_eos, logprobs
        )
        return Stream(self._task, await self._task.run(self._flow.infer(sampling, stop, text)))

    async def cancel(self, keep: int | None = None) -> int:
        """End the running infer, if there is one; return the length."""
        return await self._task.run(self._flow.cancel(keep))

    async def read(self, start: int = 0, max_ids: int | None = None) -> list[int]:
        """Return ids of the context."""
        return await self._task.run(self._flow.read(start, max_ids))

    async def score(self, texts: Sequence[str]) -> list[float]:
        """Return the probability of each text as the continuation; not built in this version."""
        raise ENOTSUP(f"score of {len(texts)} texts: reserved, and not built in this version")

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

    async def trim(self, length: int) -> int:
        """Drop ids from the end; return the length."""
        return await self._task.run(self._flow.trim(length))

    async def save(self, name: str) -> None:
        """Keep the context under a name."""
        await self._task.call_raw("save_ctx", self._flow.handle, name)

    async def free(self) -> None:
        """Give the context back; harmless if repeated."""
        await self._task.run(self._flow.free())

    async def stat(self) -> abi.CtxRow:
        """Ask the kernel what it knows of the context."""
        return await self._task.run(self._flow.stat())

    async def __aenter__(self) -> "Context":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        await self.free()
