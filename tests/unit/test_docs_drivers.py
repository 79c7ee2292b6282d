"""docs/drivers.md names what the drivers have: its tables equal those of the code."""

import re
from pathlib import Path

import pytest

from drivers import base, null, registry
from drivers.models.arch import ARCHS
from drivers.models.checkpoint import PICKLES
from drivers.models.checkpoint_config import ARCHITECTURES
from drivers.models.gguf import VERSIONS
from drivers.models.pretokenizer import PRES
from drivers.models.safetensors_file import BUILT

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "drivers.md").read_text()


def rows(page: str, first: str) -> list[list[str]]:
    """Return the cells of the table whose first heading is `first`, without its two top lines."""
    tables = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    (found,) = (t for t in tables if t.startswith(f"| {first} |"))
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in found.splitlines()[2:]]


def test_architectures(page: str) -> None:
    table = rows(page, "GGUF")
    assert [row[0] for row in table if row[0]] == list(ARCHS)
    assert [row[1] for row in table] == list(ARCHITECTURES)


def test_pre_tokenizers(page: str) -> None:
    assert [row[0] for row in rows(page, "tokenizer.ggml.pre")] == sorted(PRES)


def test_features(page: str) -> None:
    from drivers.cpu.driver import FEATURES

    table = rows(page, "feature")
    for column, features in ((2, null.FEATURES), (3, FEATURES)):
        assert {row[column] for row in table} == {"yes", "no"}
        assert {row[0] for row in table if row[column] == "yes"} == set(features)


def test_faults(page: str) -> None:
    assert [row[0] for row in rows(page, "fault")] == [kind.name for kind in base.FaultKind]


def test_formats(page: str) -> None:
    gguf, safetensors = rows(page, "format")
    assert " and ".join(map(str, VERSIONS)) in gguf[1]
    assert safetensors[1] == ", ".join(BUILT)
    for kind in PICKLES:
        assert kind.removeprefix("*") in page


def test_messages_ops_and_queues(page: str) -> None:
    def names(union: object) -> set[str]:
        return {kind.__name__ for kind in union.__args__}  # type: ignore[attr-defined]

    words = set(re.findall(r"\w+", page))
    queues = {queue.name for queue in base.Queue}
    assert names(base.Message) | names(base.Op) | queues <= words
    assert set(registry.MODULES) <= words
    assert f"**{base.ABI[0]}.{base.ABI[1]}** added" in page


def test_every_file_that_it_names_is_there(page: str) -> None:
    named = re.findall(r"`((?:drivers|tests|syscalls)/[\w/.]+)`", page)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
