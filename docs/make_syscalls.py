"""Write docs/syscalls.md from the ABI table.

python docs/make_syscalls.py            write it
python docs/make_syscalls.py --check    exit 1 if it is not what the table says
"""

import inspect
import re
import sys
import types
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "syscalls.md"

GROUPS = (
    (1, "Tasks"),
    (32, "Contexts"),
    (64, "Inference"),
    (80, "Messages"),
    (96, "Models and devices"),
    (112, "Inspection"),
    (128, "Administration"),
)

INTRO = """\
# System calls

This page is generated from `syscalls/abi.py` by `docs/make_syscalls.py`; do not edit it. The table
is append-only: a number, a field and its place never change, new fields go last and have a default.

## Wire format

A program talks to the kernel over a ZeroMQ `ipc` socket: the kernel is a ROUTER, the program a
DEALER that sets no routing id. Who it is, the kernel learns from the operating system.

A **request** has one or two frames:

1. msgpack: `[version, number, call id, flags, [arguments]]`. The version is {version}. Arguments
   stand in the order of the table; those left out at the end take their default, and the client
   library leaves out those that have it. A number, flag or argument that a kernel does not know is
   ENOTSUP: the program is newer.
2. token ids, if the call takes any: raw little-endian int32.

Call ids are whole numbers from 1 to 2^64-1 and rise within a session. The results of the last
{kept} calls are kept: a call id that is sent again is answered again, and does not run twice
(calls marked *idempotent* may run twice, which does no harm).

A **reply** has one or two frames:

1. msgpack: `[version, [event, ...]]`. One reply may carry events of many calls.
2. token ids: raw little-endian int32, which the FIN events share in the order in which they stand.

Each accepted call ends in exactly one FIN or ERR.

| limit | |
|---|---|
| frame 1 of a request | {max_frame} bytes |
| ids in frame 2 of a request | {max_ids} |
| stop ids of an infer | {max_stop} |
| alternatives per logprob | {max_logprobs} |
| bytes in an answer of read_model | {chunk} |

### Flags

| flag | value | meaning |
|---|---|---|
{flags}

### Events

| event | value | form |
|---|---|---|
{events}

`finish` of an infer: {finish}. Signals of kill: {signals}.

## Errors

Every call can end in EPROTO (the message is not of this ABI), EINVAL (an argument is out of its
range), EPERM (the caller lacks the right), ENOTSUP (not built in this kernel) and ECONNRESET (the
kernel went away). Further errors stand with each call.

| errno | number | meaning |
|---|---|---|
{errors}
"""


def main(argv: list[str]) -> int:
    """Write or check the page."""
    text = page()
    if argv == ["--check"]:
        stale = not PAGE.exists() or PAGE.read_text() != text
        if stale:
            print("docs/syscalls.md is stale: python docs/make_syscalls.py", file=sys.stderr)
        return int(stale)
    if argv:
        print(__doc__, file=sys.stderr)
        return 2
    PAGE.write_text(text)
    return 0


def page() -> str:
    """Return the whole page."""
    from syscalls import abi

    parts = [_intro(), "## Calls\n"]
    starts = [start for start, _ in GROUPS[1:]] + [1 << 16]
    for (start, title), end in zip(GROUPS, starts, strict=True):
        calls = [call for call in abi.CALLS if start <= call.number < end]
        built = [call for call in calls if call.args is not None]
        reserved = [call for call in calls if call.args is None]
        parts.append(f"### {title}\n")
        parts += [_call(call) for call in built]
        if reserved:
            parts.append(_reserved(reserved))
    parts += ["## Rows\n", *(_row(row) for row in _rows())]
    return "\n".join(parts)


def _intro() -> str:
    from syscalls import abi, errors

    return INTRO.format(
        version=abi.VERSION,
        kept=abi.KEPT_RESULTS,
        max_frame=abi.MAX_FRAME,
        max_ids=abi.MAX_IDS,
        max_stop=abi.MAX_STOP_IDS,
        max_logprobs=abi.MAX_LOGPROBS,
        chunk=abi.MODEL_CHUNK,
        flags=_enum_table(abi.Flag),
        events=_enum_table(abi.Event),
        finish=_enum_list(abi.Finish),
        signals=_enum_list(abi.Sig),
        errors="\n".join(
            f"| {errno.name} | {errno.value} | {inspect.getdoc(errors.BY_ERRNO[errno])} |"
            for errno in errors.Errno
        ),
    )


def _enum_table(enum: Any) -> str:
    notes = _comments(enum)
    return "\n".join(
        f"| {item.name} | {item.value} | {_code(notes.get(item.name, ''))} |" for item in enum
    )


def _enum_list(enum: type[IntEnum]) -> str:
    return ", ".join(f"{item.value} {item.name}" for item in enum)


