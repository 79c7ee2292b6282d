"""The synchronous client: a program's connection to the kernel, as its task.

    with connect() as task:
        ctx = task.alloc_ctx(system="You are brief.")
        ctx.user("What is the capital of France?")
        for piece in ctx.infer(max_tokens=32):
            print(piece.text, end="", flush=True)

Calls block until the kernel has answered, and raise the error of the call (`syscalls.errors`). A
kernel that is not there, or goes away, is ECONNRESET: at once, in every call that waits, and there
is no reconnect but `Task.reattach`, to a kernel that has saved everything and is up again. One that
is there and does not answer a `connect` is ETIMEDOUT. Ctrl-C interrupts any wait and leaves the
session in order.

A Task is for one thread at a time (EINVAL), and for the host process that made it. Leaving the
`with` block, or `close`, ends the task (status 1 after an exception) unless it is durable.
"""

import os
import subprocess
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import ceil
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import zmq

from syscalls import abi, ctxflow, grants, heritage
from syscalls.address import locate
from syscalls.channel import (
    Channel,
    closed,
    is_saved,
    may_reattach,
    no_answer,
    not_back,
    pump,
)  # fmt: skip
from syscalls.child import Child, as_program_ended, end_unattached, spawn, start, task_name
from syscalls.context import Context
from syscalls.errors import ETIMEDOUT, KernelError
from syscalls.flow import Caller, Flow, Raw, finish, program_name
from syscalls.port import Messages
from syscalls.session import Pending, Progress, Session, SessionEvent
from syscalls.shield import Shield
from syscalls.ticket import inherited
from syscalls.turn import Turn

if TYPE_CHECKING:
    from syscalls.text import TextModel

T = TypeVar("T")

HELLO_S, EXIT_S = 10.0, 1.0


