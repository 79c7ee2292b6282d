"""Ctrl-C while a program is being loaded."""

import signal
import subprocess
import sys

import pytest

from tests.helpers.daemon import ROOT

INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, {root!r})

class Finder:
    def find_spec(self, name, *_):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.{handler})
sys.argv = ["x", "--version"]
from userland import entry
entry.{program}()
"""


def run(program: str, handler: str) -> "subprocess.CompletedProcess[str]":
    text = INTERRUPTED.format(root=str(ROOT), program=program, handler=handler)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("program", ["llmos", "llmsh"])
def test_it_ends_without_a_traceback(program: str) -> None:
    done = run(program, "default_int_handler")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("program", ["llmos", "llmsh"])
def test_it_is_ignored_where_it_was_before(program: str) -> None:
    done = run(program, "SIG_IGN")
    assert done.returncode == 0 and program in done.stdout
