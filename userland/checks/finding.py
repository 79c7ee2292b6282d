"""A finding: one thing that was looked at, how it is, and what to do if it is not well."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"
"""Fine; it works, not as it could; it does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is said of a thing, in one line, and what to do."""

    check: str
    level: str
    text: str
    todo: str = ""


Check = Callable[[], Iterator[Finding]]
