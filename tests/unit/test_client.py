"""The synchronous client against a scripted kernel."""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import zmq

import syscalls
from syscalls import Exited, KernelError, Signalled, abi, connect, wire
from syscalls.abi import Event
from syscalls.client import Task
from syscalls.errors import (
    E2BIG,
    EBADCTX,
    EBUSY,
    ECONNRESET,
    EINVAL,
    EIO,
    ENOENT,
    ENOTSUP,
    EPERM,
    EPROTO,
    ESRCH,
    ETIMEDOUT,
)
from tests.helpers.fake_kernel import DIE, HOLD, FakeKernel, Reply

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    with FakeKernel(tmp_path) as kernel:
        yield kernel


@pytest.fixture
def task(kernel: FakeKernel) -> Iterator[Task]:
    with connect("tester", address=kernel.address) as task:
        yield task


# --- connect --------------------------------------------------------------------------------------


def test_hello(kernel: FakeKernel, task: Task) -> None:
    assert task.pid == 41
    assert kernel.requests[0].args == abi.Hello("tester")
    assert task.hello is not None and task.hello.version == "fake"


@pytest.mark.parametrize(
    ("argv0", "name"),
    [("/usr/bin/my agent.py", "my-agent.py"), ("-c", "c"), ("", "python"), ("ü", "python")],
)
def test_the_name_of_the_program(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, argv0: str, name: str
) -> None:
    monkeypatch.setattr(sys, "argv", [argv0])
    with connect(address=kernel.address):
        assert kernel.requests[0].args.name == name


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(ECONNRESET, match="no kernel is running") as caught:
        connect(address=f"ipc://{tmp_path}/kernel.sock")
    assert "llmos up" in caught.value.hint


def test_a_socket_that_nobody_listens_to(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(tmp_path / "kernel.sock"))
    with pytest.raises(ECONNRESET, match="no kernel is running"):
        connect(address=f"ipc://{tmp_path}/kernel.sock")


def test_a_file_that_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "kernel.sock").write_text("not a socket")
    with pytest.raises(ECONNRESET):
        connect(address=f"ipc://{tmp_path}/kernel.sock")


def test_a_listener_that_says_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "kernel.sock"))
        mute.listen()
        with pytest.raises(ETIMEDOUT, match="did not answer") as caught:
            connect(address=f"ipc://{tmp_path}/kernel.sock", timeout=0.05)
    assert f"kill -9 {os.getpid()} " in caught.value.hint


def test_a_listener_that_hangs_up(tmp_path: Path) -> None:
    def hang_up() -> None:
        for _ in range(2):  # the probe, then ZeroMQ
            mute.accept()[0].close()

    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "kernel.sock"))
        mute.listen()
        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ECONNRESET, match="went away"):
            connect(address=f"ipc://{tmp_path}/kernel.sock")
        thread.join()


