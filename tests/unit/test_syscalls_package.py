"""The public face: what it shows, and what importing it costs."""

import subprocess
import sys

import syscalls

HEAVY = ("torch", "tokenizers", "jinja2", "numpy", "transformers", "asyncio", "zmq.asyncio")

REPORT = f"""
import sys, time
begin = time.process_time()
import syscalls
spent = time.process_time() - begin
print([name for name in {HEAVY!r} if name in sys.modules])
print(spent * 1000)
syscalls.aio.connect
print("asyncio" in sys.modules)
"""


def test_importing_loads_nothing_heavy_and_is_quick() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", REPORT], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(3)
    ]
    assert [run[0] for run in runs] == ["[]"] * 3
    assert runs[0][2] == "True"  # the twin is there once it is named
    assert min(float(run[1]) for run in runs) < 80


def test_all_is_what_is_visible() -> None:
    assert len(set(syscalls.__all__)) == len(syscalls.__all__)
    for name in syscalls.__all__:
        assert getattr(syscalls, name).__name__.rpartition(".")[2] == name


def test_every_error_is_public() -> None:
    for cls in syscalls.KernelError.__subclasses__():
        assert cls.__name__ in syscalls.__all__


def test_unknown_names_are_refused() -> None:
    try:
        syscalls.nonsense  # noqa: B018
    except AttributeError as error:
        assert "nonsense" in str(error)
    else:
        raise AssertionError("no AttributeError")
