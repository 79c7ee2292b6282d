"""Rows: NamedTuples as arrays of msgpack, read back with every field of the type that it declares.

What `drivers.wire` and `drivers.store.wire` have in common. A message is `[number, field, ...]`,
its number the place of its class in a table that only grows at its end. Rows are arrays in the
order of their fields; those at the end that have their default are left out. A row may be shorter
than declared, by fields that have a default, and longer only if the table says that a newer peer
may have added to it: what it has added is dropped.
"""

from collections.abc import Callable, Iterable, Set
from enum import IntEnum
from typing import Any, TypeVar, get_args, get_origin

import msgpack

Table = tuple[Any, ...]
T = TypeVar("T")


class BadMessage(Exception):
    """The peer does not speak this ABI; its process must be replaced."""


# --- the schema -------------------------------------------------------------------------------


def spell_row(cls: Any) -> str:
    """Spell what never changes of a row: its name, required fields and their types."""
    fields = list(cls.__annotations__.items())[: _required(cls)]
    return f"{cls.__name__}({', '.join(f'{name}: {_spell(kind)}' for name, kind in fields)})"


def spell_enum(enum: type[IntEnum], count: int) -> str:
    """Spell the first `count` members of an enum."""
    names = ", ".join(f"{member.name}={member.value}" for member in list(enum)[:count])
    return f"{enum.__name__} {names}"


def _spell(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"{_spell(get_args(kind)[0])}[]"
    return "any" if kind is Any else str(kind.__name__)


def _required(cls: Any) -> int:
    return len(cls._fields) - len(cls._field_defaults)


# --- bytes ------------------------------------------------------------------------------------


def encode(message: Any, messages: Table, parts: Table = ()) -> bytes:
    """Return a message as bytes; rows of the classes in `parts` are numbered wherever they are."""
    raw: bytes = msgpack.packb(_numbers(message, messages, parts), use_bin_type=True)
    return raw


def _numbers(row: Any, classes: Table, parts: Table) -> list[Any]:
    return [classes.index(type(row)), *_fields(row, parts)]


def _fields(row: Any, parts: Table) -> list[Any]:
    """Return a row's fields up to the last one that says something."""
    values = list(row)
    defaults = list(row._field_defaults.values())
    while defaults and values[-1] == defaults[-1]:
        values.pop()
        defaults.pop()
    return [_plain(value, parts) for value in values]


def _plain(value: Any, parts: Table) -> Any:
    if not isinstance(value, tuple):
        return value
    if type(value) in parts:
        return _numbers(value, parts, parts)
    if hasattr(value, "_fields"):
        return _fields(value, parts)
    return [_plain(item, parts) for item in value]


def decode(raw: bytes, most: int, max_text: int, read: Callable[[Any], T], what: str) -> T:
    """Return what `read` makes of the values in `raw`, at most `most` bytes; else BadMessage."""
    if len(raw) > most:
        raise BadMessage(f"a message of more than {most} bytes")
    try:
        return read(
            msgpack.unpackb(
                raw, use_list=False, strict_map_key=True, max_ext_len=0, max_str_len=max_text
            )
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise BadMessage(f"{len(raw)} bytes are not {what}: {error}") from None


def numbered(classes: Table, values: Any, growing: Set[Any]) -> Any:
    """Return the row that numbered values are of; TypeError."""
    number, *fields = values
    if type(number) is not int or not 0 <= number < len(classes):
        raise TypeError("a number that nothing has")
    return _row(classes[number], tuple(fields), growing)


def _row(cls: Any, values: tuple[Any, ...], growing: Set[Any]) -> Any:
    least, most = _required(cls), len(cls._fields)
    if len(values) > most and cls in growing:
        values = values[:most]
    if not least <= len(values) <= most:
        raise TypeError(f"{cls.__name__} has {least} to {most} fields, got {len(values)}")
    fields: Iterable[Any] = zip(cls.__annotations__.items(), values, strict=False)
    return cls(
        *(typed(f"{cls.__name__}.{name}", kind, value, growing) for (name, kind), value in fields)
    )


def typed(where: str, kind: Any, value: Any, growing: Set[Any]) -> Any:
    """Return `value` as the type declared: a plain one, a row, or a tuple of such; TypeError."""
    if kind is Any:
        return value
    many, row = get_origin(kind) is tuple, hasattr(kind, "_fields")
    plain = tuple if many or row else kind
    if type(value) is not plain:
        raise TypeError(f"{where} is {plain.__name__}, got {type(value).__name__}")
    if many:
        return tuple(typed(where, get_args(kind)[0], item, growing) for item in value)
    return _row(kind, value, growing) if row else value
