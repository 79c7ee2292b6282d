"""What most of these tests need: a kernel whose null model talks, and its home, left as it was.

A module that needs another kernel has a fixture of the same name.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.daemon import Daemon
from tests.helpers.shell import check_no_tasks, talking


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with talking(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def home(kernel: Daemon) -> Iterator[Path]:
    yield kernel.run_dir.parent
    check_no_tasks(kernel)
