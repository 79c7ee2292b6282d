"""The models on this machine, as commands see them."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from drivers.models.store import (
    InstalledModel,
    ModelError,
    ModelStore,
    default_root,
    read_manifest,
    shortnames,
)
from syscalls.abi import ModelRow
from userland.desk import Desk
from userland.exits import Failure

LIMIT_S = 0.2
"""How long the kernel is asked what it has loaded."""


@contextmanager
def as_failure() -> Iterator[None]:
    """Turn what is wrong with a model into what a command reports."""
    try:
        yield
    except ModelError as error:
        raise Failure(error.message, error.hint, code=error.code) from None


def known_terms(name: str) -> str:
    """Return what to say of a known model whose licence asks more than to be named."""
    row = shortnames().get(name.partition(":")[0])
    if row is None or not row.terms:
        return ""
    return f"{row.full_name}: {row.title} is used under its own terms, see {row.terms}"


def store() -> ModelStore:
    """Return this user's store."""
    return ModelStore(default_root())


def installed(name: str) -> InstalledModel:
    """Return an installed model; ENOENT says what to pull."""
    with as_failure():
        return store().find(name)


def rows_of_kernel(desk: Desk) -> Sequence[ModelRow] | None:
    """Return the models of the running kernel; None if none runs, or has no time to say."""
    import syscalls

    try:
        if desk.has_task:
            flow = desk.task.caller.listed("list_models", ModelRow)
            return desk.task.run_for(flow, LIMIT_S)
        with closing(syscalls.connect(desk.name, address=desk.address, timeout=LIMIT_S)) as task:
            return task.models()
    except (syscalls.ECONNRESET, syscalls.ETIMEDOUT):
        return None


def rows_of(folder: Path, rows: Sequence[ModelRow] | None) -> list[ModelRow]:
    """Return the rows of a kernel that are about a model: loaded from its folder."""
    where = folder.resolve()
    return [row for row in rows or () if row.path and Path(row.path).resolve() == where]


def place_of(folder: Path) -> str:
    """Return where a model is used in place, "" if it is not or its manifest is damaged."""
    try:
        return read_manifest(folder).manifest.place
    except ModelError:
        return ""
