"""The shell's task and its contexts, against a scripted kernel."""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from syscalls import EPROTO, ESRCH
from syscalls.abi import Event
from syscalls.wire import Request
from tests.helpers.fake_kernel import FakeKernel
from userland.llmsh.contexts import Contexts

UNASKED = [Event.FIN, 999, [], 0]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    with FakeKernel(tmp_path) as running:
        yield running


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def contexts(
    kernel: FakeKernel, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Contexts]:
    monkeypatch.setenv("LLMOS_HOST", kernel.address)
    made = Contexts(None, notes.append)
    yield made
    made.close()


def test_a_session_that_is_lost_by_any_error_is_made_anew(
    kernel: FakeKernel, contexts: Contexts, notes: list[str]
) -> None:
    task, first = contexts.task(), contexts.open().context
    kernel.replace["list_models"] = lambda request: kernel.send(UNASKED)
    with pytest.raises(EPROTO):
        task.models()
    kernel.contexts.clear()
    assert contexts.open().context is not first and contexts.task() is not task
    assert notes == ["@main: gone with the session; the next prompt begins anew in @main"]


def test_an_error_of_a_call_loses_nothing(
    kernel: FakeKernel, contexts: Contexts, notes: list[str]
) -> None:
    def refuse(_: Request) -> NoReturn:
        raise ESRCH("no such task")

    first = contexts.open().context
    kernel.replace["stat_task"] = refuse
    with pytest.raises(ESRCH):
        contexts.open()
    kernel.replace.clear()
    assert contexts.open().context is first and notes == []