def connect(
    name: str | None = None,
    durable: bool = False,
    ticket: bytes | None = None,
    address: str | None = None,
    timeout: float | None = None,
    grace_s: float = 0.0,
) -> "Task":
    """Open a session and become a task; the program of a spawned one if there is a ticket.

    `timeout` limits in seconds how long each call may wait, except wait and infer (ETIMEDOUT).
    With `grace_s` (<= 60) a TERM does not end the task at once: what it waits for is cancelled, its
    `events` say Signalled(15), and it has so many seconds to tidy up and close.
    """
    task = Task(Channel(locate(os.environ) if address is None else address), timeout)
    try:
        # Not before there is a kernel: a ticket that has been read is gone.
        secret = inherited(os.environ) if ticket is None else ticket
        task.greet(name or program_name(), secret, durable, grace_s)
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
        self._turn = Turn()
        self._session = Session()
        self.caller = Caller(self._session, channel.send)
        self._watch(channel)

    def _watch(self, channel: Channel) -> None:
        self._poller = zmq.Poller()
        self._poller.register(channel.socket, zmq.POLLIN)
        self._poller.register(channel.monitor, zmq.POLLIN)

    # --- contexts -----------------------------------------------------------------------------

    def alloc_ctx(
        self,
        model: str | None = None,
        name: str | None = None,
        durable: bool = False,
        system: str | None = None,
    ) -> Context:
        """Make an empty context, or one that begins with a system message."""
        return Context(self, self.run(ctxflow.alloc_ctx(self.caller, model, name, durable, system)))

    def load_ctx(self, name: str, model: str | None = None, title: str | None = None) -> Context:
        """Make a context from a save of this user's, with its messages.

        It goes on in `model`, by default the one that it was saved from. Ids always come back; KV
        that does not fit this kernel any more (other weights, dtype or block size, a damaged part)
        is computed again when it is needed: `Context.loaded` says how much came, and why not all.
        ENOENT, ECORRUPT, E2BIG, EIO, ENOTSUP if the kernel keeps nothing.
        """
        flow = ctxflow.load_ctx(self.caller, name, model, title)
        return Context(self, self.run_for(flow, None))

    def saves(self) -> list[abi.SaveRow]:
        """List the saves of this task's user, by name."""
        return self.run(ctxflow.saves(self.caller))

    def drop_save(self, name: str) -> None:
        """Delete a save for good."""
        self.run(self.caller.ask("drop_save", name))

    def open_ctx(self, grant: bytes, name: str | None = None) -> Context:
        """Make a context from a granted one, by the id of the grant."""
        return Context(self, self.run(grants.open_ctx(self.caller, grant, name)))

    def revoke(self, grant: bytes) -> int:
        """Take back a grant of this task by its id; return how many contexts lose their ids."""
        return self.run(grants.revoke(self.caller, grant))

    def text_model(self, model: str) -> "TextModel | None":
        """Return the text layer of a loaded model, None if it has no tokenizer."""
        return self.run(self.caller.text_model_of(model))

    # --- tasks --------------------------------------------------------------------------------

    def spawn(
        self,
        program: str | Sequence[str],
        name: str | None = None,
        detached: bool = False,
        env: Mapping[str, str] | None = None,
        nice: int = 0,
        group: str | None = None,
        **popen: Any,
    ) -> Child:
        """Make a child task, and start its program if `program` is a command line.

        With a plain name no process is started: `connect(ticket=child.ticket)` becomes the task.
        Further arguments go to subprocess.Popen. `nice` is for its place among this task's
        children, `group` a name that the children of this task have in common.
        """
        args = abi.Spawn(task_name(program, name), detached, nice, group)
        made = self.run(spawn(self.caller, args))
        return start(self, program, made, env, popen)

    def fork(
        self,
        program: str | Sequence[str],
        contexts: Sequence[Context] | None = None,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> Child:
        """Make a child task with forks of contexts, of all that there are unless some are named.

        No KV is copied.
        `program` is as for `spawn`. The program of the child has the forks as `Task.inherited`,
        under the handles of the originals and in their order, messages included.
        """
        chosen = None if contexts is None else [context.flow for context in contexts]
        flow = heritage.fork_task(self.caller, task_name(program, name), chosen)
        made = self.run(flow)
        return start(self, program, made, env, popen)

    def wait(self, pid: int = 0) -> abi.WaitResult:
        """Wait until a child (0: any) has ended, and take its status."""
        return self.run_for(self.caller.wait(pid), None)

    def kill(
        self, pid: int, sig: int = abi.Sig.TERM, tree: bool = False, group: str | None = None
    ) -> int:
        """Send a signal to a task, with `tree` to all that it has made, too; return to how many.

        Pid 0 and a `group`: to all tasks in it.
        """
        args = pid, int(sig), tree, group
        result: abi.KillResult = self.run(self.caller.ask("kill", *args))
        return result.tasks

    def renice(self, nice: int, pid: int = 0, group: str | None = None) -> int:
        """Set the weight of a task (0: this one) or of a group; return the nice that it had."""
        result: abi.ReniceResult = self.run(self.caller.ask("renice", pid, nice, group))
        return result.before

    def group(self, name: str | None, pid: int = 0) -> str:
        """Put a task (0: this one) into a group, None: out of it; return where it is then."""
        result: abi.GroupResult = self.run(self.caller.ask("group", pid, name))
        return result.group

    def set_limit(
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
        self.run(self.caller.ask("set_limit", resource, soft, hard, pid, group, owner))

    def exit(self, status: int = 0) -> None:
        """End this task, and close the connection."""
        self.run(self.caller.ask("exit", status))
        self._exited = True
        self.close()

    def stat(self, pid: int = 0) -> abi.TaskRow:
        """Describe a task (0: this one)."""
        row: abi.TaskRow = self.run(self.caller.ask("stat_task", pid))
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
        with self._turn, Shield():
            pump(self._channel, self._session)
            happened = list(self._session.events)
            self._session.events.clear()
        return happened

    # --- inspection and administration --------------------------------------------------------

    def ps(self) -> list[abi.TaskRow]:
        """List the tasks."""
        return self.run(self.caller.snapshot("tasks", abi.TaskRow))

    def contexts(self) -> list[abi.CtxRow]:
        """List the contexts."""
        return self.run(self.caller.snapshot("contexts", abi.CtxRow))

    def pools(self) -> list[abi.PoolRow]:
        """List the pools of blocks."""
        return self.run(self.caller.snapshot("pools", abi.PoolRow))

    def usage(self) -> list[abi.UsageRow]:
        """List what users, groups and tasks have used."""
        return self.run(self.caller.snapshot("usage", abi.UsageRow))

    def limits(self) -> list[abi.LimitRow]:
        """List all limits, and what is used of them."""
        return self.run(self.caller.snapshot("limits", abi.LimitRow))

    def pmap(self, ctx: int, pid: int = 0) -> abi.PmapResult:
        """Describe a context block by block, of another task by its pid."""
        return self.run(self.caller.pmap(ctx, pid))

    def explain(self, ctx: int, pid: int = 0) -> abi.ExplainResult:
        """Say what a context waits for and what became of its KV, of another task by its pid."""
        return self.run(self.caller.explain(ctx, pid))

    def drop_cache(self) -> int:
        """Free the cached blocks that this task's user has computed; return how many.

        Cached is the KV of contexts that are gone, kept for prompts that begin like them.
        """
        return self.run(self.caller.drop_cache())

    def policy(self, name: str | None = None) -> tuple[str, list[str]]:
        """Let another policy decide who goes first, if one is named.

        Return the one that decides now, and all that can be chosen. Only the uid that the kernel
        runs as may choose. EPERM, ENOENT.
        """
        return self.run(self.caller.policy(name))

    def log(self, cursor: int = 0) -> list[abi.LogRow]:
        """Read the kernel's log from a record's number on."""
        return self.run(self.caller.log(cursor))

    def kernel(self) -> abi.KernelRow:
        """Return the kernel's own counters."""
        return self.run(self.caller.kernel())

    def store(self) -> abi.StoreRow:
        """Describe disk and keys, as the kernel has them."""
        return self.run(self.caller.store())

    def models(self) -> list[abi.ModelRow]:
        """List the models that are loaded or on their way."""
        return self.run(self.caller.listed("list_models", abi.ModelRow))

    def load_model(
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
        return self.run_for(self.caller.load_model(args, progress), None)

    def unload_model(self, name: str, force: bool = False) -> int:
        """Unload a model; return how many contexts have lost it (EBUSY unless `force`)."""
        result: abi.UnloadModelResult = self.run(self.caller.ask("unload_model", name, force))
        return result.contexts

    def devices(self) -> list[abi.DeviceRow]:
        """List the devices."""
        return self.run(self.caller.listed("list_devices", abi.DeviceRow))

    def shutdown(
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
        return self.run_for(self.caller.shutdown(args, progress), None)

    def call_raw(
        self, name: str, *args: Any, ids: "Sequence[int] | array[int] | None" = None
    ) -> Raw:
        """Make any call of the table."""
        with self._turn:
            call = self.caller.call(name, *args, ids=ids)
            return Raw(self.run_for(finish(call), None), list(call.ids))

    def wait_beside(self, pid: int, process: "subprocess.Popen[bytes]") -> abi.WaitResult:
        """Wait for a child, and end its task if its process ends without becoming it."""
        with self._turn:
            call, stranger = self.caller.waiting(pid), False
            try:
                if not call.done and (process.poll() is not None or self._ends(call, process.pid)):
                    stranger = self.run_for(end_unattached(self.caller, pid), None)
            finally:
                self.caller.leave(pid, call)
            result = self.wait(pid)
        return as_program_ended(result, process) if stranger else result

    def _ends(self, call: Pending, host_pid: int) -> bool:
        """Wait for a host process to end; False if the call has news before."""
        pidfd = os.pidfd_open(host_pid)
        try:
            return not self._wait(call, None, pidfd)
        finally:
            os.close(pidfd)

    def reattach(self, timeout: float | None = None) -> None:
        """Come back to this task after its kernel was stopped with everything saved, and is up.

        Contexts go on as they were; what was in flight has failed with ECONNRESET. It waits until
        the task's contexts are back, no longer than `timeout` seconds. ECONNRESET: there is no
        kernel yet; ESRCH: this one does not have the task.
        """
        with self._turn:
            if self._session.lost is None:
                with Shield():
                    pump(self._channel, self._session)  # nothing has asked since
            secret, lost = may_reattach(self._session, self.hello), self._session.lost
            channel = Channel(self.address)
            self._channel.close()
            self._channel, self._session = channel, Session()
            self.caller.renew(self._session, channel.send)
            self._watch(channel)
            try:
                self.hello = self.run_for(self.caller.attach(self.pid, secret), timeout)
                self._inherit(self.hello)
            except BaseException as error:
                self._session.fail_all(not_back(lost, error))
                channel.close()
                raise

    # --- the end ------------------------------------------------------------------------------

    def close(self, status: int = 0) -> None:
        """End the task, unless it is durable, and close the connection; harmless if repeated."""
        if self._channel.closed:
            return
        over = self._durable or self._exited or self._session.lost is not None
        if not over and self._channel.mine:
            with suppress(KernelError):
                self.run_for(self.caller.ask("exit", status), EXIT_S)
        self.abandon()

    def abandon(self) -> None:
        """Close the connection without a word; the kernel sees the program's end by itself."""
        self._session.fail_all(closed())
        self._channel.close()

    def __enter__(self) -> "Task":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.close(0 if kind is None else 1)

    # --- waiting ------------------------------------------------------------------------------

    def greet(self, name: str, ticket: bytes | None, durable: bool, grace_s: float) -> None:
        """Say hello; ETIMEDOUT if a kernel is there and does not answer."""
        limit = HELLO_S if self._timeout is None else self._timeout
        try:
            self.hello = self.run_for(self.caller.hello(name, ticket, durable, grace_s), limit)
        except ETIMEDOUT:
            raise no_answer(self._channel, limit) from None
        self.pid = self.hello.pid
        self._durable = durable
        self._inherit(self.hello)

    def _inherit(self, hello: abi.HelloResult) -> None:
        if hello.contexts:
            found = self.run(heritage.inherited(self.caller, hello))
            self.inherited += [Context(self, flow) for flow in found]

    def run(self, flow: Flow[T]) -> T:
        """Step a flow to its end, waiting where it waits, no longer than `connect` said."""
        return self.run_for(flow, self._timeout)

    def run_for(self, flow: Flow[T], limit: float | None) -> T:
        """Step a flow to its end, waiting where it waits; ETIMEDOUT after `limit` seconds."""
        deadline = None if limit is None else time.monotonic() + limit
        try:
            with self._turn:
                while True:
                    with Shield():
                        pending = next(flow)
                    self._wait(pending, deadline)
        except StopIteration as end:
            value: T = end.value
            return value
        except BaseException:
            with Shield():
                flow.close()
            raise

    def _wait(self, pending: Pending, deadline: float | None, beside: int | None = None) -> bool:
        """Wait for news of a call; False if the descriptor `beside` became readable before."""
        if beside is not None:
            self._poller.register(beside, zmq.POLLIN)
        try:
            while not (pending.done or pending.events):
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                # Outside the shield, with nothing taken off the socket yet.
                ready = dict(self._poller.poll(None if left is None else ceil(left * 1000)))
                if not ready and left == 0.0:
                    raise ETIMEDOUT(f"{pending.row.name} took longer than this Task's timeout")
                if list(ready) == [beside]:
                    return False
                with Shield():
                    pump(self._channel, self._session)
            return True
        finally:
            if beside is not None:
                self._poller.unregister(beside)
