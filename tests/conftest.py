"""Fixtures of every part of the suite."""

from pathlib import Path

import pytest

from drivers.models.store import ModelError, ModelStore, default_root


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the folder of the installed model; without it a test fails, it is never skipped."""
    try:
        return ModelStore(default_root()).find("smollm2").folder
    except ModelError as error:
        reason = f"{error}: fetch the model that the tests use with `make models`"
    pytest.fail(reason, pytrace=False)
