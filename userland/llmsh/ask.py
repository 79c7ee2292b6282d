"""One model call: a user turn on a context, and the answer as it comes.

A call that ends in an error, or before the first word, is taken back: the context is as it was. One
that is interrupted, or whose reader goes away, keeps as its answer what had been written.
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass

from syscalls import E2BIG, KernelError
from userland import asking
from userland.answer import Answer
from userland.asking import Question, Sampling
from userland.exits import INTERRUPTED, USAGE, Failure, PipeClosed
from userland.llmsh.contexts import Contexts, Named
from userland.llmsh.streams import Intake, Sink
from userland.llmsh.terminal import Terminal
from userland.waiting import Watch


class Interrupted(Exception):
    """Ctrl-C: what was going on has been put in order, and the rest of the line is not wanted."""


@dataclass
class Ask:
    """A question, and what comes in before it."""

    question: Question
    intake: Intake | None
    sink: Sink
    note: Callable[[str], None]
    terminal: Terminal | None = None
    """One that is to show nothing of what is typed while the answer comes."""

    def __post_init__(self) -> None:
        self._quiet = False

    def run(self, contexts: Contexts, sampling: Sampling) -> Answer:
        """Ask, and write the answer."""
        named = contexts.open(self.question.context)
        named.context.cancel()  # an answer whose cancellation was itself interrupted
        if self.question.remove:
            with contexts.scratch(named) as scratch:
                return self._run(contexts, scratch, sampling.over(self.question.changes))
        return self._run(contexts, named, sampling.over(self.question.changes))

    def _run(self, contexts: Contexts, named: Named, sampling: Sampling) -> Answer:
        before = named.context.length
        try:
            answer = self._answer(contexts, named, sampling)
        except (KernelError, Failure, KeyboardInterrupt) as error:
            self._take_back(named, before)
            if isinstance(error, KeyboardInterrupt):
                self._show_key()
                raise Interrupted from None
            self.sink.end_line()
            raise
        if answer.status == INTERRUPTED and not answer.cut and self.sink.tty:
            self._show_key()
        else:
            self.sink.end_line()
        if answer.pieces or not answer.status:
            named.turns += (before,)
        else:
            self._take_back(named, before)
        self._tell(answer, named, sampling)
        return answer

    def _show_key(self) -> None:
        if self.sink.tty and self._quiet:
            with suppress(PipeClosed, Failure):
                self.sink.key("^C")

    def _answer(self, contexts: Contexts, named: Named, sampling: Sampling) -> Answer:
        context = named.context
        room = context.max_ctx - context.length
        message = self._message(room)
        try:
            with nullcontext() if self.terminal is None else self.terminal.quiet():
                self._quiet = self.terminal is not None
                if self.question.system is not None:
                    self._system(named, self.question.system)
                watch = Watch(contexts.task(), context, self._aside)
                contexts.say(named, message)
                answer = Answer(sampling.infer(context), self.sink, watch)
                answer.write()
        except E2BIG as error:
            raise Failure(
                f"{error.message}; @{named.name} has room for {room:,} tokens",
                "cut the input on purpose (| head -c 8000), or begin anew: ctx new NAME",
                code="E2BIG",
            ) from None
        return answer

    def _system(self, named: Named, text: str) -> None:
        if named.context.length:
            raise Failure(
                f"-s is for a context without turns, @{named.name} has {len(named.turns)}",
                f"ctx new NAME -s {text[:20]!r}",
                USAGE,
            )
        named.context.system(text)

    def _message(self, room: int) -> str:
        documents: list[tuple[str, str]] = []
        if self.intake is not None:
            text = self.intake.text(room)
            if text.strip():
                documents.append(("stdin", text))
            else:
                self.note("the input is empty: the model gets the prompt alone")
        elif "-" in self.question.files:
            raise Failure("-f - is what a pipe or < feeds, and nothing does", exit_code=USAGE)
        documents += asking.documents(path for path in self.question.files if path != "-")
        message = asking.message(documents, self.question.prompt)
        if any("\ud800" <= char <= "\udfff" for char in message):
            raise Failure("the prompt is not text: it has bytes that are no UTF-8")
        return message

    def _take_back(self, named: Named, before: int) -> None:
        with suppress(KernelError):
            named.context.cancel()
            named.context.trim(before)

    def _aside(self, text: str) -> None:
        self.sink.aside()
        self.note(text)

    def _tell(self, answer: Answer, named: Named, sampling: Sampling) -> None:
        """Say how the answer ended, if it did not end by itself."""
        context, stream = named.context, answer.stream
        if self.question.verbose and stream.usage is not None:
            times = answer.first_s, answer.whole_s
            self.note(asking.footer(stream.usage, stream.finish or "", *times))
        if answer.cut:
            how = "cancelled by a signal or by the kernel's shutdown"
            self.note(f"cut after {answer.pieces:,} tokens: {how}")
        elif stream.finish == "length" and context.length >= context.max_ctx:
            self.note(f"cut: @{named.name} is full, {context.max_ctx:,} tokens; undo, or ctx new")
        elif stream.finish == "length":
            self.note(f"cut after {sampling.max:,} tokens; set max=N allows more")
        elif not answer.text and not answer.status:
            self.note("the answer is empty")
