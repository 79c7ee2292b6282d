"""Fixtures of every part of the suite."""

from pathlib import Path

import pytest

from drivers.models.store import ModelError, ModelStore, default_root

WALK_OPS = 20_000
SCENARIOS = 200


def pytest_addoption(parser: pytest.Parser) -> None:
    """How far tests/sim/test_walks.py walks, and how much tests/sim/test_scenarios.py plays."""
    parser.addoption(
        "--walk-ops", type=int, default=WALK_OPS, help=f"operations of walks, {WALK_OPS} by default"
    )
    parser.addoption(
        "--scenarios", type=int, default=SCENARIOS, help=f"seeds, {SCENARIOS} by default"
    )


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the folder of the installed model; without it a test fails, it is never skipped."""
    try:
        return ModelStore(default_root()).find("smollm2").folder
    except ModelError as error:
        reason = f"{error}: fetch the model that the tests use with `make models`"
    pytest.fail(reason, pytrace=False)


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Return the folder of Gemma 3; tests that need it are skipped where it is not installed."""
    try:
        return ModelStore(default_root()).find("gemma3").folder
    except ModelError:
        pytest.skip("gemma3 is not installed: llmos pull gemma3")
