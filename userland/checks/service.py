"""The kernel that runs, or could: its socket, its version, its devices."""

import os
import socket
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import syscalls
from syscalls.abi import StoreRow
from syscalls.address import locate, socket_path
from userland.checks.finding import FAIL, OK, WARN, Finding
from userland.checks.installation import PACKAGE
from userland.running import store_of
from userland.view import size


def socket_directory(address: str | None) -> Iterator[Finding]:
    """Is the way to the kernel closed to others, and does somebody listen?"""
    try:
        path = socket_path(address or locate(os.environ))
    except syscalls.KernelError as error:
        yield Finding("socket", FAIL, error.message, error.hint)
        return
    there = "yours alone" if path.parent.exists() else "made by the first llmos up"
    yield Finding("socket", OK, f"{path}: its directory is {there}")
    if path.exists() and not _listening(path):
        text = "nobody listens there: a kernel was killed"
        yield Finding("socket", WARN, text, "llmos up takes its place")


def _listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as door:
        door.setblocking(False)
        try:
            door.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def kernel(address: str | None) -> Iterator[Finding]:
    """Does a kernel answer, is it of this version, and are its devices up?"""
    try:
        with syscalls.connect("llmos", address=address) as task:
            row, devices, store = task.kernel(), task.devices(), store_of(task)
    except syscalls.ECONNRESET:
        yield Finding("kernel", OK, "none is running")
        return
    except syscalls.KernelError as error:
        yield Finding("kernel", FAIL, error.message, error.hint)
        return
    ours = version(PACKAGE)
    text = f"pid {row.pid}, version {row.version}"
    if row.version != ours:
        yield Finding("kernel", WARN, f"{text}; this is {ours}", "llmos down && llmos up")
    else:
        yield Finding("kernel", OK, text)
    for device in devices:
        level = OK if device.state == "up" else FAIL if device.state == "failed" else WARN
        todo = "" if level == OK else "llmos status"
        text = f"{device.device} is {device.state}"
        yield Finding("kernel", level, f"{text}: {device.note}" if device.note else text, todo)
    if store is not None:
        yield _kept(store)


def _kept(store: StoreRow) -> Finding:
    """Can what is saved be opened?"""
    if store.state != "up":
        level = FAIL if store.state == "failed" else WARN
        note = f": {store.note}" if store.note else ""
        state = "has failed" if store.state == "failed" else f"is {store.state}"
        return Finding("saves", level, f"the store {state}{note}", store.hint)
    text = f"{store.saves:,} that can be opened, {size(store.saves_bytes)}"
    if store.damaged:
        return Finding("saves", WARN, f"{text}; {store.damaged} that cannot", "llmos ctx saves")
    return Finding("saves", OK, text)
