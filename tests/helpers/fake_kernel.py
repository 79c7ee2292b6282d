"""A scripted kernel for tests of the client: a ROUTER on ipc, in a thread.

    with FakeKernel(path) as kernel:
        kernel.outputs.append([11, 12, HOLD])     # what the next infer samples
        task = connect(address=kernel.address)

Requests are decoded by the real wire format. Contexts are lists of ids; an infer samples its
script, one id of each running infer per step and message, as the real kernel does. Script items
that are not ids: HOLD (in flight until it is cancelled), DIE (the kernel is gone), a KernelError
(the infer fails). `replace[name]` answers a call in the test's own way; a Reply of it is sent.
"""

import os
import threading
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import zmq

from syscalls import abi, wire
from syscalls.abi import Event, Finish
from syscalls.errors import EBADCTX, EBUSY, EEXIST, ENOENT, ENOTSUP, ESRCH, KernelError

HOLD = "hold"
DIE = "die"
SILENT = "silent"

Script = list[Any]


class Reply(NamedTuple):
    """A result row and ids, as a handler returns them."""

    row: Any = ()
    ids: tuple[int, ...] = ()


class Running:
    """One infer in flight."""

    def __init__(self, request: wire.Request, peer: bytes, script: Script) -> None:
        self.request, self.peer, self.script = request, peer, deque(script)
        self.output = 0