def test_the_address_comes_from_the_environment(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_HOST", kernel.address)
    with connect() as task:
        assert task.address == kernel.address


def test_a_home_that_others_may_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMOS_HOST", raising=False)
    monkeypatch.setenv("LLMOS_HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    with pytest.raises(EPERM, match="open to other users"):
        connect()


def test_a_refused_hello(kernel: FakeKernel) -> None:
    def refuse(_: wire.Request) -> Reply:
        raise EPERM("not you")

    kernel.replace["hello"] = refuse
    with pytest.raises(EPERM, match="not you"):
        connect(address=kernel.address)


# --- calls ----------------------------------------------------------------------------------------


def test_inspection(kernel: FakeKernel, task: Task) -> None:
    assert [row.pid for row in task.ps()] == [0, 1, 2, 3, 4]
    cursors = [r.args.cursor for r in kernel.requests if r.row.name == "snapshot"]
    assert cursors == [0, 2, 4]
    assert task.models()[0].name == "null"
    assert task.devices()[0].device == "null0"
    assert task.stat(7).pid == 7
    with pytest.raises(ENOTSUP):
        task.pools()


def test_a_second_thread_is_refused_while_the_first_waits(kernel: FakeKernel, task: Task) -> None:
    """It would take the first one's answer off the socket; between calls a Task is handed over."""
    asked, answer = threading.Event(), threading.Event()
    rows: list[abi.TaskRow] = []

    def stat(request: wire.Request) -> Reply:
        asked.set()
        answer.wait()
        return kernel._stat_task(request, b"")

    kernel.replace["stat_task"] = stat
    first = threading.Thread(target=lambda: rows.append(task.stat()))
    first.start()
    try:
        asked.wait()
        for call in (task.ps, task.events, task.wait, lambda: task.call_raw("list_models")):
            with pytest.raises(EINVAL, match="another thread") as caught:
                call()
            assert "connect() in each thread" in caught.value.hint
    finally:
        answer.set()
        first.join()
    assert [row.pid for row in rows] == [41]
    assert task.stat().pid == 41


def test_a_closed_task_is_not_a_kernel_that_went_away(task: Task) -> None:
    task.close()
    with pytest.raises(ECONNRESET, match=r"^this Task is closed") as caught:
        task.ps()
    assert "connect()" in caught.value.hint


def test_a_snapshot_that_does_not_move_on(kernel: FakeKernel, task: Task) -> None:
    kernel.replace["snapshot"] = lambda request: Reply(abi.SnapshotResult(1, [], 5))
    with pytest.raises(EPROTO, match="does not move on"):
        task.contexts()


def test_an_empty_kernel_row(kernel: FakeKernel, task: Task) -> None:
    kernel.replace["snapshot"] = lambda request: Reply(abi.SnapshotResult(1, [], 0))
    with pytest.raises(EPROTO):
        task.kernel()


def test_what_is_not_built(task: Task) -> None:
    with pytest.raises(ENOTSUP):
        task.call_raw("embed", ids=[1])


def test_any_call(task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.append([4, 5, 6])
    assert task.call_raw("read_ctx", ctx.handle, 1) == (abi.ReadCtxResult(1, 3), [5, 6])
    with pytest.raises(EINVAL, match="no system call"):
        task.call_raw("nonsense")


def test_calls_time_out_where_that_was_asked_for(kernel: FakeKernel) -> None:
    with connect(address=kernel.address, timeout=0.05) as task:
        kernel.replace["list_models"] = lambda request: None
        with pytest.raises(ETIMEDOUT, match="list_models"):
            task.models()
        assert task.devices()  # the session is in order, and the lost call has no reader


def test_events(kernel: FakeKernel, task: Task) -> None:
    def happen(_: wire.Request) -> Reply:
        kernel.send([Event.SIGNAL, 0, 15], [Event.EXIT, 0, 52, 3, "exit"])
        return Reply(abi.Rows([]))

    kernel.replace["list_models"] = happen
    assert task.events() == []
    task.models()
    assert task.events() == [Signalled(15), Exited(52, 3, "exit")]
    assert task.events() == []


# --- contexts -------------------------------------------------------------------------------------


def test_handles_carry_the_connection_and_rise(task: Task) -> None:
    ctx = task.alloc_ctx()
    forks = ctx.fork(2)
    assert [c.handle for c in (ctx, *forks, ctx.fork())] == [3 << 24 | n for n in (1, 2, 3, 4)]


def test_ids_in_and_out(kernel: FakeKernel, task: Task) -> None:
    kernel.page = 3
    with task.alloc_ctx(name="notes") as ctx:
        assert ctx.append([1, 2, 3]) == 3
        assert ctx.append(range(4, 9)) == 8
        assert ctx.append([]) == 8
        assert ctx.length == ctx.stat().length == 8
        assert ctx.read() == list(range(1, 9))
        assert ctx.read(2, 4) == [3, 4, 5, 6]
        assert ctx.read(8) == []
        assert ctx.trim(5) == ctx.length == 5
        assert ctx.read(3, 0) == []
    assert kernel.contexts == {}
    ctx.free()  # a second time is harmless
    assert kernel.names().count("free_ctx") == 1


def test_a_context_that_is_gone(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.free()
    with pytest.raises(EBADCTX):
        ctx.append([1])


def test_too_many_ids_for_one_message(task: Task) -> None:
    ctx = task.alloc_ctx()
    with pytest.raises(E2BIG):
        ctx.append([1] * (abi.MAX_IDS + 1))
    assert ctx.append([1]) == 1


def test_text_needs_a_tokenizer(task: Task) -> None:
    ctx = task.alloc_ctx()
    for use in (ctx.append, ctx.user, ctx.system):
        with pytest.raises(EINVAL, match="no tokenizer"):
            use("text")
    ctx.append([1])
    with pytest.raises(EINVAL, match="need a tokenizer"):
        ctx.infer(stop="x")
    with pytest.raises(EINVAL, match="no tokenizer"):
        task.alloc_ctx(system="text")
    assert ctx.append([1]) == 2


def test_a_context_that_could_not_be_begun_is_freed(kernel: FakeKernel, task: Task) -> None:
    with pytest.raises(EINVAL):
        task.alloc_ctx(system="text")
    task.ps()
    assert kernel.contexts == {}


def test_forks_are_all_made_or_none(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    kernel.contexts[3 << 24 | 3] = []  # the second fork's handle is taken
    with pytest.raises(KernelError):
        ctx.fork(3)
    task.ps()
    assert set(kernel.contexts) == {ctx.handle}
    with pytest.raises(EINVAL):
        ctx.fork(0)


class Interrupted:
    """Ctrl-C in the middle of the calls of one name: some are sent, some are not."""

    def __init__(self, ctx: Any, name: str, after: int, patch: pytest.MonkeyPatch) -> None:
        self._call, self._name, self._left = ctx.flow.caller.call, name, after
        patch.setattr(ctx.flow.caller, "call", self)

    def __call__(self, name: str, *args: Any, **rest: Any) -> Any:
        self._left -= name == self._name
        if name == self._name and self._left == -1:
            raise KeyboardInterrupt
        return self._call(name, *args, **rest)


@pytest.mark.parametrize("after", range(3))
def test_an_interrupted_fork_leaves_none(
    kernel: FakeKernel, task: Task, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = task.alloc_ctx()
    ctx.append([1])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Interrupted(ctx, "fork_ctx", after, patch)
        ctx.fork(3)
    task.ps()
    assert set(kernel.contexts) == {ctx.handle}


@pytest.mark.parametrize("after", range(3))
def test_answers_of_which_some_are_freed_can_be_freed(
    kernel: FakeKernel, task: Task, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = task.alloc_ctx()
    ctx.append([1])
    kernel.outputs += [[11]] * 3
    answers = ctx.infer_n(3, text=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Interrupted(ctx, "free_ctx", after, patch)
        answers.free()
    answers.free()
    task.ps()
    assert set(kernel.contexts) == {ctx.handle}


# --- streams --------------------------------------------------------------------------------------


def test_a_stream(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.append([1, 2])
    kernel.outputs.append([11, 12, 13])
    stream = ctx.infer(max_tokens=8, temperature=0, seed=5, stop_ids=[9], logprobs=1)
    assert (stream.finish, stream.usage, stream.seed) == (None, None, None)
    pieces = list(stream)
    assert [(p.id, p.text, p.logprob) for p in pieces] == [(n, "", -0.5) for n in (11, 12, 13)]
    assert pieces[0].top == [(11, -0.5)]
    assert (stream.finish, stream.ids, stream.seed) == ("stop", [11, 12, 13], 7)
    assert stream.usage == (2, 0, 3, 0, 0)
    assert ctx.length == 5
    assert list(stream) == []
    args = kernel.requests[-1].args
    assert args == abi.Infer(ctx.handle, 8, 0, 0, 1.0, 0.0, 5, [9], False, 1)  # type: ignore[arg-type]


def test_length_is_a_finish(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    kernel.outputs.append([11, 12, 13])
    stream = ctx.infer(max_tokens=2)
    assert stream.read() == ""
    assert (stream.finish, stream.ids) == ("length", [11, 12])


def test_streams_are_read_in_turns(kernel: FakeKernel, task: Task) -> None:
    kernel.gate = 3
    contexts = [task.alloc_ctx() for _ in range(3)]
    kernel.outputs.extend([10 * n + i for i in range(n + 2)] for n in range(1, 4))
    streams = [ctx.infer() for ctx in contexts]
    got: list[list[int | None]] = [[], [], []]
    assert next(streams[2]).id == 30
    task.ps()  # other calls go on in between
    while any(stream.finish is None for stream in streams):
        for ids, stream in zip(got, streams, strict=True):
            ids += [piece.id for piece in [next(stream, None)] if piece is not None]
    assert got == [[10, 11, 12], [20, 21, 22, 23], [31, 32, 33, 34]]
    assert [ctx.length for ctx in contexts] == [3, 4, 5]


def test_what_the_kernel_refuses(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.append([1, 2, 3])

    def refuse(_: wire.Request) -> Reply:
        raise E2BIG("the context is full")

    kernel.replace["infer"] = refuse
    stream = ctx.infer()
    for _ in range(2):
        with pytest.raises(E2BIG):
            next(stream)
    assert ctx.length == 3
    assert ctx.append([4]) == 4


def test_a_device_that_fails_in_the_middle(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    kernel.outputs.append([11, 12, EIO("the device failed")])
    stream = ctx.infer()
    assert [next(stream).id, next(stream).id] == [11, 12]
    with pytest.raises(EIO):
        next(stream)
    assert ctx.length == 2  # what the kernel says the context holds
    assert stream.ids == [11, 12]


def test_cancel_keeps_what_has_come(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.append([1])
    kernel.outputs.append([11, 12, HOLD])
    stream = ctx.infer()
    next(stream)
    next(stream)
    assert stream.cancel() == ctx.length == 3
    assert (stream.finish, stream.ids) == ("cancelled", [11, 12])
    assert stream.cancel() == 3  # harmless
    assert ctx.append([4]) == 4


def test_cancel_takes_what_was_not_read(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    kernel.outputs.append([11, 12, 13, HOLD])
    stream = ctx.infer()
    assert next(stream).id == 11
    ctx.cancel()
    assert stream.ids == [11, 12, 13]
    assert [piece.id for piece in stream] == [12, 13]
    assert stream.finish == "cancelled"


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_cancel_keeps_so_many(kernel: FakeKernel, task: Task, keep: int) -> None:
    ctx = task.alloc_ctx()
    ctx.append([1, 2])
    kernel.outputs.append([11, 12, 13, HOLD])
    stream = ctx.infer()
    for _ in range(3):
        next(stream)
    assert ctx.cancel(keep) == 2 + keep
    assert stream.ids == [11, 12, 13][:keep]
    assert ctx.read() == [1, 2, *stream.ids]
    with pytest.raises(EINVAL):
        stream.cancel(-1)


def test_cancel_of_an_infer_that_has_just_ended(kernel: FakeKernel, task: Task) -> None:
    """Its FIN and the cancel crossed: the kernel does not know the call any more."""
    ctx = task.alloc_ctx()
    kernel.outputs.append([11, 12, 13])
    stream = ctx.infer()
    next(stream)
    task.ps()
    assert ctx.cancel(1) == 1
    assert ctx.read() == [11]
    assert stream.finish == "stop"


def test_a_refused_cancel_leaves_the_stream_alone(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    kernel.outputs.append([11, HOLD])
    stream = ctx.infer()
    next(stream)

    def refuse(_: wire.Request) -> Reply:
        raise EINVAL("keep 9 of 1")

    kernel.replace["cancel"] = refuse
    with pytest.raises(EINVAL, match="keep 9"):
        ctx.cancel(9)
    del kernel.replace["cancel"]
    assert ctx.cancel() == 1
    assert stream.finish == "cancelled"


def test_a_context_with_an_unread_stream_is_busy(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    kernel.outputs.append([11, HOLD])
    stream = ctx.infer()
    next(stream)
    for use in (lambda: ctx.append([1]), lambda: ctx.trim(0), ctx.infer):
        with pytest.raises(EBUSY, match="cancel"):
            use()
    fork = ctx.fork()
    assert ctx.read() == [11]
    assert fork.append([5]) == 2
    stream.cancel()
    assert ctx.append([1]) == 2


def test_a_stream_that_is_over_needs_no_reading(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    kernel.outputs.append([11, 12])
    stream = ctx.infer()
    next(stream)
    while not stream._generation.over:
        task.ps()
    assert ctx.append([1]) == ctx.length == 3
    assert stream.finish == "stop"
    assert [piece.id for piece in stream] == [12]


# --- the end of the kernel ------------------------------------------------------------------------


def test_the_kernel_goes_in_the_middle_of_a_stream(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    kernel.outputs.append([11, 12, DIE])
    stream = ctx.infer()
    assert [next(stream).id, next(stream).id] == [11, 12]  # what had come is not lost
    with pytest.raises(ECONNRESET):
        next(stream)
    for use in (task.ps, task.models, lambda: ctx.append([1]), ctx.free):
        with pytest.raises(ECONNRESET):
            use()


@pytest.mark.parametrize("count", [1, 40, 1000])
def test_what_the_kernel_sent_last_arrives(kernel: FakeKernel, task: Task, count: int) -> None:
    ctx = task.alloc_ctx()
    kernel.outputs.append([*range(count), DIE])
    stream = ctx.infer(max_tokens=count + 1)
    with pytest.raises(ECONNRESET):
        list(stream)
    assert stream.ids == list(range(count))


def test_the_kernel_goes_while_others_wait(kernel: FakeKernel, task: Task) -> None:
    kernel.gate = 2
    one, two = task.alloc_ctx(), task.alloc_ctx()
    kernel.outputs.extend([[11, HOLD], [21, DIE]])
    streams = one.infer(), two.infer()
    for stream in streams:
        with pytest.raises(ECONNRESET):
            list(stream)
    with pytest.raises(ECONNRESET):
        task.wait()


def test_shutdown(kernel: FakeKernel, task: Task) -> None:
    with pytest.raises(ECONNRESET):
        task.shutdown(0.5)
    assert kernel.requests[-1].args == abi.Shutdown(0.5)


@pytest.mark.parametrize(
    "event",
    [[Event.FIN, 999, [], 0], [Event.FIN, 1, [], 0], ["x"], [Event.ERR, 0, 71, "bad", "", {}]],
)
def test_a_kernel_that_breaks_the_protocol(
    kernel: FakeKernel, task: Task, event: list[Any]
) -> None:
    kernel.replace["list_models"] = lambda request: kernel.send(event)
    with pytest.raises(EPROTO):
        task.models()
    with pytest.raises(EPROTO):
        task.ps()


# --- interrupts -----------------------------------------------------------------------------------


def interrupted(use: Callable[[], object]) -> None:
    """Interrupt a call while the kernel has nothing to say, so while the client waits."""
    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        use()
    timer.join()
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_in_a_wait_does_not_lose_the_status(kernel: FakeKernel, task: Task) -> None:
    child = task.spawn("worker")
    interrupted(child.wait)
    child.kill(9)
    assert child.wait() == (52, 137, "killed")
    assert kernel.names().count("wait") == 1


def test_ctrl_c_in_the_wait_for_a_process(kernel: FakeKernel, task: Task) -> None:
    program = "import sys; sys.stdin.read()"
    child = task.spawn([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert child.process is not None and child.process.stdin is not None
    interrupted(child.wait)
    child.process.stdin.close()
    assert child.wait() == (52, 0, "its program ended")
    assert kernel.names().count("wait") == 1


def test_ctrl_c_in_a_stream_leaves_the_session_in_order(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    ctx.append([1])
    kernel.outputs.append([11, 12, HOLD])
    stream = ctx.infer()
    assert [next(stream).id, next(stream).id] == [11, 12]
    interrupted(lambda: next(stream))
    assert stream.cancel() == 3
    assert (stream.finish, stream.ids) == ("cancelled", [11, 12])
    assert ctx.read() == [1, 11, 12]


LIBRARIES = tuple(str(Path(module.__file__).parent) for module in (syscalls, zmq))


def inside_a_call(_: int, frame: FrameType | None) -> None:
    """Raise at any instruction of the client's call; not in the test, nor in a destructor of it."""
    while frame is not None and frame.f_code.co_filename.startswith(LIBRARIES):
        if frame.f_code is Task.run_for.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back


def test_many_interrupts_lose_nothing(kernel: FakeKernel, task: Task) -> None:
    """Interrupts at random moments of a long stream: each id comes once, in order."""
    ctx = task.alloc_ctx()
    count = 3000
    kernel.outputs.append(list(range(count)))
    main = threading.main_thread().ident
    assert main is not None
    over = threading.Event()

    def pester() -> None:
        while not over.wait(0.001):
            signal.pthread_kill(main, signal.SIGINT)

    stream, interrupts = ctx.infer(max_tokens=count), 0
    thread = threading.Thread(target=pester)
    gc.disable()  # what a destructor raises is not the call's business
    before = signal.signal(signal.SIGINT, inside_a_call)
    thread.start()
    while stream.finish is None:
        try:
            next(stream, None)
        except KeyboardInterrupt:
            interrupts += 1
    over.set()
    thread.join()
    signal.signal(signal.SIGINT, before)
    gc.enable()
    assert stream.ids == list(range(count))
    assert (stream.finish, ctx.length) == ("stop", count)
    assert interrupts > 0


# --- children -------------------------------------------------------------------------------------

CHILD = """
import os, sys
sys.path.insert(0, {root!r})
from syscalls import connect
task = connect()
print("LLMOS_TICKET_FD" in os.environ, task.pid, flush=True)
task.exit(5)
"""


def test_spawn_passes_the_ticket(kernel: FakeKernel, task: Task) -> None:
    child = task.spawn([sys.executable, "-c", CHILD.format(root=str(ROOT))], stdout=subprocess.PIPE)
    assert child.process is not None and child.process.stdout is not None
    assert child.ticket is None
    with child.process.stdout as out:
        assert out.read() == b"False 41\n"
    kernel.host_pid = child.process.pid
    kernel.ended[child.pid] = (5, "exit")
    assert child.wait() == (52, 5, "exit")
    assert child.process.returncode == 0
    assert kernel.tickets == [None, bytes(range(32))]
    secret = bytes(range(32))
    assert secret.hex() not in str(child.process.args)


def test_spawn_of_a_task_without_process(kernel: FakeKernel, task: Task) -> None:
    child = task.spawn("worker")
    assert child.process is None
    with connect(address=kernel.address, ticket=child.ticket) as other:
        assert other.pid == 41
    assert kernel.tickets[-1] == bytes(range(32))
    child.kill(9)
    assert child.wait() == (52, 137, "killed")


def test_the_name_of_a_child(kernel: FakeKernel, task: Task) -> None:
    for program, name in (("my worker", None), (["/no/such prog"], None), (["x"], "given")):
        with pytest.raises(KernelError) if not isinstance(program, str) else _nothing():
            task.spawn(program, name, cwd="/nonexistent")
    names = [r.args.name for r in kernel.requests if r.row.name == "spawn"]
    assert names == ["my-worker", "such-prog", "given"]


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_a_program_that_cannot_be_started(kernel: FakeKernel, task: Task, tmp_path: Path) -> None:
    with pytest.raises(ENOENT, match="cannot start"):
        task.spawn([str(tmp_path / "missing")])
    plain = tmp_path / "plain"
    plain.write_text("not executable")
    with pytest.raises(EPERM, match="cannot start"):
        task.spawn([str(plain)])
    with pytest.raises(EINVAL):
        task.spawn([])
    assert kernel.names().count("spawn") == 2
    assert kernel.names().count("kill") == 2  # no task without a program is left
    assert kernel.names().count("wait") == 2


def test_a_program_that_dies_before_hello(kernel: FakeKernel, task: Task) -> None:
    child = task.spawn([sys.executable, "-c", "raise SystemExit(4)"])
    assert child.wait() == (52, 4, "its program ended")
    assert child.process is not None and child.process.returncode == 4


def test_a_program_that_was_dead_and_buried_before_hello(kernel: FakeKernel, task: Task) -> None:
    child = task.spawn([sys.executable, "-c", "raise SystemExit(4)"])
    assert child.process is not None and child.process.wait() == 4
    assert child.wait() == (52, 4, "its program ended")


def test_a_program_that_a_signal_ends_before_hello(kernel: FakeKernel, task: Task) -> None:
    child = task.spawn(["sh", "-c", "kill -TERM $$"])
    assert child.wait() == (52, 143, "its program ended")


def test_a_program_that_the_kernel_knows_is_left_to_it(kernel: FakeKernel, task: Task) -> None:
    kernel.host_pid = 4242

    def end(request: wire.Request) -> Reply:
        """The kernel's pidfd tells it, after the client asked."""
        (peer, wait), *_ = kernel.waits
        kernel._fin(peer, wait.call, Reply(abi.WaitResult(52, 129, "gone")))
        return kernel._stat_task(request, peer)

    kernel.replace["stat_task"] = end
    child = task.spawn([sys.executable, "-c", "raise SystemExit(4)"])
    assert child.wait() == (52, 129, "gone")
    assert "kill" not in kernel.names()


def test_a_ticket_is_not_lost_to_a_kernel_that_is_not_there(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x" * 32)
    os.close(writer)
    monkeypatch.setenv("LLMOS_TICKET_FD", str(reader))
    with pytest.raises(ECONNRESET):
        connect(address=f"ipc://{tmp_path}/other.sock")
    with connect(address=kernel.address):
        assert kernel.tickets == [b"x" * 32]


@pytest.mark.parametrize("number", ["nonsense", "-1", "999999"])
def test_a_ticket_that_is_no_pipe(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    monkeypatch.setenv("LLMOS_TICKET_FD", number)
    with pytest.raises(EINVAL, match="LLMOS_TICKET_FD"):
        connect(address=kernel.address)


@pytest.mark.parametrize("content", [b"", b"x" * 33])
def test_a_pipe_without_a_ticket(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    reader, writer = os.pipe()
    os.write(writer, content)
    monkeypatch.setenv("LLMOS_TICKET_FD", str(reader))
    with pytest.raises(EINVAL, match="LLMOS_TICKET_FD"):
        connect(address=kernel.address)
    os.close(reader)
    os.close(writer)


def test_wait(kernel: FakeKernel, task: Task) -> None:
    kernel.ended[0] = (0, "exit")
    assert task.wait() == (0, 0, "exit")

    def refuse(_: wire.Request) -> Reply:
        raise ESRCH("no children")

    kernel.replace["wait"] = refuse
    with pytest.raises(ESRCH):
        task.wait(9)


# --- the end of the task --------------------------------------------------------------------------


def exits(kernel: FakeKernel) -> list[int]:
    return [r.args.status for r in kernel.requests if r.row.name == "exit"]


def test_leaving_the_block_ends_the_task(kernel: FakeKernel) -> None:
    with connect(address=kernel.address) as task:
        pass
    assert exits(kernel) == [0]
    task.close()
    assert exits(kernel) == [0]
    with pytest.raises(ECONNRESET, match="closed"):
        task.ps()


def test_leaving_it_by_an_exception(kernel: FakeKernel) -> None:
    with pytest.raises(ValueError), connect(address=kernel.address):
        raise ValueError
    assert exits(kernel) == [1]


def test_exit(kernel: FakeKernel) -> None:
    with connect(address=kernel.address) as task:
        task.exit(7)
    assert exits(kernel) == [7]


def test_a_durable_task_goes_on(kernel: FakeKernel) -> None:
    with connect(address=kernel.address, durable=True):
        pass
    assert exits(kernel) == []


def test_a_forked_copy_is_refused(kernel: FakeKernel, task: Task) -> None:
    ctx = task.alloc_ctx()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = b""
        for use in (task.ps, lambda: ctx.append([1])):
            try:
                use()
            except ECONNRESET as error:
                said += str(error).encode()
        task.close()
        os.write(writer, said)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    assert said.count(f"belongs to host process {os.getpid()}".encode()) == 2
    assert said.count(b"call connect() in the child") == 2
    assert ctx.append([1]) == 1  # the parent's session is untouched
