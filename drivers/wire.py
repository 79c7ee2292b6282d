"""The wire between the kernel and a driver host: the messages of `drivers.base` as bytes.

A message is one packet: `[number, field, ...]` in msgpack, and so is an op or a result in it. Rows
are arrays in the order of their fields; those at the end that have their default are left out.

What is read has the types that the fields declare, else it is BadMessage, and the process that sent
it must be replaced. A row may be shorter than declared here, by fields that have a default. A row
of a driver may be longer: what a newer one has added is dropped. Anything else that is longer asks
for what nobody here knows, and is BadMessage too.
"""

import hashlib
from enum import IntEnum
from typing import Any, get_args, get_origin

import msgpack

from drivers import base
from drivers.base import (
    BlockTable,
    Checksum,
    Close,
    Complete,
    Copy,
    Estimate,
    Execute,
    Export,
    Fault,
    Fence,
    Heartbeat,
    Hello,
    Import,
    KvGroup,
    Load,
    Loaded,
    Progress,
    Ready,
    Reset,
    Sample,
    Sampled,
    Score,
    Scored,
    Scrub,
    Stats,
    StatsReply,
    Submit,
    Unload,
)  # fmt: skip

MAX_MESSAGE = 192 * 1024
"""Bytes of one message; below the default send buffer of an AF_UNIX SEQPACKET socket."""
MAX_TEXT = 8192
"""Bytes of one string in a message."""

# Their places are their numbers: new ones go last.
_MESSAGES: tuple[Any, ...] = (
    Hello, Load, Unload, Submit, Stats, Close,
    Ready, Progress, Estimate, Loaded, Complete, Fault, Heartbeat, StatsReply,
)  # fmt: skip
_PARTS: tuple[Any, ...] = (
    Reset, Copy, Scrub, Execute, Sample, Export, Import, Checksum, Sampled,
    Score, Scored,
)  # fmt: skip
_ROWS: tuple[Any, ...] = (Fence, BlockTable, KvGroup)
_ENUMS: tuple[tuple[type[IntEnum], int], ...] = (
    (base.Queue, 3), (base.Direction, 4), (base.FaultKind, 8), (base.RowFlag, 1),
)  # fmt: skip
"""With how many members version 1.0 has."""
_OF_1_0 = 14, 9
"""Messages and parts that version 1.0 has."""
_OF_DRIVERS = frozenset(
    (
        Ready, Progress, Estimate, Loaded, Complete, Fault, Heartbeat, StatsReply,
        Sampled, Scored, KvGroup,
    )
)  # fmt: skip


class BadMessage(Exception):
    """The peer does not speak this ABI; its process must be replaced."""


# --- the schema -------------------------------------------------------------------------------


def schema() -> str:
    """Return the digest of version 1.0, all that two sides of any 1.x must see alike.

    That is each message's number, name, required fields and their types, in order; every number
    that has a name; the limits.
    """
    return hashlib.sha256("\n".join(_schema()).encode()).hexdigest()[:32]


def _schema() -> list[str]:
    messages, parts = _OF_1_0
    lines = [f"message {n} {_spell_row(cls)}" for n, cls in enumerate(_MESSAGES[:messages])]
    lines += [f"part {n} {_spell_row(cls)}" for n, cls in enumerate(_PARTS[:parts])]
    lines += [f"row {_spell_row(cls)}" for cls in _ROWS]
    for enum, count in _ENUMS:
        names = ", ".join(f"{member.name}={member.value}" for member in list(enum)[:count])
        lines.append(f"{enum.__name__} {names}")
    limits = ("NULL_BLOCK", "LAST_SAMPLE", "MAX_LOGPROBS", "MAX_CHECKSUMS")
    lines += [f"{name}={getattr(base, name)}" for name in limits]
    return [*lines, f"MAX_MESSAGE={MAX_MESSAGE}", f"MAX_TEXT={MAX_TEXT}"]


def _spell_row(cls: Any) -> str:
    fields = list(cls.__annotations__.items())[: _required(cls)]
    return f"{cls.__name__}({', '.join(f'{name}: {_spell(kind)}' for name, kind in fields)})"


def _spell(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"{_spell(get_args(kind)[0])}[]"
    return "any" if kind is Any else str(kind.__name__)


def _required(cls: Any) -> int:
    return len(cls._fields) - len(cls._field_defaults)


# --- bytes ------------------------------------------------------------------------------------


def encode(message: Any) -> bytes:
    """Return a message as bytes."""
    raw: bytes = msgpack.packb(_numbers(message, _MESSAGES), use_bin_type=True)
    return raw


def _numbers(row: Any, classes: tuple[Any, ...]) -> list[Any]:
    return [classes.index(type(row)), *_fields(row)]


def _fields(row: Any) -> list[Any]:
    """Return a row's fields up to the last one that says something."""
    values = list(row)
    defaults = list(row._field_defaults.values())
    while defaults and values[-1] == defaults[-1]:
        values.pop()
        defaults.pop()
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    if type(value) in _PARTS:
        return _numbers(value, _PARTS)
    return _fields(value) if hasattr(value, "_fields") else [_plain(item) for item in value]


def decode(raw: bytes) -> Any:
    """Return the message in `raw`, every field of the type that it declares; else BadMessage."""
    if len(raw) > MAX_MESSAGE:
        raise BadMessage(f"a message of more than {MAX_MESSAGE} bytes")
    try:
        values = msgpack.unpackb(
            raw, use_list=False, strict_map_key=True, max_ext_len=0, max_str_len=MAX_TEXT
        )
        message = _numbered(_MESSAGES, values)
        if type(message) is Submit:
            ops = tuple(_numbered(_PARTS, op) for op in message.ops)
            message = message._replace(ops=ops)
        elif type(message) is Complete:
            message = message._replace(results=tuple(map(_result, message.results)))
        return message
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise BadMessage(f"{len(raw)} bytes are not a driver message: {error}") from None


def _numbered(classes: tuple[Any, ...], values: Any) -> Any:
    number, *fields = values
    if type(number) is not int or not 0 <= number < len(classes):
        raise TypeError("a number that nothing has")
    return _row(classes[number], tuple(fields))


def _result(value: Any) -> Any:
    """Read what an op gave: the list of a Checksum, or a numbered part."""
    if type(value) is tuple and value and type(value[0]) is int:
        return _numbered(_PARTS, value)
    return _value("a result", tuple[str, ...], value)


def _row(cls: Any, values: tuple[Any, ...]) -> Any:
    least, most = _required(cls), len(cls._fields)
    if len(values) > most and cls in _OF_DRIVERS:
        values = values[:most]
    if not least <= len(values) <= most:
        raise TypeError(f"{cls.__name__} has {least} to {most} fields, got {len(values)}")
    fields = zip(cls.__annotations__.items(), values, strict=False)
    return cls(*(_value(f"{cls.__name__}.{name}", kind, value) for (name, kind), value in fields))


def _value(where: str, kind: Any, value: Any) -> Any:
    """Return `value` as the type that is declared: a plain one, a row, or a tuple of such."""
    if kind is Any:
        return value
    many, row = get_origin(kind) is tuple, hasattr(kind, "_fields")
    plain = tuple if many or row else kind
    if type(value) is not plain:
        raise TypeError(f"{where} is {plain.__name__}, got {type(value).__name__}")
    if many:
        return tuple(_value(where, get_args(kind)[0], item) for item in value)
    return _row(kind, value) if row else value
