"""Turn marks: where the messages of a chat end, as the few bytes that go with a save.

    version byte, then msgpack: [start, [[role, ids], ...]]

`start` is where the first message begins; each takes so many ids more, nil for the last one: all
that are left, of an answer that was being written. Texts are not in it: the ids say what they were.
What finds no room is left out, the oldest first: those ids are there, and are no messages any more.

What comes back is foreign: anything but what is written here means no messages.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from syscalls.abi import MAX_EXTRA
from syscalls.conversation import ASSISTANT, Conversation, Turn
from syscalls.errors import EINVAL

if TYPE_CHECKING:
    from syscalls.text import TextModel

VERSION = b"\x01"
ROLES = ("system", "user", ASSISTANT, "tool")
"""Those that are written as a number."""
MAX_ROLE = 32
"""Characters of one that is written as a word."""
ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_LEAST = 3
"""Bytes of a message at least."""
_ROOM = 16
"""Bytes of the marks of no messages, at most."""


class Mark(NamedTuple):
    """One message: its role, and its first and last position but one."""

    role: str
    start: int
    end: int


def packed(turns: Sequence[Turn], answering: int | None = None, room: int = MAX_EXTRA) -> bytes:
    """Return the marks of a chat, in no more than `room` bytes.

    `answering` is where the answer begins that is being written.
    """
    if not turns or room < _ROOM:
        return b""
    rows: list[tuple[int | str, int | None]] = []
    before = 0
    for turn in turns:
        rows.append((_code(turn.role), turn.length - before))
        before = turn.length
    if answering is not None:
        last = turns[-1]
        if last.role == ASSISTANT and last.length == answering:
            rows.pop()
        rows.append((_code(ASSISTANT), None))
    first = max(0, len(rows) - room // _LEAST)
    while True:
        start = sum(count or 0 for _, count in rows[:first])
        raw: bytes = VERSION + msgpack.packb([start, rows[first:]])
        if len(raw) <= room:
            return raw
        first += 1 + (len(raw) - room) // (MAX_ROLE + 16)


def marks_of(extra: bytes, length: int) -> list[Mark]:
    """Return the messages of a chat of `length` ids; none if `extra` says nothing that fits."""
    if not extra.startswith(VERSION) or len(extra) > MAX_EXTRA:
        return []
    try:
        start, rows = msgpack.unpackb(
            extra[len(VERSION) :], use_list=False, raw=False, max_map_len=0, max_ext_len=0,
            max_bin_len=0, max_str_len=MAX_ROLE, max_array_len=MAX_EXTRA,
        )  # fmt: skip
        return _checked(start, rows, length)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return []


def _checked(start: object, rows: Sequence[tuple[object, object]], length: int) -> list[Mark]:
    """Return the messages that rows say; ValueError, TypeError."""
    if type(start) is not int or start < 0:
        raise ValueError
    marks: list[Mark] = []
    for number, (code, count) in enumerate(rows):
        end = length if count is None and number == len(rows) - 1 else start + _whole(count)
        if end > length:
            raise ValueError
        marks.append(Mark(_role(code), start, end))
        start = end
    return marks


def _whole(count: object) -> int:
    if type(count) is not int or count < 0:
        raise ValueError
    return count


def _code(role: str) -> int | str:
    return ROLES.index(role) if role in ROLES else role


def _role(code: object) -> str:
    if type(code) is int and 0 <= code < len(ROLES):
        return ROLES[code]
    if type(code) is str and ROLE.fullmatch(code):
        return code
    raise ValueError


def recalled(marks: Sequence[Mark], ids: Sequence[int], model: "TextModel | None") -> Conversation:
    """Return the chat that the marks are of, its texts out of the context's ids.

    A message whose ids are not those that this model's template gives it has the text of all of
    them.
    """
    chat = Conversation()
    for role, start, end in marks:
        text = "" if model is None else _text(chat, model, role, ids[start:end], start)
        chat.said(role, text, end)
    return chat


def _text(chat: Conversation, model: "TextModel", role: str, ids: Sequence[int], start: int) -> str:
    try:
        if role == ASSISTANT:
            head, tail = _after(ids, chat.prompt_ids(model, start)), 0
        else:
            head, tail = _between(ids, chat.turn_ids(model, role, "", start))
    except EINVAL:  # no template, or one that has no such message here
        head = tail = 0
    return model.decode(ids[: len(ids) - tail], head)


def _after(ids: Sequence[int], markup: Sequence[int]) -> int:
    """Return how many ids of markup stand before an answer."""
    return len(markup) if list(ids[: len(markup)]) == list(markup) else 0


def _between(ids: Sequence[int], markup: Sequence[int]) -> tuple[int, int]:
    """Return how many ids of markup stand before and behind what a message says.

    `markup` is a message that says nothing.
    """
    if len(ids) < len(markup):
        return 0, 0
    for head in range(len(markup), -1, -1):
        tail = len(ids) - len(markup) + head
        if list(ids[:head]) == list(markup[:head]) and list(ids[tail:]) == list(markup[head:]):
            return head, len(markup) - head
    return 0, 0
