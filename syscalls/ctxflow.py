"""A context as flows: what both `Context` twins do, and what they know of it.

`length` follows the kernel's answers, so it is right whenever no call on the context is in flight;
during an infer it counts the ids that have arrived. One infer at a time runs on a context; it is
kept in `generation` from before its call is sent, so that an interrupted program can cancel it.
"""

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from syscalls import abi, turnmarks
from syscalls.conversation import Conversation, Turn, encode
from syscalls.errors import EBADCTX, EBUSY, EINVAL, EPROTO
from syscalls.flow import Caller, Flow, finish
from syscalls.generation import Generation
from syscalls.output import Output
from syscalls.sampling import Asked
from syscalls.session import make_row

if TYPE_CHECKING:
    from syscalls.text import TextModel


class ContextFlow:
    """One context of a task."""

    def __init__(self, caller: Caller, handle: int, about: abi.AllocCtxResult) -> None:
        self.caller = caller
        self.handle = handle
        self.about = about
        self.length = 0
        self.access = abi.Access(15)
        self.freed = False
        self.conversation = Conversation()
        self.generation: Generation | None = None
        self.loaded: abi.LoadCtxResult | None = None
        caller.enter(self)

    def came_back(self, load: int) -> Flow[None]:
        """Take over what a kernel has of it that was stopped and is up again.

        That is what it was, unless the kernel had to begin with an older state of it.
        """
        self.about = self.about._replace(load=load)
        running = self.generation
        if self.freed or (running is not None and not running.ended):
            return  # whoever reads the stream learns the length with its error
        try:
            row = yield from self.stat()
        except EBADCTX:
            return  # it has not come back; every call on it says so
        if row.length != self.length:
            self.length = row.length
            self.conversation.trim(self.length)

    # --- ids in -------------------------------------------------------------------------------

    def append(self, what: "str | Sequence[int] | array[int]") -> Flow[int]:
        """Add text or ids; return the new length."""
        yield from self._idle()
        if isinstance(what, str):
            ids: Sequence[int] | array[int] = encode((yield from self.text()), what, self.length)
        else:
            ids = what
        if len(ids) == 0:
            return self.length
        result: abi.LengthResult = yield from self.caller.ask("append", self.handle, ids=ids)
        self.length = result.length
        return self.length

    def say(self, role: str, text: str) -> Flow[int]:
        """Add one message of a chat; return the new length."""
        yield from self._idle()
        model = yield from self.text()
        ids = self.conversation.turn_ids(model, role, text, self.length)
        length = yield from self.append(ids)
        self.conversation.said(role, text, length)
        return length

    def _idle(self) -> Flow[None]:
        """Take over an infer that is over but was not read to its end; EBUSY if it may go on."""
        running = self.generation
        if running is None or running.ended:
            return
        if not running.over:
            raise EBUSY(
                "the context has an unfinished infer", "read its stream to the end, or cancel()"
            )
        yield from running.drain()

    def text(self) -> Flow["TextModel"]:
        """Return the text layer of the context's model; EINVAL if it has none."""
        model = yield from self._text_model()
        if model is None:
            raise EINVAL(
                f"model {self.about.model} has no tokenizer, so it takes ids and no text",
                "append a list of ids, or use another model; llmos models, if its files are gone",
            )
        return model

    def answer_prompt(self) -> Flow[list[int]]:
        """Return what makes the model answer the last message, if that is one to it."""
        if not self.conversation.waits(self.length):
            return []
        model = yield from self._text_model()
        return [] if model is None else self.conversation.prompt_ids(model, self.length)

    def _text_model(self) -> Flow["TextModel | None"]:
        return self.caller.text_model(self.about.model, self.about.load)

    # --- ids out ------------------------------------------------------------------------------

    def infer(self, asked: Asked) -> Flow[Generation]:
        """Start to generate; the first step of the generation tells if the kernel refused."""
        yield from self._idle()
        sampling, stop, text = asked
        needed = text or self.conversation.waits(self.length)
        model = (yield from self._text_model()) if needed else None
        output = Output(model if text else None, stop)
        prompt = self.conversation.prompt_ids(model, self.length) if model is not None else []
        before = self.length
        generation = Generation(self, output, before, before + len(prompt))
        generation.pending = self.caller.call("infer", self.handle, *sampling, ids=prompt or None)
        self.generation = generation
        return generation

    def settle(self, text: str, before: int, start: int, length: int) -> None:
        """Take over how an infer ended: with what text, from where, at which length."""
        self.length = length
        if length > before:
            self.conversation.answered(text, start, length)

    def read(self, start: int, max_ids: int | None) -> Flow[list[int]]:
        """Return ids from `start` on; the kernel may give them in several parts."""
        ids: list[int] = []
        while True:
            left = abi.MAX_IDS if max_ids is None else min(max_ids - len(ids), abi.MAX_IDS)
            if left <= 0:
                return ids
            call = self.caller.call("read_ctx", self.handle, start + len(ids), left)
            result: abi.ReadCtxResult = yield from finish(call)
            ids += call.ids
            if not call.ids or start + len(ids) >= result.length:
                return ids

    def stat(self) -> Flow[abi.CtxRow]:
        row: abi.CtxRow = yield from self.caller.ask("stat_ctx", self.handle)
        return row

    def explain(self) -> Flow[abi.ExplainResult]:
        return self.caller.explain(self.handle, 0)

    # --- where its KV is ----------------------------------------------------------------------

    def advise(self, advice: abi.Advice, ttl_s: float = 0.0) -> Flow[int]:
        """Say what the context's KV is needed for; return how many blocks that concerns."""
        result: abi.AdviseCtxResult = yield from self.caller.ask(
            "advise_ctx", self.handle, advice.value, ttl_s
        )
        return result.blocks

    # --- shape --------------------------------------------------------------------------------

    def fork(self, n: int, name: str | None) -> Flow["list[ContextFlow]"]:
        """Make n contexts that share all blocks; all of them or none."""
        if n < 1:
            raise EINVAL(f"cannot make {n} forks")
        handles = [self.caller.session.handle() for _ in range(n)]
        try:  # from before the first is sent: Ctrl-C may come at any call
            calls = [self.caller.call("fork_ctx", self.handle, handle, name) for handle in handles]
            children: list[ContextFlow] = []
            for call, handle in zip(calls, handles, strict=True):
                children.append(self._child(handle, (yield from finish(call)).length))
        except BaseException:
            # In arrival order a free follows its fork, so it needs no wait; the answers to those
            # that were never made (EBADCTX) have no reader.
            for handle in handles:
                self.caller.forget("free_ctx", handle)
            raise
        return children

    def _child(self, handle: int, length: int) -> "ContextFlow":
        child = ContextFlow(self.caller, handle, self.about)
        child.length, child.access = length, self.access
        child.conversation = self.conversation.copy()
        child.conversation.trim(length)
        running = self.generation
        if running is not None and not running.ended and length >= running.start:
            # A fork in the middle of an answer: what has arrived of it is the child's, too.
            child.conversation.answered(running.output.text, running.start, length)
        return child

    def trim(self, length: int) -> Flow[int]:
        """Drop ids from the end, with the messages that do not lie wholly before."""
        yield from self._idle()
        result: abi.LengthResult = yield from self.caller.ask("trim_ctx", self.handle, length)
        self.length = result.length
        self.conversation.trim(self.length)
        return self.length

    def save(self, name: str) -> Flow[abi.SaveCtxResult]:
        """Keep the context, and where its messages end."""
        extra = self.marks(abi.MAX_EXTRA)
        result: abi.SaveCtxResult = yield from self.caller.ask("save_ctx", self.handle, name, extra)
        return result

    def marks(self, room: int) -> bytes:
        """Return where its messages end, for whoever has the ids."""
        running = self.generation
        answering = running.start if running is not None and not running.ended else None
        return turnmarks.packed(self.conversation.turns, answering, room)

    def cancel(self, keep: int | None) -> Flow[int]:
        """End the running infer, if there is one; return the length."""
        if self.generation is not None:
            yield from self.generation.cancel(keep)
        return self.length

    def free(self) -> Flow[None]:
        """Give the context back; the second time nothing happens."""
        if not self.freed:
            self.freed = True
            yield from self.caller.ask("free_ctx", self.handle)


