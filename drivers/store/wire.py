"""The wire between the kernel and the store host: the messages of `drivers.store.base` as bytes.

One packet a message, as `drivers.rows` has it. What is read has the types that the fields declare,
else it is BadMessage, and the process that sent it must be replaced. What a newer store host adds
to its answers is dropped.
"""

import hashlib
from enum import IntEnum
from typing import Any

from drivers import rows
from drivers.rows import BadMessage as BadMessage
from drivers.store import base
from drivers.store.base import (
    AbortSave,
    AddBlocks,
    AddIds,
    Area,
    BeginSave,
    Block,
    Blocks,
    Close,
    CloseSave,
    CommitSave,
    Done,
    DropSave,
    Fault,
    Found,
    FreeSlots,
    Heartbeat,
    Ids,
    ListSaves,
    Open,
    Opened,
    OpenSave,
    ReadBlocks,
    ReadIds,
    Saved,
    SaveMeta,
    SaveRow,
    Saves,
    Stats,
    StatsReply,
    SwapIn,
    SwapOut,
)  # fmt: skip

MAX_MESSAGE = 192 * 1024
"""Bytes of one message; below the default send buffer of an AF_UNIX SEQPACKET socket."""
MAX_TEXT = 8192
"""Bytes of one string in a message."""

# Their places are their numbers: new ones go last.
_MESSAGES: tuple[Any, ...] = (
    Open, SwapOut, SwapIn, FreeSlots, BeginSave, AddIds, AddBlocks, CommitSave, AbortSave,
    OpenSave, ReadIds, ReadBlocks, CloseSave, ListSaves, DropSave, Stats, Close,
    Opened, Done, Blocks, Saved, Found, Ids, Saves, Fault, Heartbeat, StatsReply,
)  # fmt: skip
_ROWS: tuple[Any, ...] = (Area, Block, SaveMeta, SaveRow)
_ENUMS: tuple[tuple[type[IntEnum], int], ...] = (
    (base.FaultKind, 11), (base.BlockState, 3), (base.SaveState, 3),
)  # fmt: skip
"""With how many members version 1.0 has."""
_LIMITS = (
    "MAX_BLOCKS", "MAX_IDS", "MAX_ROWS", "MAX_HASH", "MAX_NAME", "MAX_WORD", "MAX_EXTRA",
    "MAX_LENGTH", "MAX_SAVE_BLOCKS", "MAX_BLOCK_BYTES", "MAX_SAVES",
)  # fmt: skip
_OF_1_0 = 27
"""Messages that version 1.0 has."""
_OF_STORE = frozenset(
    (Opened, Done, Blocks, Saved, Found, Ids, Saves, Fault, Heartbeat, StatsReply, SaveRow)
)


def schema() -> str:
    """Return the digest of version 1.0, all that two sides of any 1.x must see alike."""
    lines = [f"message {n} {rows.spell_row(cls)}" for n, cls in enumerate(_MESSAGES[:_OF_1_0])]
    lines += [f"row {rows.spell_row(cls)}" for cls in _ROWS]
    lines += [rows.spell_enum(enum, count) for enum, count in _ENUMS]
    lines += [f"{name}={getattr(base, name)}" for name in _LIMITS]
    lines += [f"MAX_MESSAGE={MAX_MESSAGE}", f"MAX_TEXT={MAX_TEXT}"]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def encode(message: Any) -> bytes:
    """Return a message as bytes."""
    return rows.encode(message, _MESSAGES)


def decode(raw: bytes) -> Any:
    """Return the message in `raw`, every field of the type that it declares; else BadMessage."""
    return rows.decode(raw, MAX_MESSAGE, MAX_TEXT, _message, "a message of the store")


def _message(values: Any) -> Any:
    return rows.numbered(_MESSAGES, values, _OF_STORE)
