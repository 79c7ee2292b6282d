"""Gemma 3 under a real kernel says what transformers says, however the work is cut.

Float32, greedy, against tests/data/reference_gemma3.json; three of its eight prompts are longer
than the window of its sliding layers, or become so. It runs where the model is installed.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from syscalls.client import Task
from tests.helpers.daemon import Daemon, daemon, eventually
from tests.helpers.smollm2 import (
    alone,
    check,
    context,
    forked,
    greedy,
    ids_of,
    kernel_options,
    references,
    together,
    trimmed,
)

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

MODEL, WINDOW, COUNT = "gemma3", 512, 32
ALL = references(MODEL)
LOAD_S = 120.0
FLOAT32 = "--dtype", "float32", "--max-ctx", "2048"


@pytest.fixture(scope="module")
def kernel(gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    options = kernel_options(*FLOAT32, model=MODEL)
    with daemon(tmp_path_factory.mktemp("cpu"), *options, patience=LOAD_S) as running:
        yield running


@pytest.fixture
def task(kernel: Daemon) -> Iterator[Task]:
    with kernel.connect("reference") as task:
        yield task
    with kernel.connect("checker") as task:
        eventually(lambda: (p := task.pools()[0]).used == p.limbo == 0, "blocks free")


def test_the_window_is_left() -> None:
    assert len(ALL) == 8
    assert sum(len(r.prompt) > WINDOW for r in ALL) >= 2
    assert any(len(r.prompt) < WINDOW < len(r.prompt) + COUNT for r in ALL)


def test_alone(task: Task) -> None:
    alone(task, ALL, COUNT)


def test_in_a_batch(task: Task) -> None:
    together(task, ALL, COUNT)


def test_with_prefill_in_uneven_chunks(
    gemma3: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    options = kernel_options(*FLOAT32, "--prefill-chunk", "37", model=MODEL)
    home = tmp_path_factory.mktemp("chunked")
    with daemon(home, *options, patience=LOAD_S) as chunked, chunked.connect() as task:
        together(task, ALL, COUNT)


def test_after_a_fork(task: Task) -> None:
    forked(task, ALL, COUNT)


def test_after_trim_and_reappend(task: Task) -> None:
    trimmed(task, ALL, COUNT)


def test_in_deterministic_mode(gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    options = kernel_options(*FLOAT32, "--deterministic", model=MODEL)
    home = tmp_path_factory.mktemp("ordered")
    with daemon(home, *options, patience=LOAD_S) as ordered, ordered.connect() as task:
        streams = [greedy(context(task, r.prompt), 8) for r in ALL]
        check(ALL, [ids_of(stream) for stream in streams])


def test_text_goes_in_as_people_write_it(task: Task) -> None:
    """With bos before it, once: the same ids as if they were appended by number."""
    ctx = task.alloc_ctx()
    ctx.append("The capital of France is")
    assert ctx.read()[0] == 2 and ctx.read().count(2) == 1
    ctx.append(" the city of")
    whole = task.alloc_ctx()
    whole.append("The capital of France is the city of")
    assert ctx.read() == whole.read()
    assert "Paris" in ctx.infer(max_tokens=8, temperature=0).read()
