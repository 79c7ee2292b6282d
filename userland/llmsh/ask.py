"""One model call: a user turn on a context, and the answer as it comes.

A call that ends in an error, or before the first word, is taken back: the context is as it was. One
that is interrupted, or whose reader goes away, keeps as its answer what had been written.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from syscalls import E2BIG, KernelError, Stream
from userland.exits import INTERRUPTED, PIPE_CLOSED, Failure, PipeClosed
from userland.llmsh.contexts import Contexts, Named
from userland.llmsh.streams import Intake, Sink


@dataclass
class Sampling:
    """What `set` shows and changes."""

    temp: float
    max: int = 512
    seed: int | None = None
    top_p: float = 1.0


class Interrupted(Exception):
    """Ctrl-C: what was going on has been put in order, and the rest of the line is not wanted."""


@dataclass
class Ask:
    """A prompt, where it goes, and what comes before it."""

    prompt: str
    context: str | None
    intake: Intake | None
    sink: Sink
    note: Callable[[str], None]

    def run(self, contexts: Contexts, sampling: Sampling) -> "Answer":
        """Ask, and write the answer."""
        named = contexts.open(self.context)
        named.context.cancel()  # an answer whose cancellation was itself interrupted
        before = named.context.length
        try:
            answer = self._answer(named, sampling)
        except (KernelError, Failure, KeyboardInterrupt) as error:
            self._take_back(named, before)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted from None
            self.sink.end_line()
            raise
        if answer.cut or answer.status != INTERRUPTED or not self.sink.tty:  # there, ^C comes next
            self.sink.end_line()
        if answer.pieces or not answer.status:
            named.turns += (before,)
        else:
            self._take_back(named, before)
        self._tell(answer, named, sampling)
        return answer

    def _answer(self, named: Named, sampling: Sampling) -> "Answer":
        context = named.context
        room = context.max_ctx - context.length
        try:
            context.user(self._message(room))
            stream = context.infer(
                sampling.max, sampling.temp, top_p=sampling.top_p, seed=sampling.seed
            )
            answer = Answer(stream, self.sink)
            answer.write()
        except E2BIG as error:
            raise Failure(
                f"{error.message}; @{named.name} has room for {room:,} tokens",
                "cut the input on purpose (| head -c 8000), or begin anew: ctx new NAME",
                code="E2BIG",
            ) from None
        return answer

    def _message(self, room: int) -> str:
        message = self.prompt
        if self.intake is not None:
            document = self.intake.text(room).rstrip()
            if document:
                message = f"{document}\n\n{self.prompt}"
            else:
                self.note("the input is empty: the model gets the prompt alone")
        if any("\ud800" <= char <= "\udfff" for char in message):
            raise Failure("the prompt is not text: it has bytes that are no UTF-8")
        return message

    def _take_back(self, named: Named, before: int) -> None:
        with suppress(KernelError):
            named.context.cancel()
            named.context.trim(before)

    def _tell(self, answer: "Answer", named: Named, sampling: Sampling) -> None:
        """Say how the answer ended, if it did not end by itself."""
        context = named.context
        if answer.cut:
            how = "cancelled by a signal or by the kernel's shutdown"
            self.note(f"cut after {answer.pieces:,} tokens: {how}")
        elif answer.stream.finish == "length" and context.length >= context.max_ctx:
            self.note(f"cut: @{named.name} is full, {context.max_ctx:,} tokens; undo, or ctx new")
        elif answer.stream.finish == "length":
            self.note(f"cut after {sampling.max:,} tokens; set max=N allows more")
        elif not answer.text and not answer.status:
            self.note("the answer is empty")


class Answer:
    """What came of a call, and how it ended."""

    def __init__(self, stream: Stream, sink: Sink) -> None:
        self.stream = stream
        self.status = 0
        self.pieces = 0
        self.cut = False
        """Ended by somebody else: kill -INT, or a kernel that stops."""
        self._sink = sink

    @property
    def text(self) -> str:
        return self.stream.text

    def write(self) -> None:
        """Write the pieces as they come, until the end, Ctrl-C or a reader that has gone."""
        try:
            for piece in self.stream:
                # First counted, then written: the context has whatever a person has seen.
                self.pieces += piece.id is not None
                self._sink.write(piece.text)
        except (KeyboardInterrupt, PipeClosed) as end:
            self.status = INTERRUPTED if isinstance(end, KeyboardInterrupt) else PIPE_CLOSED
            self.stream.cancel(self.pieces)
        else:
            self.cut = self.stream.finish == "cancelled"
            if self.cut:
                self.status = INTERRUPTED
