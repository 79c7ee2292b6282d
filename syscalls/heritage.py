"""What comes with a task: contexts that are there when its program begins.

A fork of a task has forks of its parent's contexts, under the same handles; a task that came back
with its kernel has those that it had. The kernel knows ids and rights; where the messages of a chat
end, only programs do. So the parent gives a note along:

    version byte, then msgpack: [[handle, turn marks], ...]          (syscalls/turnmarks.py)

What the note has no room for, or what does not fit, is ids and no messages.
"""

from collections.abc import Iterable, Sequence

import msgpack

from syscalls import abi, turnmarks
from syscalls.ctxflow import ContextFlow
from syscalls.errors import EBADCTX, EPERM, EREVOKED
from syscalls.flow import Caller, Flow

VERSION = b"\x01"
_ROW = 16
"""Bytes of a row of the note, beside its marks, at most."""


def fork_task(
    caller: Caller, name: str, contexts: Sequence[ContextFlow] | None
) -> Flow[abi.ForkTaskResult]:
    """Make a child with forks of contexts, of all if none are said."""
    known = caller.contexts if contexts is None else contexts
    handles = () if contexts is None else tuple(context.handle for context in contexts)
    made: abi.ForkTaskResult = yield from caller.ask("fork_task", name, handles, packed(known))
    return made


def inherited(caller: Caller, hello: abi.HelloResult) -> Flow[list[ContextFlow]]:
    """Return the contexts that a task has already and its program does not know."""
    known = {context.handle for context in caller.contexts}
    marks = marks_of(hello.note)
    found = []
    for handle in hello.contexts:
        if handle in known:
            continue
        try:
            found.append((yield from _context(caller, handle, marks.get(handle, b""))))
        except EBADCTX:
            pass  # it has gone meanwhile
    return found


def _context(caller: Caller, handle: int, extra: bytes) -> Flow[ContextFlow]:
    row: abi.CtxRow = yield from caller.ask("stat_ctx", handle)
    about = abi.AllocCtxResult(row.model, row.max_ctx, row.block_size, row.load)
    context = ContextFlow(caller, handle, about)
    context.length, context.access = row.length, abi.Access(row.access)
    marks = turnmarks.marks_of(extra, row.length)
    if marks:
        try:
            ids = yield from context.read(0, marks[-1].end)
        except (EPERM, EREVOKED):
            return context  # opened without the right to read it: nobody says what it has
        text = yield from caller.text_model(row.model, row.load)
        context.conversation = turnmarks.recalled(marks, ids, text)
    return context


# --- the note ---------------------------------------------------------------------------------


def packed(contexts: Iterable[ContextFlow]) -> bytes:
    """Return the note for a child that has forks of these contexts."""
    chats = [context for context in contexts if context.conversation.turns]
    if not chats:
        return b""
    room = (abi.MAX_NOTE - _ROW) // len(chats) - _ROW
    rows = [[context.handle, context.marks(min(room, abi.MAX_EXTRA))] for context in chats]
    return VERSION + bytes(msgpack.packb([row for row in rows if row[1]]))


def marks_of(note: bytes) -> dict[int, bytes]:
    """Return the marks in a note by handle; none if it says nothing that fits."""
    if not note.startswith(VERSION) or len(note) > abi.MAX_NOTE:
        return {}
    try:
        rows = msgpack.unpackb(
            note[len(VERSION) :], raw=False, max_map_len=0, max_ext_len=0, max_str_len=0,
            max_bin_len=abi.MAX_EXTRA, max_array_len=abi.MAX_HANDLES,
        )  # fmt: skip
        marks = {handle: extra for handle, extra in rows}
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return {}
    fits = all(type(key) is int and type(value) is bytes for key, value in marks.items())
    return marks if fits else {}
