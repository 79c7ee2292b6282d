"""The wire between the kernel and a driver host: the messages of `drivers.base` as bytes.

A message is one packet: `[number, field, ...]` in msgpack, and so is an op or a result in it
(`drivers.rows`).

What is read has the types that the fields declare, else it is BadMessage, and the process that sent
it must be replaced. A row may be shorter than declared here, by fields that have a default. A row
of a driver may be longer: what a newer one has added is dropped. Anything else that is longer asks
for what nobody here knows, and is BadMessage too.
"""

import hashlib
from enum import IntEnum
from typing import Any

from drivers import base, rows
from drivers.base import (
    BlockTable,
    Checksum,
    Close,
    Compile,
    Compiled,
    Complete,
    Copy,
    Estimate,
    Execute,
    Export,
    Fault,
    Fence,
    Forget,
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
from drivers.rows import BadMessage as BadMessage

MAX_MESSAGE = 192 * 1024
"""Bytes of one message; below the default send buffer of an AF_UNIX SEQPACKET socket."""
MAX_TEXT = 8192
"""Bytes of one string in a message."""

# Their places are their numbers: new ones go last.
_MESSAGES: tuple[Any, ...] = (
    Hello, Load, Unload, Submit, Stats, Close,
    Ready, Progress, Estimate, Loaded, Complete, Fault, Heartbeat, StatsReply,
    Compile, Forget, Compiled,
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
        Sampled, Scored, KvGroup, Compiled,
    )
)  # fmt: skip

# --- the schema -------------------------------------------------------------------------------


def schema() -> str:
    """Return the digest of version 1.0, all that two sides of any 1.x must see alike.

    That is each message's number, name, required fields and their types, in order; every number
    that has a name; the limits.
    """
    return hashlib.sha256("\n".join(_schema()).encode()).hexdigest()[:32]


def _schema() -> list[str]:
    messages, parts = _OF_1_0
    lines = [f"message {n} {rows.spell_row(cls)}" for n, cls in enumerate(_MESSAGES[:messages])]
    lines += [f"part {n} {rows.spell_row(cls)}" for n, cls in enumerate(_PARTS[:parts])]
    lines += [f"row {rows.spell_row(cls)}" for cls in _ROWS]
    lines += [rows.spell_enum(enum, count) for enum, count in _ENUMS]
    limits = ("NULL_BLOCK", "LAST_SAMPLE", "MAX_LOGPROBS", "MAX_CHECKSUMS")
    lines += [f"{name}={getattr(base, name)}" for name in limits]
    return [*lines, f"MAX_MESSAGE={MAX_MESSAGE}", f"MAX_TEXT={MAX_TEXT}"]


# --- bytes ------------------------------------------------------------------------------------


def encode(message: Any) -> bytes:
    """Return a message as bytes."""
    return rows.encode(message, _MESSAGES, _PARTS)


def decode(raw: bytes) -> Any:
    """Return the message in `raw`, every field of the type that it declares; else BadMessage."""
    return rows.decode(raw, MAX_MESSAGE, MAX_TEXT, _message, "a driver message")


def _message(values: Any) -> Any:
    message = rows.numbered(_MESSAGES, values, _OF_DRIVERS)
    if type(message) is Submit:
        return message._replace(ops=tuple(map(_part, message.ops)))
    if type(message) is Complete:
        return message._replace(results=tuple(map(_result, message.results)))
    return message


def _part(values: Any) -> Any:
    return rows.numbered(_PARTS, values, _OF_DRIVERS)


def _result(value: Any) -> Any:
    """Read what an op gave: the list of a Checksum, or a numbered part."""
    if type(value) is tuple and value and type(value[0]) is int:
        return _part(value)
    return rows.typed("a result", tuple[str, ...], value, _OF_DRIVERS)
