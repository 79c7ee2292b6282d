"""docs/syscalls.md says what the ABI table says."""

import subprocess
import sys
from pathlib import Path

from syscalls import abi

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_not_stale() -> None:
    made = subprocess.run(
        [sys.executable, "docs/make_syscalls.py", "--check"],
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
