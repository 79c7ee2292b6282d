"""The ABI is append-only, byte for byte: compared with what was recorded when a call was built."""

from typing import Any

import pytest

from syscalls import abi, errors, wire
from syscalls.checks import compile_checks
from tests.helpers import golden

RECORDED = golden.recorded()
BUILT = [call for call in abi.CALLS if call.args is not None]


@pytest.mark.parametrize("name", RECORDED["requests"])
def test_golden_request_bytes(name: str) -> None:
    assert [frame.hex() for frame in golden.request(name)] == RECORDED["requests"][name]


@pytest.mark.parametrize("name", RECORDED["requests"])
def test_golden_request_decodes_to_what_was_sent(name: str) -> None:
    frames = [bytes.fromhex(frame) for frame in RECORDED["requests"][name]]
    request = wire.unpack_request(frames)
    row = abi.BY_NAME[golden.call_of(name)]
    assert request.row is row
    assert request.call == golden.CALL
    sent = row.args(*golden.REQUESTS[name])
    assert [_frozen(arg) for arg in request.args] == list(sent)
    assert list(request.ids or ()) == list(golden.IDS.get(name, ()))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("name", RECORDED["events"])
def test_golden_event_bytes(name: str) -> None:
    assert wire.pack_events([golden.EVENTS[name]]).hex() == RECORDED["events"][name]


def test_every_built_call_and_event_has_a_golden_message() -> None:
    assert set(map(golden.call_of, RECORDED["requests"])) == {call.name for call in BUILT}
    assert set(map(golden.call_of, RECORDED["events"])) == {event.name for event in abi.Event}


def test_golden_requests_say_every_field() -> None:
    """A field that is left at its default would not show a change of its encoding."""
    said = {golden.call_of(name): len(args) for name, args in golden.REQUESTS.items()}
    for name, count in said.items():
        assert count == len(abi.BY_NAME[name].args._fields), name


@pytest.mark.parametrize("old", RECORDED["table"], ids=lambda old: old[1])
def test_no_number_name_or_field_has_changed(old: list[Any]) -> None:
    number, name, *fields = old
    call = abi.BY_NUMBER[number]
    assert call.name == name
    for recorded, row in zip(fields, (call.args, call.result), strict=True):
        if recorded is not None:
            assert row._fields[: len(recorded)] == tuple(recorded)


def test_new_arguments_have_defaults() -> None:
    """So that a program which does not know them can still make the call."""
    for number, name, fields, _ in RECORDED["table"]:
        args = abi.BY_NUMBER[number].args
        for new in args._fields[len(fields) :] if fields is not None else ():
            assert new in args._field_defaults, f"{name}.{new}"


def test_new_results_have_defaults() -> None:
    """So that a program which knows them can still read the answer of an older kernel."""
    recorded = {name: fields for _, name, _, fields in RECORDED["table"] if fields is not None}
    rows = {name: abi.BY_NAME[name].result for name in recorded}
    recorded |= RECORDED["rows"]
    rows |= {name: getattr(abi, name) for name in RECORDED["rows"]}
    for name, fields in recorded.items():
        for new in rows[name]._fields[len(fields) :]:
            assert new in rows[name]._field_defaults, f"{name}.{new}"


@pytest.mark.parametrize("name", RECORDED["rows"])
def test_inner_rows_are_append_only(name: str) -> None:
    old = tuple(RECORDED["rows"][name])
    assert getattr(abi, name)._fields[: len(old)] == old


def test_errnos_keep_their_numbers() -> None:
    now = {errno.name: int(errno) for errno in errors.Errno}
    assert RECORDED["errnos"].items() <= now.items()


def test_numbers_and_names_are_unique_and_rise() -> None:
    numbers = [call.number for call in abi.CALLS]
    assert numbers == sorted(set(numbers))
    assert len({call.name for call in abi.CALLS}) == len(abi.CALLS)


def test_every_errno_has_one_exception_of_its_name() -> None:
    assert set(errors.BY_ERRNO) == set(map(int, errors.Errno))
    for errno, cls in errors.BY_ERRNO.items():
        assert cls.__name__ == errors.Errno(errno).name
        raised = errors.from_wire(errno, "what", "next", {"limit": 3})
        assert type(raised) is cls
        assert (raised.message, raised.hint, raised.details) == ("what", "next", {"limit": 3})


def test_an_errno_of_a_newer_kernel_is_an_io_error() -> None:
    error = errors.from_wire(4711, "what", "", {})
    assert isinstance(error, errors.EIO)
    assert "4711" in str(error)


@pytest.mark.parametrize("call", BUILT, ids=lambda call: call.name)
def test_rows_name_errnos_that_exist(call: abi.Call) -> None:
    for name in call.errnos.split():
        assert name in errors.Errno.__members__


@pytest.mark.parametrize("call", BUILT, ids=lambda call: call.name)
def test_every_argument_has_a_check_and_its_default_passes(call: abi.Call) -> None:
    checks = compile_checks(call.args)
    for name, check in zip(call.args._fields, checks, strict=True):
        if name in call.args._field_defaults:
            default = call.args._field_defaults[name]
            assert check(list(default) if isinstance(default, tuple) else default) is None
