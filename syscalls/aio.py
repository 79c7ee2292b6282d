"""The asyncio twin of the client: the same names, with `await`.

    async with await aio.connect() as task:
        ctx = await task.alloc_ctx()
        await ctx.user("Hello")
        async for piece in await ctx.infer():
            print(piece.text, end="")

What a call does is a flow that the synchronous client steps, too (`flow`, `ctxflow`); here is only
how it waits. The sockets are watched by the running loop, to which the Task belongs. ZeroMQ's
descriptor is edge-triggered, and sending can take the edge of a message that has arrived: so
after each send the socket is looked at again, in the loop's next turn.

Cancelling a waiting coroutine ends the wait, not the call: a stream can be cancelled, or read on.
"""

import asyncio
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import zmq

from syscalls import abi, ctxflow, grants, heritage
from syscalls.address import locate
from syscalls.aiochild import Child
from syscalls.aiocontext import Context
from syscalls.aiocontext import Grant as Grant
from syscalls.aiocontext import Stream as Stream
from syscalls.aioport import Message as Message
from syscalls.aioport import Messages
from syscalls.aioport import Port as Port
from syscalls.aioport import Subscription as Subscription
from syscalls.channel import (
    Channel,
    closed,
    is_saved,
    may_reattach,
    no_answer,
    not_back,
    pump,
)  # fmt: skip
from syscalls.child import discard, spawn, task_name
from syscalls.client import EXIT_S, HELLO_S
from syscalls.errors import ETIMEDOUT, KernelError
from syscalls.flow import Caller, Flow, Raw, finish, program_name
from syscalls.session import Pending, Progress, Session, SessionEvent
from syscalls.ticket import inherited, launch

if TYPE_CHECKING:
    from syscalls.text import TextModel

T = TypeVar("T")


async def connect(
    name: str | None = None,
    durable: bool = False,
    ticket: bytes | None = None,
    address: str | None = None,
    timeout: float | None = None,
    grace_s: float = 0.0,
) -> "Task":
    """Open a session and become a task; see `syscalls.connect`."""
    task = Task(Channel(locate(os.environ) if address is None else address), timeout)
    try:
        secret = inherited(os.environ) if ticket is None else ticket
        await task.greet(name or program_name(), secret, durable, grace_s)
    except BaseException:
        task.abandon()
        raise
    return task


