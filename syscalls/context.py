"""The synchronous Context and Stream: a token sequence with its KV, and what it generates.

Text goes in through `append` (as it is), `system` and `user` (as turns of the model's chat
template); ids go in through `append`. `infer` returns a Stream: iterate it, or take `read()`.
Streams of several contexts may be read in turns by one thread; what arrives for the others waits.
A context is the kernel's until `free`, the end of a `with` block, or the end of the task.
"""

from array import array
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, overload

from syscalls import abi
from syscalls.ctxflow import ContextFacts, ContextFlow, Sampling
from syscalls.errors import ENOTSUP
from syscalls.generation import Generation, StreamFacts
from syscalls.output import Piece

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

    def read(self) -> str:
        """Wait for the end; return all the text."""
        for _ in self:
            pass
        return self.text

    def cancel(self, keep: int | None = None) -> int:
        """Stop generating, keep that many output ids (None: all); return the context's length."""
        return self._task.run(self._generation.cancel(keep))


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
    ) -> Stream:
        """Generate. With text=False pieces have ids only, and no tokenizer is loaded.

        What the kernel refuses is raised by the first step of the stream.
        """
        sampling = Sampling(
            max_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            tuple(stop_ids),
            ignore_eos,
            logprobs,
        )
        return Stream(self._task, self._task.run(self._flow.infer(sampling, stop, text)))

    def cancel(self, keep: int | None = None) -> int:
        """End the running infer, if there is one; return the length."""
        return self._task.run(self._flow.cancel(keep))

    def read(self, start: int = 0, max_ids: int | None = None) -> list[int]:
        """Return ids of the context."""
        return self._task.run(self._flow.read(start, max_ids))

    def score(self, texts: Sequence[str]) -> list[float]:
        """Return the probability of each text as the continuation; not built in this version."""
        raise ENOTSUP(f"score of {len(texts)} texts: reserved, and not built in this version")

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

    def trim(self, length: int) -> int:
        """Drop ids from the end; return the length."""
        return self._task.run(self._flow.trim(length))

    def save(self, name: str) -> None:
        """Keep the context under a name."""
        self._task.call_raw("save_ctx", self._flow.handle, name)

    def free(self) -> None:
        """Give the context back; harmless if repeated."""
        self._task.run(self._flow.free())

    def __enter__(self) -> "Context":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.free()

    # --- facts: see ContextFacts for the rest -------------------------------------------------

    def stat(self) -> abi.CtxRow:
        """Ask the kernel what it knows of the context."""
        return self._task.run(self._flow.stat())
