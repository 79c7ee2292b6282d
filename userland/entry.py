"""What the console scripts call: load the program, then run it.

Loading takes a tenth of a second, in which Ctrl-C is to end the program like any other: without a
traceback of whatever was being imported.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


def llmos() -> None:
    """Run llmos."""
    with _loading():
        from userland.cli import main
    main()


def llmsh() -> None:
    """Run llmsh."""
    with _loading():
        from userland.llmsh.main import main
    main()


@contextmanager
def _loading() -> Iterator[None]:
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so under nohup
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
