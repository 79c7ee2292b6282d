"""Models that come and go in a running kernel, through the client library and real processes."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from syscalls import EBUSY, ENODEV, ENOENT, Progress, Task
from tests.helpers.daemon import Daemon, daemon, eventually
from tests.helpers.oracle import expected

SMALL = "random:layers=2,hidden=64,vocab=300"
LARGE = "random:layers=2,hidden=512,heads=8,kv_heads=8,vocab=8192,ffn=4096"
POOL_BYTES = 192 << 20
SLACK_BYTES = 48 << 20


@pytest.fixture
def null(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path) as kernel:
        yield kernel


@pytest.fixture
def cpu(tmp_path: Path) -> Iterator[Daemon]:
    options = ("--device", "cpu0", "--model", "small", "--model-dir", SMALL, "--num-blocks", "64",
               "--dtype", "float32", "--threads", "1")  # fmt: skip
    with daemon(tmp_path, *options) as kernel:
        yield kernel


def test_a_stream_goes_on_while_another_model_comes_and_goes(null: Daemon) -> None:
    with null.connect() as task, null.connect("operator") as operator:
        ctx = task.alloc_ctx()
        ctx.append([1, 2, 3])
        stream = ctx.infer(max_tokens=400, temperature=0)
        ids = [next(stream).id]
        for _ in range(10):
            row = operator.load_model("other", "null:vocab=97", kv_bytes=1 << 16)
            assert (row.state, row.vocab) == ("up", 97)
            ids.append(next(stream).id)
            assert operator.unload_model("other") == 0
        ids += [piece.id for piece in stream]
        assert ids == expected([1, 2, 3], 400)
        with pytest.raises(ENOENT, match="loaded are: null"):
            operator.unload_model("other")


def test_a_context_outlives_its_model_and_does_not_take_another_for_it(null: Daemon) -> None:
    """Under the same name there may be another model, of another vocabulary."""
    with null.connect() as task:
        task.load_model("other", "null:vocab=300", kv_bytes=1 << 16)
        ctx = task.alloc_ctx("other")
        ctx.append([1, 2, 3])
        with pytest.raises(EBUSY, match="1 contexts"):
            task.unload_model("other")
        assert task.unload_model("other", force=True) == 1
        task.load_model("other", "null:vocab=97", kv_bytes=1 << 16)
        assert ctx.read() == [1, 2, 3]
        with pytest.raises(ENODEV, match="unloaded"):
            ctx.append([4])
        with pytest.raises(ENODEV):
            list(ctx.infer(text=False))
        ctx.free()
        assert task.alloc_ctx("other").append([96]) == 1


def test_two_models_answer_as_each_alone_and_memory_comes_back(cpu: Daemon) -> None:
    """Weights, pool and scratch of a model that has gone are the system's again, each time."""
    host = psutil.Process(cpu.host_pid())
    prompt = list(range(40))
    with cpu.connect() as task:
        alone = _greedy(task, "small", prompt)
        before, peaks, lows = host.memory_info().rss, [], []
        for _ in range(3):
            phases: list[Progress] = []
            task.load_model("large", LARGE, kv_bytes=POOL_BYTES, progress=phases.append)
            assert [(p.phase, p.done, p.total) for p in phases][-1] == ("weights", 2, 2)
            peaks.append(host.memory_info().rss)
            assert _greedy(task, "small", prompt) == alone
            large = _greedy(task, "large", prompt)
            assert large == _greedy(task, "large", prompt) != alone
            task.unload_model("large")
            assert _greedy(task, "small", prompt) == alone  # the Unload is behind it
            lows.append(host.memory_info().rss)
        assert min(peaks) - before > POOL_BYTES
        assert max(lows) - before < SLACK_BYTES, (before, lows)
        eventually(lambda: task.pools()[0].used == 0, "blocks free")


def _greedy(task: Task, model: str, prompt: list[int]) -> list[int | None]:
    ctx = task.alloc_ctx(model)
    ctx.append(prompt)
    ids = [piece.id for piece in ctx.infer(max_tokens=12, temperature=0, text=False)]
    ctx.free()
    return ids
