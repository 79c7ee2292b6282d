"""The wire format: frames to checked rows, rows to frames.

Decoding is fenced: the number of frames and their sizes are checked before msgpack sees a byte,
msgpack runs with its own limits, and what it returns is checked field by field against the ABI
row, without recursion, before any handler sees it. Everything that can go wrong here is EPROTO
(not a message of this ABI) or EINVAL (a field out of its range), never another exception.
"""

import sys
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from syscalls import abi
from syscalls.checks import compile_checks
from syscalls.errors import E2BIG, EINVAL, ENOTSUP, EPROTO, KernelError


class Request(NamedTuple):
    """One decoded call. `args` is an instance of the row's argument type."""

    row: abi.Call
    call: int
    flags: int
    args: Any
    ids: "array[int] | None"


class BadRequest(Exception):
    """A request that cannot be run: the error, and the call it answers (0: not even that)."""

    def __init__(self, call: int, error: KernelError) -> None:
        super().__init__(str(error))
        self.call = call
        self.error = error


def pack_ids(ids: "Sequence[int] | array[int]") -> bytes:
    """Return ids as raw little-endian int32; EINVAL if one is not in 0..2^31-1."""
    try:
        packed = ids if isinstance(ids, array) and ids.typecode == "i" else array("i", ids)
    except (TypeError, OverflowError) as error:
        raise EINVAL(f"token ids are whole numbers from 0 to {abi.INT32_MAX}: {error}") from None
    frame = _little(packed).tobytes()
    if not frame[3::4].isascii():  # the sign bits
        raise EINVAL(f"token ids are whole numbers from 0 to {abi.INT32_MAX}: one is negative")
    return frame


def unpack_ids(frame: bytes) -> "array[int]":
    """Return the ids of a frame whose size the caller has checked."""
    ids = array("i")
    ids.frombytes(frame)
    return _little(ids)


def _little(ids: "array[int]") -> "array[int]":
    if sys.byteorder == "little":
        return ids
    swapped = array("i", ids)
    swapped.byteswap()
    return swapped


def pack_request(number: int, call: int, flags: int, args: tuple[Any, ...]) -> bytes:
    """Return frame 1 of a request."""
    frame: bytes = msgpack.packb([abi.VERSION, number, call, flags, args], use_bin_type=True)
    return frame


def pack_event(event: Sequence[Any]) -> bytes:
    """Return one event, to be joined with others."""
    packed: bytes = msgpack.packb(event, use_bin_type=True)
    return packed


def join_events(events: Sequence[bytes]) -> bytes:
    """Return frame 1 of a reply made of packed events."""
    packer = msgpack.Packer()
    head: bytes = packer.pack_array_header(2) + packer.pack(abi.VERSION)
    return b"".join((head, packer.pack_array_header(len(events)), *events))


def pack_events(events: list[Any]) -> bytes:
    """Return frame 1 of a reply."""
    return join_events([pack_event(event) for event in events])


def unpack_events(frame: bytes) -> list[Any]:
    """Return the events of a reply; EPROTO if it is not one."""
    message = _decode(frame)
    if not (isinstance(message, list) and len(message) == 2 and isinstance(message[1], list)):
        raise EPROTO("the kernel's reply is not [version, events]")
    if type(message[0]) is not int or message[0] != abi.VERSION:
        raise EPROTO(
            f"the kernel speaks ABI {message[0]!r}, this library {abi.VERSION}",
            "install the same version of llmos-kernel for kernel and program",
        )
    return message[1]


def unpack_request(frames: Sequence[bytes]) -> Request:
    """Decode and check one request (without routing id); raise BadRequest."""
    if not 1 <= len(frames) <= 2:
        raise BadRequest(0, EPROTO(f"a request has 1 or 2 frames, got {len(frames)}"))
    if len(frames[0]) > abi.MAX_FRAME:
        raise BadRequest(0, _too_long("frame 1", len(frames[0]), abi.MAX_FRAME))
    try:
        message = _decode(frames[0])
    except KernelError as error:
        raise BadRequest(0, error) from None
    call, flags = _header(message)
    try:
        row, args = _call(message)
        if flags & ~int(abi.Flag.QUEUE | abi.Flag.CHAIN):
            raise ENOTSUP(f"header flags {flags:#x} are not built in this kernel")
        if len(frames) == 2 and not row.ids:
            raise EPROTO(f"{row.name} takes no ids, and frame 2 has {len(frames[1])} bytes of them")
        ids = _ids(frames[1]) if len(frames) == 2 else None
        return Request(row, call, flags, args, ids)
    except KernelError as error:
        raise BadRequest(call, error) from None


