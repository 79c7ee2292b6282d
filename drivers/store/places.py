"""Places: where the state directory and the keys are, unless somebody says otherwise."""

import os
from pathlib import Path


def default_state_dir() -> Path:
    """Return $LLMOS_HOME/state, else the user's state directory."""
    home = os.environ.get("LLMOS_HOME")
    if home:
        return Path(home).absolute() / "state"
    from platformdirs import user_state_path

    return user_state_path("llmos")


def default_keys_dir() -> Path:
    """Return $LLMOS_HOME/keys, else `keys` beside the user's configuration.

    Never in the state directory: a copy of that one alone must be worth nothing.
    """
    home = os.environ.get("LLMOS_HOME")
    if home:
        return Path(home).absolute() / "keys"
    from platformdirs import user_config_path

    return user_config_path("llmos") / "keys"