def _code(note: str) -> str:
    return f"`{note}`" if note.startswith("[") else note


def _call(call: Any) -> str:
    lines = [f"#### {call.number} {call.name}\n", f"{call.meaning}\n"]
    marks = [f"Right: {call.right.value}."]
    if call.idempotent:
        marks.append("Idempotent.")
    if call.ids:
        marks.append("Takes ids in frame 2.")
    if call.durable:
        marks.append("Durable: the effect outlives the kernel.")
    lines.append(" ".join(marks) + "\n")
    note = (inspect.getdoc(call.args) or "").strip()
    if note and not note.startswith(f"{call.args.__name__}("):
        lines.append(f"{note}\n")
    if call.args._fields:
        lines.append(_arguments(call.args))
    lines.append(f"Result: {_result(call.result)}\n")
    if call.errnos:
        lines.append(f"Errors: {', '.join(call.errnos.split())}.\n")
    return "\n".join(lines)


def _arguments(row: Any) -> str:
    hints = get_type_hints(row, include_extras=True)
    notes = _comments(row)
    lines = ["| argument | type | default | |", "|---|---|---|---|"]
    for name in row._fields:
        default = row._field_defaults.get(name, "required")
        shown = "nil" if default is None else str(default).lower() if default is False else default
        shown = "[]" if shown == () else f'"{shown}"' if _is_text(default) else shown
        note = notes.get(name, "")
        lines.append(f"| {name} | {_type(hints[name])} | {shown} | {note} |")
    return "\n".join(lines) + "\n"


def _is_text(default: Any) -> bool:
    return isinstance(default, str) and default != "required"


def _type(hint: Any) -> str:
    """Say in words what the validator checks."""
    from syscalls import abi

    if get_origin(hint) in (types.UnionType, Union):
        return " or ".join("nil" if arg is type(None) else _type(arg) for arg in get_args(hint))
    limit = get_args(hint)[1] if get_origin(hint) is Annotated else None
    match limit:
        case abi.Int(lo, hi):
            return f"whole number, {lo} to {_power(hi)}"
        case abi.Real(lo, hi):
            return f"finite number, {lo:g} to {hi:g}"
        case abi.Text(size, pattern):
            return f"text, at most {size} bytes, `{pattern.pattern}`"
        case abi.Blob(size):
            return f"bytes, at most {size}"
        case abi.Ints(size, lo, hi):
            return f"array of at most {size} whole numbers, {lo} to {_power(hi)}"
        case abi.Pairs(size, (lo, hi), (least, most)):
            return (
                f"array of at most {size} pairs: whole number, {lo} to {_power(hi)}, and finite "
                f"number, {least:g} to {most:g}"
            )
    return "true or false" if hint is bool else str(hint)


def _power(number: int) -> str:
    for bits in (8, 31, 32, 53, 64):
        if number == 2**bits - 1 and bits > 8:
            return f"2^{bits}-1"
        if number == 2**bits and bits > 8:
            return f"2^{bits}"
    return str(number)


def _result(row: Any) -> str:
    return f"[`{row.__name__}`](#{row.__name__.lower()})." if row._fields else "nothing."


def _reserved(calls: list[Any]) -> str:
    lines = ["Reserved, answered with ENOTSUP:\n", "| number | call | meaning |", "|---|---|---|"]
    lines += [f"| {call.number} | {call.name} | {call.meaning} |" for call in calls]
    return "\n".join(lines) + "\n"


def _rows() -> list[Any]:
    """The result rows, each with the rows it may hold, in the order of the table."""
    from syscalls import abi

    rows = [call.result for call in abi.CALLS if call.result is not None and call.result._fields]
    rows += [abi.TaskRow, abi.CtxRow, abi.PoolRow, abi.KernelRow, abi.ModelRow, abi.DeviceRow]
    return list(dict.fromkeys(rows))


def _row(row: Any) -> str:
    hints = get_type_hints(row)
    notes = _comments(row)
    lines = [f"### {row.__name__}\n"]
    doc = inspect.getdoc(row) or ""
    if not doc.startswith(f"{row.__name__}("):
        lines.append(f"{doc}\n")
    lines += ["| field | type | |", "|---|---|---|"]
    for name in row._fields:
        kind = hints[name]
        shown = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
        shown = shown.replace("typing.Any", "row")
        lines.append(f"| {name} | {shown} | {notes.get(name, '')} |")
    return "\n".join(lines) + "\n"


def _comments(cls: Any) -> dict[str, str]:
    """Return the comment behind each field or member of a class."""
    found = re.findall(r"^    (\w+)(?::| =).*?  # (.+)$", inspect.getsource(cls), re.MULTILINE)
    return {name: note.replace("|", "\\|") for name, note in found}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(sys.argv[1:]))
