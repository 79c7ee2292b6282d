"""Real processes: kernel, driver host, programs; killed, stopped, doubled, and nothing left."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

import syscalls
from syscalls import errors
from tests.helpers.daemon import (
    NULL,
    PATIENCE_S,
    ROOT,
    Daemon,
    command,
    daemon,
    eventually,
    listening,
)
from tests.helpers.oracle import expected

SLOW = "null:vocab=251,step_us=3000"


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path) as running:
        yield running
        if running.process.poll() is None:
            check_empty(running)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path, builtin=SLOW) as running:
        yield running
        check_empty(running)


def check_empty(kernel: Daemon) -> None:
    """No block used or in limbo, no task but init and the one that asks."""
    with kernel.connect("checker") as task:
        eventually(lambda: [row.name for row in task.ps()] == ["init", "checker"], "tasks gone")
        eventually(lambda: (p := task.pools()[0]).used == p.limbo == 0, "blocks free")
        row = task.kernel()
        assert row.admitted == row.finished + row.failed


def test_stream_through_processes(kernel: Daemon) -> None:
    with kernel.connect() as task:
        ctx = task.alloc_ctx()
        ctx.append([1, 2, 3])
        assert [piece.id for piece in ctx.infer(max_tokens=20, temperature=0)] == expected(
            [1, 2, 3], 20
        )


def test_kernel_process_has_no_torch(kernel: Daemon) -> None:
    maps = Path(f"/proc/{kernel.process.pid}/maps").read_text()
    assert "libtorch" not in maps and "numpy" not in maps
    code = (
        "import sys, kernel.main; bad = {'torch', 'jax', 'transformers', 'numpy', 'tokenizers'};"
        "sys.exit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_kill_9_of_the_driver_host_is_not_seen_in_the_stream(slow: Daemon) -> None:
    with slow.connect() as task:
        ctx = task.alloc_ctx()
        ctx.append(list(range(40)))
        ids = []
        for number, piece in enumerate(ctx.infer(max_tokens=60, temperature=0)):
            ids.append(piece.id)
            if number in (5, 25):
                os.kill(task.devices()[0].host_pid, signal.SIGKILL)
                assert [row.name for row in task.ps()] == ["init", "test"], "ps answers at once"
        assert ids == expected(list(range(40)), 60)
        assert task.devices()[0].epoch == 3


def test_stopped_driver_host_is_replaced(tmp_path: Path) -> None:
    options = (*NULL, SLOW, "--hang-s", "1.5")
    with daemon(tmp_path, *options) as kernel, kernel.connect() as task:
        ctx = task.alloc_ctx()
        ctx.append([1])
        stream = ctx.infer(max_tokens=30, temperature=0)
        ids = [next(stream).id]
        os.kill(task.devices()[0].host_pid, signal.SIGSTOP)
        ids += [piece.id for piece in stream]
        assert ids == expected([1], 30)
        assert task.devices()[0].epoch == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_death_of_a_program_frees_its_memory(slow: Daemon, number: int) -> None:
    code = (
        "import sys, syscalls\n"
        f"task = syscalls.connect(name='victim', address={slow.address!r})\n"
        "ctx = task.alloc_ctx(); ctx.append([1, 2, 3]); ctx.fork(3)\n"
        "for piece in ctx.infer(max_tokens=4000):\n"
        "    print(piece.id, flush=True)\n"
    )
    victim = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    victim.stdout.readline()
    with slow.connect() as task:
        ctx = task.alloc_ctx()
        ctx.append([9])
        stream = ctx.infer(max_tokens=40, temperature=0)
        ids = [next(stream).id]
        victim.send_signal(number)
        victim.wait(PATIENCE_S)
        victim.stdout.close()
        ids += [piece.id for piece in stream]
        assert ids == expected([9], 40), "the bystander's stream is untouched"


def test_kernel_killed_leaves_no_driver(tmp_path: Path) -> None:
    with daemon(tmp_path) as kernel:
        host = psutil.Process(kernel.host_pid())
        with kernel.connect() as task:
            kernel.process.kill()
            kernel.process.wait()
            eventually(lambda: not host.is_running() or host.status() == "zombie", "host gone", 3)
            with pytest.raises(errors.ECONNRESET):
                task.ps()
    with daemon(tmp_path) as again:  # the stale socket and lock do not matter
        check_empty(again)


def test_second_kernel_exits_75_and_the_first_is_undisturbed(kernel: Daemon) -> None:
    with kernel.connect() as task:
        ctx = task.alloc_ctx()
        ctx.append([5])
        many = [
            subprocess.Popen(
                command(kernel.run_dir, *NULL, "null"), cwd=ROOT,
                stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            )
            for _ in range(5)
        ]  # fmt: skip
        for second in many:
            assert second.stderr is not None
            message = second.stderr.read().decode()
            second.stderr.close()
            assert second.wait(PATIENCE_S) == 75
            assert str(kernel.process.pid) in message and "Traceback" not in message
        assert [p.id for p in ctx.infer(max_tokens=5, temperature=0)] == expected([5], 5)


def test_unsafe_directories_are_refused(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    long = tmp_path / ("x" * 120)
    for path in (loose, long):
        done = subprocess.run(command(path, *NULL, "null"), cwd=ROOT, capture_output=True)
        assert done.returncode == 78 and b"Traceback" not in done.stderr


def test_model_that_cannot_be_loaded_is_told_to_clients(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        command(run_dir, *NULL, "null:nosuch=1"), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: listening(run_dir), "socket")
        with syscalls.connect(name="t", address=f"ipc://{run_dir}/kernel.sock") as task:
            row = eventually(
                lambda: next((d for d in task.devices() if d.state == "failed"), None), "failed"
            )
            assert "nosuch" in row.note
            with pytest.raises(errors.ENODEV, match="nosuch"):
                task.alloc_ctx()
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_sigterm_lets_a_request_end_and_the_second_does_not_wait(tmp_path: Path) -> None:
    with daemon(tmp_path, builtin=SLOW) as kernel, kernel.connect() as task:
        ctx = task.alloc_ctx()
        ctx.append([1])
        stream = ctx.infer(max_tokens=4000, temperature=0)
        next(stream)
        kernel.process.terminate()
        with pytest.raises(errors.ECANCELED):
            task.alloc_ctx().append([1])
            ctx.fork().infer(max_tokens=1).read()
        kernel.process.terminate()
        assert kernel.process.wait(PATIENCE_S) == 0


def test_files_and_socket_are_private(kernel: Daemon) -> None:
    assert kernel.run_dir.stat().st_mode & 0o777 == 0o700
    assert (kernel.run_dir / "kernel.sock").stat().st_mode & 0o777 == 0o600
    host = psutil.Process(kernel.host_pid())
    assert not any("/dev/shm" in m.path for m in host.memory_maps())


def test_rubbish_on_the_socket_disturbs_nobody(kernel: Daemon) -> None:
    with kernel.connect() as task:
        ctx = task.alloc_ctx()
        ctx.append([7])
        for raw in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(64), b"\x01\x00\x7f", b""):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(kernel.run_dir / "kernel.sock"))
                peer.sendall(raw)
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(kernel.address)
        for frames in ([b"\xc1" * 100], [b""] * 30, [b"x" * 900_000], [b"\x91" * 1000]):
            dealer.send_multipart(frames)
        assert dealer.poll(10_000)
        dealer.close()
        context.term()
        assert [p.id for p in ctx.infer(max_tokens=5, temperature=0)] == expected([7], 5)


def test_sixty_four_programs_at_once(kernel: Daemon) -> None:
    def run(number: int, out: list[bool]) -> None:
        with kernel.connect(f"p{number}") as task:
            ctx = task.alloc_ctx()
            ctx.append([number])
            a, b = ctx.fork(2)
            same = [p.id for p in a.infer(max_tokens=15, temperature=0)]
            out.append(same == expected([number], 15))
            out.append([p.id for p in b.infer(max_tokens=15, temperature=0)] == same)

    out: list[bool] = []
    threads = [threading.Thread(target=run, args=(n, out)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == [True] * 128


def test_a_program_with_4096_calls_open_is_told_of_every_end(slow: Daemon) -> None:
    """INT ends them all in one turn: more events than one reply may hold."""
    with slow.connect("many") as many, slow.connect("other") as other:
        contexts = [many.alloc_ctx() for _ in range(4096)]
        for ctx in contexts:
            ctx.append([7])
        streams = [ctx.infer(max_tokens=900) for ctx in contexts]
        eventually(lambda: other.kernel().admitted == 4096, "every infer admitted")
        other.kill(many.pid, signal.SIGINT)
        for stream in streams:
            list(stream)
        assert {stream.finish for stream in streams} == {"cancelled"}
        for ctx in contexts:
            ctx.free()
        assert [row.name for row in other.ps()] == ["init", "many", "other"]


def used(pid: int) -> tuple[float, int]:
    """CPU seconds and wake-ups of a process so far, its threads included."""
    process = psutil.Process(pid)
    wakes = sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )
    return sum(process.cpu_times()[:2]), wakes


@pytest.mark.full
def test_an_idle_kernel_and_its_driver_sleep(kernel: Daemon) -> None:
    """With a program connected that has generated: <= 1 % of a core, <= 20 wake-ups a second."""
    with kernel.connect() as task:
        ctx = task.alloc_ctx()
        ctx.append([1, 2, 3])
        list(ctx.infer(max_tokens=5))
        pids = kernel.process.pid, task.devices()[0].host_pid
        before = [used(pid) for pid in pids]
        with pytest.raises(subprocess.TimeoutExpired):
            kernel.process.wait(10)
        for (cpu, wakes), (cpu_then, wakes_then) in zip(map(used, pids), before, strict=True):
            assert cpu - cpu_then <= 0.1 and wakes - wakes_then <= 200