class Task(Messages):
    """This program, as the kernel sees it. Made by `connect`."""

    def __init__(self, channel: Channel, timeout: float | None) -> None:
        self.address = channel.address
        self.pid = 0
        self.hello: abi.HelloResult | None = None
        self._channel = channel
        self._timeout = timeout
        self._durable = False
        self._exited = False
        self.inherited: list[Context] = []  # that were the task's before its program came
        self._session = Session()
        self.caller = Caller(self._session, self._send)
        self._waiting: dict[Pending, list[asyncio.Future[None]]] = {}
        self._loop = asyncio.get_running_loop()
        self._fds: list[int] = []
        self._watch()

    def _watch(self) -> None:
        self._fds = [self._channel.socket.FD, self._channel.monitor.FD]
        for fd in self._fds:
            self._loop.add_reader(fd, self._pump)

    # --- contexts -----------------------------------------------------------------------------

    async def alloc_ctx(
        self,
        model: str | None = None,
        name: str | None = None,
        durable: bool = False,
        system: str | None = None,
    ) -> Context:
        """Make an empty context, or one that begins with a system message."""
        flow = ctxflow.alloc_ctx(self.caller, model, name, durable, system)
        return Context(self, await self.run(flow))

    async def load_ctx(
        self, name: str, model: str | None = None, title: str | None = None
    ) -> Context:
        """Make a context from a save of this user's; see `client.Task.load_ctx`."""
        flow = ctxflow.load_ctx(self.caller, name, model, title)
        return Context(self, await self.run_for(flow, None))

    async def saves(self) -> list[abi.SaveRow]:
        """List the saves of this task's user, by name."""
        return await self.run(ctxflow.saves(self.caller))

    async def drop_save(self, name: str) -> None:
        """Delete a save for good."""
        await self.run(self.caller.ask("drop_save", name))

    async def open_ctx(self, grant: bytes, name: str | None = None) -> Context:
        """Make a context from a granted one, by the id of the grant."""
        return Context(self, await self.run(grants.open_ctx(self.caller, grant, name)))

    async def revoke(self, grant: bytes) -> int:
        """Take back a grant of this task by its id; return how many contexts lose their ids."""
        return await self.run(grants.revoke(self.caller, grant))

    async def text_model(self, model: str) -> "TextModel | None":
        """Return the text layer of a loaded model, None if it has no tokenizer."""
        return await self.run(self.caller.text_model_of(model))

    # --- tasks --------------------------------------------------------------------------------

    async def spawn(
        self,
        program: str | Sequence[str],
        name: str | None = None,
        detached: bool = False,
        env: Mapping[str, str] | None = None,
        nice: int = 0,
        group: str | None = None,
        **popen: Any,
    ) -> Child:
        """Make a child task, and start its program if `program` is a command line."""
        args = abi.Spawn(task_name(program, name), detached, nice, group)
        made = await self.run(spawn(self.caller, args))
        return await self._start(program, made, env, popen)

    async def fork(
        self,
        program: str | Sequence[str],
        contexts: Sequence[Context] | None = None,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> Child:
        """Make a child task with forks of contexts; see `syscalls.Task.fork`."""
        chosen = None if contexts is None else [context.flow for context in contexts]
        flow = heritage.fork_task(self.caller, task_name(program, name), chosen)
        made = await self.run(flow)
        return await self._start(program, made, env, popen)

    async def _start(
        self,
        program: str | Sequence[str],
        made: abi.SpawnResult | abi.ForkTaskResult,
        env: Mapping[str, str] | None,
        popen: dict[str, Any],
    ) -> Child:
        if isinstance(program, str):
            return Child(self, made.pid, made.ticket, None)
        try:
            process = launch(program, made.ticket, self.address, env, **popen)
        except KernelError:
            with suppress(KernelError):
                await self.run(discard(self.caller, made.pid))
            raise
        return Child(self, made.pid, None, process)

    async def wait(self, pid: int = 0) -> abi.WaitResult:
        """Wait until a child (0: any) has ended, and take its status."""
        return await self.run_for(self.caller.wait(pid), None)

    async def kill(
        self, pid: int, sig: int = abi.Sig.TERM, tree: bool = False, group: str | None = None
    ) -> int:
        """Send a signal to a task, with `tree` to all that it has made, too; return to how many.

        Pid 0 and a `group`: to all tasks in it.
        """
        args = pid, int(sig), tree, group
        result: abi.KillResult = await self.run(self.caller.ask("kill", *args))
        return result.tasks

    async def renice(self, nice: int, pid: int = 0, group: str | None = None) -> int:
        """Set the weight of a task (0: this one) or of a group; return the nice that it had."""
        result: abi.ReniceResult = await self.run(self.caller.ask("renice", pid, nice, group))
        return result.before

    async def group(self, name: str | None, pid: int = 0) -> str:
        """Put a task (0: this one) into a group, None: out of it; return where it is then."""
        result: abi.GroupResult = await self.run(self.caller.ask("group", pid, name))
        return result.group

    async def set_limit(
        self,
        resource: str,
        hard: float | None = None,
        *,
        soft: float | None = None,
        pid: int = 0,
        group: str | None = None,
        owner: bool = False,
    ) -> None:
        """Limit a resource (abi.Resource) of a task (0: this one), a group or this user.

        Neither hard nor soft: the limit is removed.
        """
        soft, hard = (None if each is None else float(each) for each in (soft, hard))
        await self.run(self.caller.ask("set_limit", resource, soft, hard, pid, group, owner))

    async def exit(self, status: int = 0) -> None:
        """End this task, and close the connection."""
        await self.run(self.caller.ask("exit", status))
        self._exited = True
        await self.close()

    async def stat(self, pid: int = 0) -> abi.TaskRow:
        """Describe a task (0: this one)."""
        row: abi.TaskRow = await self.run(self.caller.ask("stat_task", pid))
        return row

    @property
    def lost(self) -> KernelError | None:
        """Why no call can succeed any more; None while the session lives."""
        return self._session.lost

    @property
    def saved(self) -> bool:
        """Whether the kernel has saved this task, and stopped: `reattach` comes back to it."""
        return is_saved(self._session.lost)

    def events(self) -> list[SessionEvent]:
        """Return what has happened to the task since the last time: signals, ended children."""
        happened = list(self._session.events)
        self._session.events.clear()
        return happened

    # --- inspection and administration --------------------------------------------------------

    async def ps(self) -> list[abi.TaskRow]:
        """List the tasks."""
        return await self.run(self.caller.snapshot("tasks", abi.TaskRow))

    async def contexts(self) -> list[abi.CtxRow]:
        """List the contexts."""
        return await self.run(self.caller.snapshot("contexts", abi.CtxRow))

    async def pools(self) -> list[abi.PoolRow]:
        """List the pools of blocks."""
        return await self.run(self.caller.snapshot("pools", abi.PoolRow))

    async def usage(self) -> list[abi.UsageRow]:
        """List what users, groups and tasks have used."""
        return await self.run(self.caller.snapshot("usage", abi.UsageRow))

    async def limits(self) -> list[abi.LimitRow]:
        """List all limits, and what is used of them."""
        return await self.run(self.caller.snapshot("limits", abi.LimitRow))

    async def pmap(self, ctx: int, pid: int = 0) -> abi.PmapResult:
        """Describe a context block by block, of another task by its pid."""
        return await self.run(self.caller.pmap(ctx, pid))

    async def explain(self, ctx: int, pid: int = 0) -> abi.ExplainResult:
        """Say what a context waits for and what became of its KV, of another task by its pid."""
        return await self.run(self.caller.explain(ctx, pid))

    async def drop_cache(self) -> int:
        """Free the cached blocks that this task's user has computed; return how many.

        Cached is the KV of contexts that are gone, kept for prompts that begin like them.
        """
        return await self.run(self.caller.drop_cache())

    async def policy(self, name: str | None = None) -> tuple[str, list[str]]:
        """Let another policy decide who goes first, if one is named.

        Return the one that decides now, and all that can be chosen. Only the uid that the kernel
        runs as may choose. EPERM, ENOENT.
        """
        return await self.run(self.caller.policy(name))

    async def log(self, cursor: int = 0) -> list[abi.LogRow]:
        """Read the kernel's log from a record's number on."""
        return await self.run(self.caller.log(cursor))

    async def kernel(self) -> abi.KernelRow:
        """Return the kernel's own counters."""
        return await self.run(self.caller.kernel())

    async def store(self) -> abi.StoreRow:
        """Describe disk and keys, as the kernel has them."""
        return await self.run(self.caller.store())

    async def models(self) -> list[abi.ModelRow]:
        """List the models that are loaded or on their way."""
        return await self.run(self.caller.listed("list_models", abi.ModelRow))

    async def load_model(
        self,
        name: str,
        path: str,
        device: str | None = None,
        dtype: str | None = None,
        kv_bytes: int = 0,
        max_ctx: int = 0,
        deterministic: bool | None = None,
        progress: Callable[[Progress], None] | None = None,
        kv_dtype: str | None = None,
    ) -> abi.ModelRow:
        """Load the model of a folder; what is not said is as the kernel was started."""
        args = abi.LoadModel(
            name, path, device, dtype, kv_bytes, 0, max_ctx, deterministic, kv_dtype
        )
        return await self.run_for(self.caller.load_model(args, progress), None)

    async def unload_model(self, name: str, force: bool = False) -> int:
        """Unload a model; return how many contexts have lost it (EBUSY unless `force`)."""
        result: abi.UnloadModelResult = await self.run(self.caller.ask("unload_model", name, force))
        return result.contexts

    async def devices(self) -> list[abi.DeviceRow]:
        """List the devices."""
        return await self.run(self.caller.listed("list_devices", abi.DeviceRow))

    async def shutdown(
        self,
        grace_s: float = 10.0,
        save: bool = False,
        replace: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> abi.ShutdownResult:
        """Stop the kernel; running requests may take grace_s to end.

        With `save` tasks and contexts are kept for the next kernel; if they cannot be, this one
        goes on. `replace` gives the places of what was saved before, and waits, up.
        """
        args = abi.Shutdown(grace_s, save, replace)
        return await self.run_for(self.caller.shutdown(args, progress), None)

    async def call_raw(
        self, name: str, *args: Any, ids: "Sequence[int] | array[int] | None" = None
    ) -> Raw:
        """Make any call of the table."""
        call = self.caller.call(name, *args, ids=ids)
        return Raw(await self.run_for(finish(call), None), list(call.ids))

    async def reattach(self, timeout: float | None = None) -> None:
        """Come back to this task in a kernel that is up again; see `syscalls.Task.reattach`."""
        secret, lost = may_reattach(self._session, self.hello), self._session.lost
        channel = Channel(self.address)
        self._drop_channel()
        self._channel, self._session = channel, Session()
        self.caller.renew(self._session, self._send)
        self._watch()
        try:
            self.hello = await self.run_for(self.caller.attach(self.pid, secret), timeout)
            await self._inherit(self.hello)
        except BaseException as error:
            self._wake(self._session.fail_all(not_back(lost, error)))
            self._drop_channel()
            raise

    # --- the end ------------------------------------------------------------------------------

    async def close(self, status: int = 0) -> None:
        """End the task, unless it is durable, and close the connection; harmless if repeated."""
        if self._channel.closed:
            return
        over = self._durable or self._exited or self._session.lost is not None
        if not over and self._channel.mine:
            with suppress(KernelError):
                await self.run_for(self.caller.ask("exit", status), EXIT_S)
        self.abandon()

    def abandon(self) -> None:
        """Close the connection without a word; the kernel sees the program's end by itself."""
        self._wake(self._session.fail_all(closed()))
        self._drop_channel()

    def _drop_channel(self) -> None:
        if not self._channel.closed and self._channel.mine:
            for fd in self._fds:
                self._loop.remove_reader(fd)
        self._channel.close()

    async def __aenter__(self) -> "Task":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        await self.close(0 if kind is None else 1)

    # --- waiting ------------------------------------------------------------------------------

    async def greet(self, name: str, ticket: bytes | None, durable: bool, grace_s: float) -> None:
        """Say hello; ETIMEDOUT if a kernel is there and does not answer."""
        limit = HELLO_S if self._timeout is None else self._timeout
        try:
            self.hello = await self.run_for(
                self.caller.hello(name, ticket, durable, grace_s), limit
            )
        except ETIMEDOUT:
            raise no_answer(self._channel, limit) from None
        self.pid = self.hello.pid
        self._durable = durable
        await self._inherit(self.hello)

    async def _inherit(self, hello: abi.HelloResult) -> None:
        if hello.contexts:
            found = await self.run(heritage.inherited(self.caller, hello))
            self.inherited += [Context(self, flow) for flow in found]

    async def run(self, flow: Flow[T]) -> T:
        """Step a flow to its end, waiting where it waits, no longer than `connect` said."""
        return await self.run_for(flow, self._timeout)

    async def run_for(self, flow: Flow[T], limit: float | None) -> T:
        """Step a flow to its end, waiting where it waits; ETIMEDOUT after `limit` seconds."""
        try:
            async with asyncio.timeout(limit):
                while True:
                    try:
                        pending = next(flow)
                    except StopIteration as end:
                        return cast(T, end.value)
                    await self.news(pending)
        except TimeoutError:
            flow.close()
            raise ETIMEDOUT("the call took longer than this Task's timeout") from None
        except BaseException:
            flow.close()
            raise

    async def news(self, pending: Pending) -> None:
        """Wait until a call has an event, or its end."""
        while not (pending.done or pending.events):
            future = self._loop.create_future()
            self._waiting.setdefault(pending, []).append(future)
            await future

    def _send(self, frames: list[bytes]) -> None:
        self._channel.send(frames)
        if cast(int, self._channel.socket.EVENTS) & zmq.POLLIN:
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        if not self._channel.closed:
            self._wake(pump(self._channel, self._session))

    def _wake(self, news: list[Pending]) -> None:
        for pending in news:
            for future in self._waiting.pop(pending, ()):
                if not future.done():
                    future.set_result(None)
