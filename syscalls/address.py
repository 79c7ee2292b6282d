"""Where the kernel's socket is: a pure function of the environment, standard library only.

    $LLMOS_HOST            ipc:///path/to/kernel.sock, taken as it is
    $LLMOS_HOME            $LLMOS_HOME/run/kernel.sock
    $XDG_RUNTIME_DIR       $XDG_RUNTIME_DIR/llmos/kernel.sock
    otherwise              <temporary directory>/llmos-<uid>/kernel.sock

The directory of a socket is the kernel's door: whoever may enter it may speak to the kernel. So a
client enters only one that belongs to its own user and is closed to all others.
"""

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from syscalls.errors import EINVAL, ENOTSUP, EPERM

# sun_path holds 108 bytes, the last of them NUL.
MAX_PATH = 107


def runtime_dir(environ: Mapping[str, str]) -> Path:
    """Return the directory of the kernel's socket, which may not exist yet."""
    if home := environ.get("LLMOS_HOME"):
        return Path(home).absolute() / "run"
    if xdg := environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg) / "llmos"
    return Path(tempfile.gettempdir()) / f"llmos-{os.getuid()}"


def address(environ: Mapping[str, str]) -> str:
    """Return the ZeroMQ address of the kernel; EINVAL or ENOTSUP if it cannot be one."""
    host = environ.get("LLMOS_HOST") or f"ipc://{runtime_dir(environ) / 'kernel.sock'}"
    socket_path(host)
    return host


def socket_path(address: str) -> Path:
    """Return the path in an ipc address; EINVAL or ENOTSUP if there is none."""
    scheme, mark, rest = address.partition("://")
    if scheme == "tcp" and mark:
        raise ENOTSUP(
            f"{address} would reach the network gate, which is not built in this version",
            "unset LLMOS_HOST to reach the kernel on this machine",
        )
    if scheme != "ipc" or not mark or not rest.startswith("/"):
        raise EINVAL(f"{address!r} is not an address", "LLMOS_HOST=ipc:///path/to/kernel.sock")
    size = len(os.fsencode(rest))
    if size > MAX_PATH:
        raise EINVAL(
            f"the socket path has {size} bytes, the system's limit is {MAX_PATH}: {rest}",
            "set LLMOS_HOME to a shorter directory",
            {"limit": MAX_PATH},
        )
    return Path(rest)


def locate(environ: Mapping[str, str]) -> str:
    """Return the address to connect to; EPERM if its door is not the caller's own."""
    where = address(environ)
    directory = socket_path(where).parent
    # Whoever names a socket outright is believed; a derived one may have been put there by others.
    if not environ.get("LLMOS_HOST") and directory.exists():
        check_owner(directory)
    return where


def check_owner(directory: Path) -> None:
    """Raise EPERM unless a socket's directory is the caller's own and closed to others."""
    found = directory.stat()
    if found.st_uid != os.getuid():
        raise EPERM(
            f"{directory} belongs to uid {found.st_uid}, not to uid {os.getuid()}",
            "set LLMOS_HOME to a directory of your own",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise EPERM(
            f"{directory} is open to other users (mode {stat.S_IMODE(found.st_mode):o})",
            f"chmod 700 {directory}",
        )
