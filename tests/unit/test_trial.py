"""What a trial does not survive, and what is said of it. Each in a process of its own."""

import subprocess
import sys

import pytest

from drivers import trial
from drivers.base import GrammarKind
from drivers.grammar import GrammarError, Vocabulary
from drivers.trial import Trials
from tests.helpers.daemon import ROOT

JUDGE = """
import ctypes, json, os, signal, sys
from drivers import trial
trial.CPU_S, trial.WALL_S = 1, {wall}
sys.setrecursionlimit(10**6)
kept = []
def work():
    {work}
    return ["source", ""]
print(json.dumps(trial._judged(work)))
"""


def judged(work: str, wall: float) -> str:
    """Return the verdict on some work, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", JUDGE.replace("{work}", work).replace("{wall}", str(wall))],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == "", "what a child writes may quote the grammar"
    return done.stdout


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("pass", '["source", ""]'),
        ("kept.append(bytearray(1 << 30))", "more than 256 MiB"),
        ("while True: kept.append(bytes(1 << 20))", "more than 256 MiB"),
        ("while True: pass", "more than 1 s"),
        ("json.loads('[' * 900_000)", "a stack of more than 1 MiB"),
        ("os.abort()", "more than 256 MiB"),
        ("ctypes.string_at(0)", "a stack of more than"),
        ("os._exit(3)", "the compiler has failed"),
        ("raise BaseException('secret')", "the compiler has failed with it (BaseException)"),
        ("os.read(os.pipe()[0], 1)", "not compiled within 0.5 s"),
    ],
)  # fmt: skip
def test_what_ends_a_trial(work: str, said: str) -> None:
    verdict = judged(work, 0.5 if "within" in said else 60)
    assert said in verdict and "secret" not in verdict


def test_a_driver_compiles_what_has_passed_and_nothing_else() -> None:
    """Another vocabulary under the same key, once it was forgotten; none after the end."""
    trials = Trials()
    letters, digits = (Vocabulary([b"", *map(bytes, zip(text))], (0,)) for text in (b"abc", b"123"))
    assert "/ab/" in trials.check(1, letters, GrammarKind.REGEX, b"ab")
    with pytest.raises(GrammarError, match="can write"):
        trials.check(2, digits, GrammarKind.REGEX, b"ab")
    trials.forget(1)
    with pytest.raises(GrammarError, match="can write"):
        trials.check(1, digits, GrammarKind.REGEX, b"ab")
    trials.stop()
    with pytest.raises(GrammarError, match="ended"):
        trials.check(2, digits, GrammarKind.REGEX, b"12")
    trials.close()
    assert trial.ATTEMPTS > 1
