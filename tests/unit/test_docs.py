"""Generated pages say what the tables say that they are made from."""

import subprocess
import sys
from pathlib import Path

import pytest

from syscalls import abi

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("maker", ["make_syscalls.py", "make_schemas.py", "make_errors.py"])
def test_the_page_is_not_stale(maker: str) -> None:
    made = subprocess.run(
        [sys.executable, f"docs/{maker}", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr


def test_every_call_and_its_arguments_are_there() -> None:
    page = (ROOT / "docs" / "syscalls.md").read_text()
    for call in abi.CALLS:
        assert call.name in page
        for field in call.args._fields if call.args else ():
            assert f"| {field} |" in page
