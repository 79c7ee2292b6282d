"""One infer of a context as flows: its pieces, its end, its cancellation.

    running --ids--> running --FIN--> ended("stop" | "length" | "cancelled")
       |                                 ^
       +--stop string: cancel(keep) -----+        ERR: ended, and every later step raises it

The kernel ends an infer at stop ids; stop strings are found here, in text. The kernel has then
sampled further already, so the context is brought back to the ids that are kept: by the cancel,
or by a trim if the infer had ended on its own before the cancel arrived.

Whatever happens, the context's length and its conversation are right afterwards.
"""

from collections import deque
from typing import TYPE_CHECKING

from syscalls import abi
from syscalls.abi import Finish
from syscalls.errors import EINVAL, ESRCH, KernelError
from syscalls.flow import Flow
from syscalls.output import Output, Piece, Usage
from syscalls.session import Pending, Rewind, Token

if TYPE_CHECKING:
    from syscalls.ctxflow import ContextFlow

_FINISH: dict[int, str] = {
    Finish.STOP: "stop",
    Finish.LENGTH: "length",
    Finish.CANCELLED: "cancelled",
}


class Generation:
    """The state of one infer; `start` is the length of the context before its first output id."""

    def __init__(self, context: "ContextFlow", output: Output, before: int, start: int) -> None:
        self.output = output
        self.pending: Pending | None = None
        self.finish: str | None = None
        self.usage: Usage | None = None
        self.seed: int | None = None
        self.ready: deque[Piece] = deque()
        self.start = start
        self._before = before
        self._context = context
        self._error: KernelError | None = None

    @property
    def ended(self) -> bool:
        return self.finish is not None or self._error is not None

    @property
    def over(self) -> bool:
        """Whether the kernel has ended the infer; its last events may still be unread."""
        return self._call().done

    def drain(self) -> Flow[None]:
        """Read an infer that is over to its end; its error, if any, stays with its stream."""
        while not self.ended:
            yield from self._advance()

    def next(self) -> Flow[Piece | None]:
        """Return the next piece, None at the end."""
        while not self.ready:
            if self._error is not None:
                raise self._error.with_traceback(None)
            if self.finish is not None:
                return None
            yield from self._advance()
        return self.ready.popleft()

    def settled(self) -> Flow[None]:
        """Wait until there is a piece, or the end."""
        while not self.ready and not self.ended:
            yield from self._advance()

    def cancel(self, keep: int | None = None) -> Flow[int]:
        """End the infer, keep that many output ids (None: all); return the context's length."""
        if keep is not None and keep < 0:
            raise EINVAL(f"cannot keep {keep} ids")
        if not self.ended:
            yield from self._end("cancelled", keep)
        return self._context.length

    def _advance(self) -> Flow[None]:
        pending = self._call()
        if self.output.keep is not None:
            yield from self._end("stop", self.output.keep)
        elif pending.events:
            self._take(pending)
        elif pending.done:
            yield from self._ended(pending, None, None)
        else:
            yield pending

    def _call(self) -> Pending:
        assert self.pending is not None, "a generation is stepped before its call is sent"
        return self.pending

    def _take(self, pending: Pending) -> None:
        event = pending.events.popleft()
        if isinstance(event, Token):
            self.ready += self.output.feed(event)
            self._context.length = self.start + len(self.output.ids)
        elif isinstance(event, Rewind):
            self._cut(event.length)

    def _end(self, reason: str, keep: int | None) -> Flow[None]:
        """Cancel the infer and wait until it is over, whichever of the two comes first."""
        pending = self._call()
        forced: str | None = reason
        try:
            yield from self._context.caller.ask("cancel", pending.call, keep)
        except ESRCH:  # it had ended by itself
            forced = None if reason == "cancelled" else reason
        while not pending.done:
            self._rest(pending, keep)
            yield pending
        self._rest(pending, keep)
        yield from self._ended(pending, forced, keep)

    def _rest(self, pending: Pending, keep: int | None) -> None:
        """Take what was sampled before the cancel came into force, as far as it is kept."""
        while pending.events:
            if self.output.keep is None and (keep is None or len(self.output.ids) < keep):
                self._take(pending)
            else:
                pending.events.popleft()

    def _ended(self, pending: Pending, reason: str | None, keep: int | None) -> Flow[None]:
        try:
            result: abi.InferResult = pending.value()
        except KernelError as error:
            yield from self._failed(error)
            return
        length = result.length
        if keep is not None and length > self.start + keep:
            context = self._context
            trim = yield from context.caller.ask("trim_ctx", context.handle, self.start + keep)
            length = trim.length
        self._settle(length)
        self.seed = result.seed
        self.usage = Usage(
            result.prompt, result.cached, result.output, result.overrun, result.device_us
        )
        self.finish = reason or _FINISH.get(result.finish, "cancelled")

    def _failed(self, error: KernelError) -> Flow[None]:
        """Learn how much of a failed infer is in the context, then keep the error."""
        length = self._context.length
        try:
            length = (yield from self._context.caller.ask("stat_ctx", self._context.handle)).length
        except KernelError:
            pass  # the context or the kernel is gone, and the first error says more
        self._settle(length)
        self._error = error

    def _cut(self, length: int) -> None:
        """Drop the ids that the context does not hold, and their pieces that nobody has taken."""
        keep = max(0, length - self.start)
        for _ in range(min(len(self.output.ids) - keep, len(self.ready))):
            self.ready.pop()
        self.output.cut(keep)

    def _settle(self, length: int) -> None:
        self._cut(length)
        self.ready += self.output.finish()
        self._context.settle(self.output.text, self._before, self.start, length)


class StreamFacts:
    """What both Stream twins tell of their infer."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    @property
    def text(self) -> str:
        """All text so far, up to a stop string."""
        return self._generation.output.text

    @property
    def ids(self) -> list[int]:
        """All output ids so far that are in the context."""
        return list(self._generation.output.ids)

    @property
    def finish(self) -> str | None:
        """None until the end, then "stop", "length" or "cancelled"."""
        return self._generation.finish

    @property
    def usage(self) -> Usage | None:
        """None until the end."""
        return self._generation.usage

    @property
    def seed(self) -> int | None:
        """The seed that was used; None until the end."""
        return self._generation.seed
