"""llmsh on the model that people meet first."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.daemon import Daemon, daemon
from tests.helpers.shell import llmsh, typing

PARIS = '"What is the capital of France? One word."'


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Daemon]:
    options = ("--device", "cpu0", "--model", "smollm2", "--num-blocks", "256", "--model-dir")
    with daemon(tmp_path_factory.mktemp("home"), *options, str(smollm2)) as running:
        yield running


def test_a_script_gets_its_answers(home: Path) -> None:
    done = llmsh(home, f"{PARIS}\nps\n{PARIS} | tr P p\necho $_\n")
    answer, header, _, shell, piped, last = done.stdout.splitlines()
    assert "Paris" in answer and "paris" in piped and "Paris" in last
    assert header.split()[0] == "PID" and shell.split()[-1] == "llmsh"
    assert (done.returncode, done.stderr) == (0, "")


def test_a_person_gets_an_answer(home: Path) -> None:
    with typing(home, "-t", "0") as person:
        person.prompt()
        person.type(f"{PARIS}\r")
        person.see("The capital of France is Paris.\nsmollm2 main·47/8k $")
        person.ctrl("d")
        assert person.leave() == 0
