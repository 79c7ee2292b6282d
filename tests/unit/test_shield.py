"""Ctrl-C is held back in a shield, and neither lost nor doubled."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from syscalls.shield import Shield


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_an_interrupt_waits_for_the_end() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), Shield():
        interrupt()
        interrupt()
        done = True
    assert done


def test_no_interrupt_no_exception() -> None:
    with Shield():
        pass


def test_an_interrupt_outside_is_at_once() -> None:
    with Shield():
        pass
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_the_programs_own_handler_is_called() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    with Shield():
        interrupt()
        assert seen == []
    assert seen == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_exception_inside_keeps_the_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, Shield():
        interrupt()
        raise ValueError("inside")
    assert isinstance(caught.value.__context__, ValueError)


def test_other_threads_are_left_alone() -> None:
    handlers: list[object] = []

    def work() -> None:
        with Shield():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
