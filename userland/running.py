"""What the kernel runs with, which may not be what its client's files and variables say.

A kernel has its values from whoever started it, and keeps them; it reads nothing of its clients.
So a client that looks as if it set something of the kernel is told that it does not.
"""

import os
from collections.abc import Callable, Mapping

from syscalls import EINVAL, Task
from syscalls.abi import ConfigRow, StoreRow
from userland.config import NO_SETTINGS, Config, Setting
from userland.exits import Failure
from userland.keys import CLIENT, RENAMED, Key, Unfit, Value, is_size, kind_of
from userland.view import size


def running(task: Task) -> dict[str, Value] | None:
    """Return what the kernel runs with, by the names of its keys here; None if it cannot tell."""
    try:
        rows: list[ConfigRow] = task.run(task.caller.snapshot("config", ConfigRow))
    except EINVAL:  # an older one
        return None
    return {RENAMED.get(row.key, row.key): row.value for row in rows}


def store_of(task: Task) -> StoreRow | None:
    """Return the kernel's store; None if it has none that it can tell of."""
    try:
        row = task.store()
    except EINVAL:  # an older one
        return None
    return None if row.state == "off" else row


def differing(config: Config, used: Mapping[str, Value]) -> list[Setting]:
    """Return the kernel's settings that somebody has set, and that the kernel does not run with."""
    return [
        setting
        for setting in config
        if setting.key.of_kernel
        and setting.explicit
        and used.get(setting.key.name) != setting.value
    ]


def mind_variables(task: Task, note: Callable[[str], None]) -> None:
    """Say which variables look as if they set something of the kernel, and do not.

    A kernel has its values from the shell that started it; those of its clients it never sees.
    """
    mine = NO_SETTINGS | {key.variable for key in CLIENT}
    names = [name for name in os.environ if name.startswith("LLMOS_") and name not in mine]
    used = running(task) if names else None
    if not used:
        return
    for name in names:
        key = name.removeprefix("LLMOS_").lower()
        if key in used and not _same(key, used[key], os.environ[name]):
            value = size(int(used[key])) if is_size(key) else used[key]
            note(
                f"{name}={os.environ[name]} is not what the kernel runs with, {value}: "
                "it was set when that started; llmos config show has all"
            )


def _same(name: str, used: Value, text: str) -> bool:
    kind = kind_of(name, type(used).__name__)
    try:
        return Key(name, kind, None).of_text(text) == used
    except Unfit:
        return False


def loaded_as(task: Task, name: str | None) -> str | None:
    """Return what the kernel calls a model that is named as `llmos models` names it."""
    rows = [] if name is None else task.models()
    if name is None or any(row.name == name for row in rows):
        return name
    from userland.models import installed, rows_of  # not light

    try:
        same = rows_of(installed(name).folder, rows)
    except Failure:
        return name  # the kernel will say what is loaded
    return same[0].name if same else name