def _decode(frame: bytes) -> Any:
    # msgpack raises more than its own errors (seen: UnicodeDecodeError, RecursionError,
    # MemoryError); whatever it is, the bytes are not a message of ours.
    try:
        return msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            max_array_len=abi.MAX_EVENTS,
            max_map_len=256,
            max_ext_len=0,
            max_str_len=abi.MAX_FRAME,
            max_bin_len=2 * abi.MODEL_CHUNK,
        )
    except (
        ValueError,
        TypeError,
        RecursionError,
        MemoryError,
        OverflowError,
        msgpack.UnpackException,
    ) as error:
        raise EPROTO(
            f"frame 1 ({len(frame)} bytes) is not msgpack of this ABI: {type(error).__name__}"
        ) from None


def _header(message: Any) -> tuple[int, int]:
    spoken = message[0] if type(message) is list and message else None
    if type(spoken) is not int or spoken != abi.VERSION:
        version = spoken if type(spoken) is int else "none"
        raise BadRequest(
            _call_id(message),
            EPROTO(
                f"the message speaks ABI {version}, this kernel {abi.VERSION}",
                "install the same version of llmos-kernel for kernel and program",
            ),
        )
    if len(message) != 5:
        raise BadRequest(
            _call_id(message),
            EPROTO(
                f"frame 1 is [version, number, call, flags, arguments], got {len(message)} items"
            ),
        )
    call, flags = message[2], message[3]
    if type(call) is not int or not 0 < call < 2**64:
        raise BadRequest(0, EPROTO("the call id is a whole number from 1 to 2^64-1"))
    if type(flags) is not int or not 0 <= flags < 2**32:
        raise BadRequest(call, EPROTO("the flags are a whole number from 0 to 2^32-1"))
    return call, flags


def _call_id(message: Any) -> int:
    """The call id of a message that is wrong elsewhere, so that its sender gets an answer."""
    if type(message) is list and len(message) > 2:
        call = message[2]
        if type(call) is int and 0 < call < 2**64:
            return call
    return 0


def _call(message: list[Any]) -> tuple[abi.Call, Any]:
    number, values = message[1], message[4]
    if type(number) is not int:
        raise EPROTO("the number of a system call is a whole number", "see docs/syscalls.md")
    row = abi.BY_NUMBER.get(number)
    if row is None:
        raise ENOTSUP(f"this kernel has no system call {number}", "see docs/syscalls.md")
    if row.args is None:
        raise ENOTSUP(f"{row.name} is reserved, and not built in this kernel")
    if type(values) is not list:
        raise EPROTO(f"{row.name}: the arguments are an array")
    return row, check_args(row, values)


def check_args(row: abi.Call, values: list[Any]) -> Any:
    """Return the argument row for decoded values; EPROTO, ENOTSUP, or EINVAL naming the field."""
    return check_row(row.name, row.args, values)


def check_row(what: str, row: Any, values: list[Any]) -> Any:
    """Return a row for decoded values, each of which is as its field declares; likewise."""
    fields = row._fields
    checks = compile_checks(row)
    if len(values) > len(fields):
        raise ENOTSUP(
            f"{what} has {len(fields)} arguments in this kernel, got {len(values)}",
            "install the same version of llmos-kernel for kernel and program",
        )
    required = len(fields) - len(row._field_defaults)
    if len(values) < required:
        raise EPROTO(f"{what} needs {required} arguments, got {len(values)}")
    for name, check, value in zip(fields, checks, values, strict=False):
        wrong = check(value)
        if wrong:
            raise EINVAL(f"{what}: {name} {wrong}")
    return row(*values)


def _ids(frame: bytes) -> "array[int]":
    if len(frame) > 4 * abi.MAX_IDS:
        raise _too_long("frame 2", len(frame), 4 * abi.MAX_IDS)
    if len(frame) % 4:
        raise EPROTO(f"frame 2 is raw int32: {len(frame)} bytes is not a multiple of 4")
    return unpack_ids(frame)


def _too_long(what: str, size: int, limit: int) -> E2BIG:
    return E2BIG(f"{what} has {size} bytes, the limit is {limit}", details={"limit": limit})
