"""Places: where the keys are, unless somebody says otherwise."""

import os
from pathlib import Path


def default_keys_dir() -> Path:
    """Return $LLMOS_HOME/keys, else `llmos/keys` beside the user's other configuration.

    Never in the state directory: a copy of that one alone must be worth nothing.
    """
    home = os.environ.get("LLMOS_HOME")
    if home:
        return Path(home).absolute() / "keys"
    from platformdirs import user_config_path

    return user_config_path("llmos") / "keys"
