"""What a client does, without deciding how it waits: the half that both twins share.

A flow is a generator. It sends calls through `Caller.call`, yields a Pending when it cannot go on
without news of that call, and returns its value:

    sync    run(flow): step it; at a Pending, poll the socket until there is news
    async   the same, but await

So each procedure that takes several calls (paging, a forked family, cancel and trim) is written
once. If a waiting flow is interrupted it is closed, and undoes or gives up what it had begun.
"""

import json
import sys
from array import array
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from re import sub
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakSet

from syscalls import abi
from syscalls.errors import ECORRUPT, EINVAL, ENODEV, ENOENT, EPROTO, KernelError
from syscalls.session import Pending, Progress, Session, make_row

if TYPE_CHECKING:
    from syscalls.ctxflow import ContextFlow
    from syscalls.text import TextModel

T = TypeVar("T")
Flow = Generator[Pending, None, T]


class Raw(NamedTuple):
    """The result row and the ids of any call."""

    result: Any
    ids: list[int]


def finish(pending: Pending) -> Flow[Any]:
    """Wait for a call to end; return its result row or raise its error."""
    while not pending.done:
        pending.events.clear()
        yield pending
    return pending.value()


class Caller:
    """A session and the way out of it, and what a task does with them."""

    def __init__(self, session: Session, send: Callable[[list[bytes]], None]) -> None:
        self.session = session
        self._send = send
        self._unheard: dict[int, Pending] = {}
        self._texts: dict[tuple[str, int], TextModel | None] = {}  # by name and loading
        self._contexts: WeakSet[ContextFlow] = WeakSet()

    def call(
        self,
        name: str,
        *args: Any,
        ids: "Sequence[int] | array[int] | None" = None,
        flags: int = 0,
    ) -> Pending:
        """Send a call and do not wait for it."""
        pending, frames = self.session.request(name, *args, ids=ids, flags=flags)
        self._send(frames)
        return pending

    def ask(
        self, name: str, *args: Any, ids: "Sequence[int] | array[int] | None" = None
    ) -> Flow[Any]:
        """Send a call and wait for its end."""
        return (yield from finish(self.call(name, *args, ids=ids)))

    def forget(self, name: str, *args: Any) -> None:
        """Send a call whose answer does not matter, if it can still be sent."""
        with suppress(KernelError):
            self.call(name, *args)

    def hello(
        self, name: str, ticket: bytes | None, durable: bool, grace_s: float
    ) -> Flow[abi.HelloResult]:
        """Open the session."""
        args = name, ticket, durable, None, grace_s
        result: abi.HelloResult = yield from self.ask("hello", *args)
        self.session.bind(result.connection)
        return result

    @property
    def contexts(self) -> "list[ContextFlow]":
        """The contexts that the program has, and has not freed."""
        return [context for context in self._contexts if not context.freed]

    def enter(self, context: "ContextFlow") -> None:
        """Know of a context, for as long as the program does."""
        self._contexts.add(context)

    def renew(self, session: Session, send: Callable[[list[bytes]], None]) -> None:
        """Go on in another session: the one before is lost."""
        self.session, self._send = session, send
        self._unheard.clear()

    def attach(self, pid: int, token: bytes) -> Flow[abi.HelloResult]:
        """Become the program of a task again, and see how its contexts have come back."""
        result: abi.HelloResult = yield from self.ask("attach", pid, token)
        self.session.bind(result.connection)
        self._texts.clear()
        loads: dict[str, int] = {}
        for context in list(self._contexts):
            model = context.about.model
            if model not in loads:
                loads[model] = yield from self._load_of(model)
            yield from context.came_back(loads[model])
        return result

    def _load_of(self, model: str) -> Flow[int]:
        """Return the number of a model's loading; 0 if it has no parts, which are asked for it."""
        for part in ("config.json", "tokenizer.json"):  # the first is short
            try:
                first: abi.ReadModelResult = yield from self.ask("read_model", model, part)
            except KernelError:
                continue
            return first.load
        return 0

    def wait(self, pid: int) -> Flow[abi.WaitResult]:
        """Wait for a child; if that is interrupted, the next wait for it takes the answer."""
        call = self.waiting(pid)
        try:
            result: abi.WaitResult = yield from finish(call)
        except GeneratorExit:
            self.leave(pid, call)
            raise
        return result

    def waiting(self, pid: int) -> Pending:
        """Return a wait call that was interrupted before, or else a new one."""
        return self._unheard.pop(pid, None) or self.call("wait", pid)

    def leave(self, pid: int, call: Pending) -> None:
        """Keep a wait call for later: its answer takes the child's status out of the kernel."""
        self._unheard[pid] = call

    def snapshot(self, what: str, row: Any) -> Flow[list[Any]]:
        """Return all rows of one kind, a page at a time."""
        rows: list[Any] = []
        cursor = 0
        while True:
            page: abi.SnapshotResult = yield from self.ask("snapshot", what, cursor)
            rows += [make_row(row, values) for values in page.rows]
            if page.cursor == 0:
                return rows
            if page.cursor == cursor:
                raise EPROTO(f"the kernel's snapshot of {what} does not move on from {cursor}")
            cursor = page.cursor

    def pmap(self, ctx: int, pid: int) -> Flow[abi.PmapResult]:
        """Return a context block by block, a page at a time; it may change between pages."""
        first: abi.PmapResult = yield from self.ask("pmap", ctx, pid)
        runs, page = list(first.runs), first
        while page.cursor:
            cursor = page.cursor
            page = yield from self.ask("pmap", ctx, pid, cursor)
            runs += page.runs
            if page.cursor and page.cursor <= cursor:
                raise EPROTO(f"the kernel's pmap does not move on from block {cursor}")
        return first._replace(
            runs=[make_row(abi.BlockRun, values) for values in runs],
            sharers=[make_row(abi.SharerRow, values) for values in first.sharers],
            cursor=0,
        )

    def explain(self, ctx: int, pid: int) -> Flow[abi.ExplainResult]:
        """Return what a context waits for, and what became of its KV."""
        found: abi.ExplainResult = yield from self.ask("explain", ctx, pid)
        return found._replace(losses=[make_row(abi.LossRow, values) for values in found.losses])

    def drop_cache(self) -> Flow[int]:
        """Free what the kernel keeps of contexts that are gone; return how many blocks."""
        result: abi.DropCacheResult = yield from self.ask("drop_cache")
        return result.blocks

    def policy(self, name: str | None) -> Flow[tuple[str, list[str]]]:
        """Choose a policy, if one is named; return the one that decides, and all there are."""
        result: abi.SetPolicyResult = yield from self.ask("set_policy", name)
        return result.policy, [str(known) for known in result.policies]

    def log(self, cursor: int) -> Flow[list[abi.LogRow]]:
        """Return the kernel's log records from a number on."""
        rows: list[abi.LogRow] = []
        while True:
            page: abi.LogResult = yield from self.ask("log", cursor)
            rows += [make_row(abi.LogRow, values) for values in page.rows]
            if not page.rows or page.cursor >= page.end:
                return rows
            if page.cursor <= cursor:
                raise EPROTO(f"the kernel's log does not move on from record {cursor}")
            cursor = page.cursor

    def kernel(self) -> Flow[abi.KernelRow]:
        """Return the kernel's own counters."""
        rows = yield from self.snapshot("kernel", abi.KernelRow)
        if not rows:
            raise EPROTO("the kernel's snapshot of itself is empty")
        row: abi.KernelRow = rows[0]
        return row

    def store(self) -> Flow[abi.StoreRow]:
        """Return the kernel's store."""
        rows = yield from self.snapshot("store", abi.StoreRow)
        if not rows:
            raise EPROTO("the kernel's snapshot of its store is empty")
        row: abi.StoreRow = rows[0]
        return row

    def listed(self, name: str, row: Any) -> Flow[list[Any]]:
        """Return the rows of a list call."""
        result: abi.Rows = yield from self.ask(name)
        return [make_row(row, values) for values in result.rows]

    def load_model(
        self, args: abi.LoadModel, progress: Callable[[Progress], None] | None
    ) -> Flow[abi.ModelRow]:
        """Load a model, telling how far it is."""
        row: abi.ModelRow = yield from _told(self.call("load_model", *args), progress)
        return row

    def shutdown(
        self, args: abi.Shutdown, progress: Callable[[Progress], None] | None
    ) -> Flow[abi.ShutdownResult]:
        """Stop the kernel, telling how far it is with saving."""
        result: abi.ShutdownResult = yield from _told(self.call("shutdown", *args), progress)
        return result

    def part(self, model: str, part: str, load: int | None) -> Flow[bytes | None]:
        """Return a part of a model, None if the model has no such part.

        ENODEV if the name is now that of another loading than `load`.
        """
        data = bytearray()
        while True:
            try:
                chunk: abi.ReadModelResult = yield from self.ask(
                    "read_model", model, part, len(data)
                )
            except ENOENT:
                return None
            if load not in (None, chunk.load):
                raise ENODEV(f"model {model} was unloaded, and loaded anew", "make a new context")
            load = chunk.load
            data += chunk.data
            if len(data) >= chunk.total:
                return bytes(data)
            if not chunk.data:
                raise EPROTO(f"{part} of {model} ends at {len(data)} of {chunk.total} bytes")

    def text_model(self, model: str, load: int) -> Flow["TextModel | None"]:
        """Return a model's text layer, read once per task; None if it has no tokenizer."""
        key = model, load
        if key in self._texts:
            return self._texts[key]
        text: TextModel | None = None
        tokenizer = yield from self.part(model, "tokenizer.json", load)
        if tokenizer is not None:
            template = yield from self.part(model, "chat_template.jinja", load)
            config = yield from self.part(model, "config.json", load)
            text = _text_model(model, tokenizer, template, config)
        self._texts[key] = text
        return text

    def text_model_of(self, model: str) -> Flow["TextModel | None"]:
        """Return the text layer of the model that has the name now."""
        for part in ("config.json", "tokenizer.json"):  # which loading it is; the first is short
            try:
                first: abi.ReadModelResult = yield from self.ask("read_model", model, part)
            except ENOENT:
                continue
            return (yield from self.text_model(model, first.load))
        return None


def _told(call: Pending, progress: Callable[[Progress], None] | None) -> Flow[Any]:
    """Wait for the end of a long call, telling how far it is."""
    while not call.done:
        while call.events:
            event = call.events.popleft()
            if progress is not None and isinstance(event, Progress):
                progress(event)
        yield call
    return call.value()


def _text_model(
    model: str, tokenizer: bytes, template: bytes | None, config: bytes | None
) -> "TextModel":
    # Tokenizer and template libraries load here, at the first text, not on import.
    from syscalls.text import TextError, TextModel

    try:
        return TextModel(
            tokenizer.decode(),
            None if template is None else template.decode(),
            {} if config is None else json.loads(config),
        )
    except TextError as error:
        raise EINVAL(f"model {model} and text: {error}", "it still takes ids") from None
    except ValueError as error:
        raise ECORRUPT(f"the text files of model {model} are damaged: {error}") from None


def program_name() -> str:
    """Return the running program's name in the alphabet of task names."""
    name = sub(r"[^A-Za-z0-9._-]+", "-", Path(sys.argv[0]).name if sys.argv else "")[:64]
    return name.strip("-") or "python"