class FakeKernel:
    """See the module. `gate`: the first step waits until that many infers are in flight."""

    def __init__(self, directory: Path) -> None:
        self.address = f"ipc://{directory}/kernel.sock"
        self.outputs: deque[Script] = deque()
        self.parts: dict[str, bytes] = {}
        self.replace: dict[str, Callable[[wire.Request], Any]] = {}
        self.requests: list[wire.Request] = []
        self.contexts: dict[int, list[int]] = {}
        self.running: list[Running] = []
        self.gate = 0
        self.chunk = abi.MODEL_CHUNK
        self.load = 0  # of the model
        self.page = 100
        self.host_pid = 0
        self.tickets: list[bytes | None] = []
        self.ended: dict[int, tuple[int, str]] = {}
        self.waits: list[tuple[bytes, wire.Request]] = []
        self.saves: dict[str, tuple[list[int], bytes]] = {}
        self._peers: set[bytes] = set()
        self._stop, self._stopper = os.pipe()
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 1000)
        self._router.setsockopt(zmq.SNDHWM, 0)  # it would drop what a slow client has not taken
        self._router.bind(self.address)
        self._thread = threading.Thread(target=self._loop)
        self.failure: BaseException | None = None

    def __enter__(self) -> "FakeKernel":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        os.write(self._stopper, b"x")
        self._thread.join()
        os.close(self._stop)
        os.close(self._stopper)
        if kind is None and self.failure is not None:
            raise self.failure

    def names(self) -> list[str]:
        """The calls made so far, hello and exit left out."""
        made = [request.row.name for request in self.requests]
        return [name for name in made if name not in ("hello", "exit")]

    def send(self, *events: list[Any], ids: tuple[int, ...] = ()) -> None:
        """Send events to every client; only from the kernel's thread, so from `replace`."""
        for peer in self._peers:
            self._send(peer, *events, ids=ids)

    # --- the thread ---------------------------------------------------------------------------

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._stop, zmq.POLLIN)
        try:
            while self._turn(dict(poller.poll(0 if self._ready() else None))):
                pass
        except BaseException as error:  # noqa: BLE001  shown by __exit__, in the test's thread
            self.failure = error
        finally:
            self._router.close()
            self._context.term()

    def _turn(self, ready: dict[Any, int]) -> bool:
        if self._stop in ready:
            return False
        if self._ready():  # before requests, so that a test knows what came before its call
            return self._step()
        peer, *frames = self._router.recv_multipart()
        return self._request(peer, frames)

    def _ready(self) -> bool:
        if len(self.running) < self.gate:
            return False
        self.gate = 0  # open from now on
        return any(not run.script or run.script[0] is not HOLD for run in self.running)

    def _request(self, peer: bytes, frames: list[bytes]) -> bool:
        try:
            request = wire.unpack_request(frames)
        except wire.BadRequest as bad:
            self._error(peer, bad.call, bad.error)
            return True
        self._peers.add(peer)
        self.requests.append(request)
        name = request.row.name
        try:
            if name in self.replace:
                reply = self.replace[name](request)
            else:
                reply = getattr(self, f"_{name}")(request, peer)
        except KernelError as error:
            self._error(peer, request.call, error)
            return True
        if reply == DIE:
            return False
        if isinstance(reply, Reply):
            self._fin(peer, request.call, reply)
        return True

    def _step(self) -> bool:
        """One id for each running infer, in one message per client; False: the kernel dies."""
        events: dict[bytes, list[Any]] = {}
        for run in list(self.running):
            mine = events.setdefault(run.peer, [])
            item = run.script[0] if run.script else Finish.STOP
            if item == DIE:
                for peer, found in events.items():
                    self._send(peer, *found)
                return False
            if item == HOLD:
                continue
            if isinstance(item, KernelError):
                self.running.remove(run)
                mine.append([Event.ERR, run.request.call, int(item.errno), item.message, "", {}])
            elif isinstance(item, Finish) or run.output == run.request.args.max_tokens:
                finish = item if isinstance(item, Finish) else Finish.LENGTH
                mine.append(self._over(run, finish))
            else:
                run.script.popleft()
                run.output += 1
                self.contexts[run.request.args.ctx].append(item)
                mine.append(_token(run, item))
        for peer, found in events.items():
            if found:
                self._send(peer, *found)
        return True

    def _over(self, run: Running, finish: Finish) -> list[Any]:
        self.running.remove(run)
        length = len(self.contexts[run.request.args.ctx])
        row = abi.InferResult(finish, length, length - run.output, 0, run.output, 0, 7)
        return [Event.FIN, run.request.call, row, 0]

    def _send(self, peer: bytes, *events: list[Any], ids: tuple[int, ...] = ()) -> None:
        frames = [peer, wire.pack_events(list(events))]
        self._router.send_multipart(frames + ([wire.pack_ids(ids)] if ids else []))

    def _fin(self, peer: bytes, call: int, reply: Reply) -> None:
        self._send(peer, [Event.FIN, call, reply.row, len(reply.ids)], ids=reply.ids)

    def _error(self, peer: bytes, call: int, error: KernelError) -> None:
        event = [Event.ERR, call, int(error.errno), error.message, error.hint, dict(error.details)]
        self._send(peer, event)

    def _ctx(self, request: wire.Request) -> list[int]:
        ids = self.contexts.get(request.args.ctx)
        if ids is None:
            raise EBADCTX(f"no context {request.args.ctx}")
        return ids

    def _unused(self, handle: int) -> int:
        if handle in self.contexts:
            raise EEXIST(f"handle {handle} is taken")
        return handle

    def _idle(self, request: wire.Request) -> list[int]:
        if any(run.request.args.ctx == request.args.ctx for run in self.running):
            raise EBUSY("the context has an unfinished infer")
        return self._ctx(request)

    # --- the calls ----------------------------------------------------------------------------

    def _hello(self, request: wire.Request, _: bytes) -> Reply:
        self.tickets.append(request.args.ticket)
        return Reply(abi.HelloResult(41, 3, os.getpid(), "fake", abi.MAX_FRAME, abi.MAX_IDS))

    def _exit(self, _: wire.Request, __: bytes) -> Reply:
        return Reply()

    def _spawn(self, _: wire.Request, __: bytes) -> Reply:
        return Reply(abi.SpawnResult(52, bytes(range(32))))

    def _wait(self, request: wire.Request, peer: bytes) -> Reply | None:
        if request.args.pid in self.ended:
            return Reply(abi.WaitResult(request.args.pid, *self.ended[request.args.pid]))
        self.waits.append((peer, request))
        return None

    def _kill(self, request: wire.Request, _: bytes) -> Reply:
        self.ended[request.args.pid] = (137, "killed")
        for peer, wait in self.waits:
            self._fin(peer, wait.call, Reply(abi.WaitResult(request.args.pid, 137, "killed")))
        self.waits.clear()
        return Reply()

    def _stat_task(self, request: wire.Request, _: bytes) -> Reply:
        return Reply(_task_row(request.args.pid or 41, self.host_pid))

    def _alloc_ctx(self, request: wire.Request, _: bytes) -> Reply:
        self.contexts[self._unused(request.args.ctx)] = []
        return Reply(abi.AllocCtxResult(request.args.model or "null", 4096, 16, self.load))

    def _fork_ctx(self, request: wire.Request, _: bytes) -> Reply:
        ids = self.contexts[self._unused(request.args.child)] = list(self._ctx(request))
        return Reply(abi.ForkCtxResult(len(ids), len(ids) // 16))

    def _save_ctx(self, request: wire.Request, _: bytes) -> Reply:
        ids = list(self._ctx(request))
        self.saves[request.args.name] = ids, request.args.extra
        return Reply(abi.SaveCtxResult(len(ids), 0, 4096, 1))

    def _load_ctx(self, request: wire.Request, _: bytes) -> Reply:
        handle = self._unused(request.args.ctx)
        if request.args.name not in self.saves:
            raise ENOENT("there is no save of this name")
        ids, extra = self.saves[request.args.name]
        self.contexts[handle] = list(ids)
        model = request.args.model or "null"
        row = abi.LoadCtxResult(model, 4096, 16, self.load, len(ids), 0, 1, 1e9, "", extra)
        return Reply(row)

    def _list_saves(self, request: wire.Request, _: bytes) -> Reply:
        names = [name for name in sorted(self.saves) if name > request.args.after]
        rows = [
            abi.SaveRow(name, 1, "current", "null", len(self.saves[name][0]), 0, 4096, 1e9)
            for name in names[: self.page]
        ]
        return Reply(abi.ListSavesResult(list(rows), len(names) > self.page))

    def _drop_save(self, request: wire.Request, _: bytes) -> Reply:
        if self.saves.pop(request.args.name, None) is None:
            raise ENOENT("there is no save of this name")
        return Reply()

    def _append(self, request: wire.Request, _: bytes) -> Reply:
        ids = self._idle(request)
        ids += request.ids or []
        return Reply(abi.LengthResult(len(ids)))

    def _trim_ctx(self, request: wire.Request, _: bytes) -> Reply:
        ids = self._idle(request)
        del ids[request.args.length :]
        return Reply(abi.LengthResult(len(ids)))

    def _free_ctx(self, request: wire.Request, _: bytes) -> Reply:
        self._ctx(request)
        del self.contexts[request.args.ctx]
        return Reply()

    def _read_ctx(self, request: wire.Request, _: bytes) -> Reply:
        ids, start = self._ctx(request), request.args.start
        limit = self.page if request.args.max_ids is None else min(self.page, request.args.max_ids)
        return Reply(abi.ReadCtxResult(start, len(ids)), tuple(ids[start : start + limit]))

    def _stat_ctx(self, request: wire.Request, _: bytes) -> Reply:
        n = len(self._ctx(request))
        return Reply(abi.CtxRow(request.args.ctx, 41, "", "null", n, n, 4096, 1, 0, 1.0, False))

    def _infer(self, request: wire.Request, peer: bytes) -> None:
        ids = self._idle(request)
        ids += request.ids or array("i")
        self.running.append(Running(request, peer, self.outputs.popleft()))

    def _cancel(self, request: wire.Request, peer: bytes) -> Reply:
        for run in self.running:
            if run.request.call == request.args.call:
                ids = self.contexts[run.request.args.ctx]
                keep = run.output if request.args.keep is None else request.args.keep
                del ids[len(ids) - run.output + keep :]
                run.output = keep
                self._send(peer, self._over(run, Finish.CANCELLED))
                return Reply(abi.LengthResult(len(ids)))
        raise ESRCH("no such infer")

    def _list_models(self, _: wire.Request, __: bytes) -> Reply:
        row = abi.ModelRow("null", "null", "null0", "bytes", 4096, 256, 0, 16, [0])
        return Reply(abi.Rows([row]))

    def _list_devices(self, _: wire.Request, __: bytes) -> Reply:
        return Reply(abi.Rows([abi.DeviceRow("null0", "null", "up", 1, 0, 1, 1, "")]))

    def _read_model(self, request: wire.Request, _: bytes) -> Reply:
        data = self.parts.get(request.args.part)
        if data is None:
            raise ENOENT("no such part")
        at = request.args.offset
        return Reply(abi.ReadModelResult(data[at : at + self.chunk], len(data), self.load))

    def _snapshot(self, request: wire.Request, _: bytes) -> Reply:
        if request.args.what != "tasks":
            raise ENOTSUP("tasks only")
        at = request.args.cursor
        rows = [_task_row(pid, 0) for pid in range(at, min(at + 2, 5))]
        return Reply(abi.SnapshotResult(1, rows, at + 2 if at + 2 < 5 else 0))

    def _shutdown(self, _: wire.Request, __: bytes) -> str:
        return DIE


def _token(run: Running, id: int) -> list[Any]:
    best = run.request.args.logprobs
    logprobs = None if best is None else [-0.5]
    top = [[[id + n, -0.5 - n] for n in range(best)]] if best else None
    return [Event.TOKEN, run.request.call, [id], logprobs, top]


def _task_row(pid: int, host_pid: int) -> abi.TaskRow:
    return abi.TaskRow(pid, 1, 0, "t", "Q", "", 0, 1, 9, 1.0, 0, 9, 0, 0.5, host_pid)
