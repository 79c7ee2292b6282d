"""Fields of a JSON object that may say anything, each read in its range."""

import re
from collections.abc import Mapping
from typing import Any

from drivers.models.errors import FETCH, ModelError, short

PLAIN = re.compile(r"[\w.]{1,80}", re.ASCII)
"""Names that need no quotes in a message; a file's own may have any length and letters."""


class Fields:
    """The fields of an object in `file`, with what they are if they are left out.

    Its errors name the file and the field: ECORRUPT for what cannot be, ENOTSUP for what is sound
    and not built.
    """

    def __init__(
        self,
        file: str,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        section: str = "",
    ) -> None:
        self.file, self.values, self._section = file, values, section
        self._defaults = defaults or {}

    def corrupt(self, name: str, want: str) -> ModelError:
        what = f"{self._place(name)} is {short(self.value(name))}, not {want}"
        return ModelError("ECORRUPT", what, FETCH)

    def not_built(self, name: str, built: str) -> ModelError:
        what = f"{self._place(name)} {short(self.value(name))} is not built"
        return ModelError("ENOTSUP", what, f"built is {built}")

    def _place(self, name: str) -> str:
        return f"{self.file}: {self._section}{name if PLAIN.fullmatch(name) else short(name)}"

    def value(self, name: str) -> Any:
        return self.values.get(name, self._defaults.get(name))

    def number(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.value(name)
        value = default if value is None else value
        if type(value) is not int or not low <= value <= high:
            raise self.corrupt(name, f"a number from {low} to {high}")
        return value

    def real(self, name: str) -> float:
        value = self.value(name)
        if type(value) not in (int, float) or not 0 < value < 1e12:
            raise self.corrupt(name, "a number above 0")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.value(name)
        if value is not None and type(value) is not bool:
            raise self.corrupt(name, "true or false")
        return bool(value)

    def ids(self, name: str, limit: int) -> tuple[int, ...]:
        """Return the ids below `limit` that a field has: none, one, or a list."""
        value = self.value(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(id) is int and 0 <= id < limit for id in values):
            raise self.corrupt(name, f"an id below {limit}, or several")
        return tuple(values)

    def section(self, name: str) -> "Fields | None":
        """Return the object that a field is, None if it is left out or empty."""
        value = self.value(name)
        if value is not None and not isinstance(value, dict):
            raise self.corrupt(name, "an object")
        if not value:
            return None
        return Fields(self.file, value, section=f"{self._section}{name}.")