def alloc_ctx(
    caller: Caller, model: str | None, name: str | None, durable: bool, system: str | None
) -> Flow[ContextFlow]:
    """Make an empty context, or one that begins with a system message."""
    handle = caller.session.handle()
    try:
        made: abi.AllocCtxResult = yield from caller.ask("alloc_ctx", handle, model, name, durable)
        context = ContextFlow(caller, handle, made)
        if system is not None:
            yield from context.say("system", system)
    except BaseException:
        caller.forget("free_ctx", handle)
        raise
    return context


def load_ctx(caller: Caller, name: str, model: str | None, title: str | None) -> Flow[ContextFlow]:
    """Make a context from a save, with the messages that it had."""
    handle = caller.session.handle()
    try:
        made: abi.LoadCtxResult = yield from caller.ask("load_ctx", handle, name, model, title)
        about = abi.AllocCtxResult(made.model, made.max_ctx, made.block_size, made.load)
        context = ContextFlow(caller, handle, about)
        context.length, context.loaded = made.length, made
        marks = turnmarks.marks_of(made.extra, made.length)
        if marks:
            ids = yield from context.read(0, marks[-1].end)
            text = yield from caller.text_model(made.model, made.load)
            context.conversation = turnmarks.recalled(marks, ids, text)
    except BaseException:
        caller.forget("free_ctx", handle)
        raise
    return context


def saves(caller: Caller) -> Flow[list[abi.SaveRow]]:
    """Return the saves of the task's user by name, a page at a time."""
    rows: list[abi.SaveRow] = []
    while True:
        after = rows[-1].name if rows else ""
        page: abi.ListSavesResult = yield from caller.ask("list_saves", after)
        found = [make_row(abi.SaveRow, values) for values in page.rows]
        rows += found
        if not page.more:
            return rows
        if not found or found[-1].name == after:
            raise EPROTO(f"the kernel's list of saves does not move on from {after!r}")


class ContextFacts:
    """What both Context twins tell without asking the kernel."""

    def __init__(self, flow: ContextFlow) -> None:
        self._flow = flow

    @property
    def flow(self) -> ContextFlow:
        """What the library itself works with."""
        return self._flow

    @property
    def handle(self) -> int:
        """The number by which the kernel knows the context."""
        return self._flow.handle

    @property
    def model(self) -> str:
        return self._flow.about.model

    @property
    def max_ctx(self) -> int:
        """The most ids that the context may hold."""
        return self._flow.about.max_ctx

    @property
    def loaded(self) -> abi.LoadCtxResult | None:
        """What `load_ctx` said of it: what was taken over, what was not, and why; else None."""
        return self._flow.loaded

    @property
    def length(self) -> int:
        """Ids in the context."""
        return self._flow.length

    @property
    def access(self) -> abi.Access:
        """What may be done with it; less than all if it was opened through a grant."""
        return self._flow.access

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The messages so far, each with the context's length at its end."""
        return self._flow.conversation.turns
