"""Where the lines that were typed are kept: a plain file, because they are a person's prompts."""

import os
from pathlib import Path

from userland.daemon import state_dir


def history_path() -> Path | None:
    """Return $LLMSH_HISTORY, else a file in the state directory; None if none is wanted."""
    given = os.environ.get("LLMSH_HISTORY")
    if given is None:
        return state_dir() / "llmsh_history"
    return Path(given).expanduser() if given else None


def make_private(path: Path) -> None:
    """Create the file if need be, readable by its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    path.chmod(0o600)
