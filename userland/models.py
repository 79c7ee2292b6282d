"""The models on this machine, as commands see them."""

from collections.abc import Iterator
from contextlib import contextmanager

from drivers.models.store import (
    InstalledModel,
    ModelError,
    ModelStore,
    default_root,
    shortnames,
)
from userland.exits import Failure


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
