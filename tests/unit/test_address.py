"""Where the kernel's socket is."""

from pathlib import Path

import pytest

from syscalls import address
from syscalls.errors import EINVAL, ENOTSUP, EPERM


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"LLMOS_HOST": "ipc:///run/x/k.sock", "LLMOS_HOME": "/h"}, "/run/x/k.sock"),
        ({"LLMOS_HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/1"}, "/h/run/kernel.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/1"}, "/run/user/1/llmos/kernel.sock"),
        ({"LLMOS_HOST": "", "LLMOS_HOME": "", "XDG_RUNTIME_DIR": "/r"}, "/r/llmos/kernel.sock"),
    ],
)
def test_where(environ: dict[str, str], path: str) -> None:
    where = address.address(environ)
    assert where == f"ipc://{path}"
    assert address.socket_path(where) == Path(path)


def test_without_any_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 1234)
    assert address.runtime_dir({}) == tmp_path / "llmos-1234"


def test_a_relative_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert address.runtime_dir({"LLMOS_HOME": "here"}) == tmp_path / "here" / "run"


def test_tcp_is_the_gates() -> None:
    with pytest.raises(ENOTSUP, match="gate"):
        address.address({"LLMOS_HOST": "tcp://far:7000"})


@pytest.mark.parametrize("host", ["kernel.sock", "/run/k", "ipc://", "ipc://k", "udp://x", "tcp:"])
def test_no_address(host: str) -> None:
    with pytest.raises(EINVAL):
        address.address({"LLMOS_HOST": host})


def test_the_limit_of_a_socket_path() -> None:
    assert address.socket_path("ipc:///" + "x" * 106)
    with pytest.raises(EINVAL, match="108 bytes") as caught:
        address.socket_path("ipc:///" + "x" * 107)
    assert caught.value.details == {"limit": 107}
    with pytest.raises(EINVAL):  # bytes count, not characters
        address.socket_path("ipc:///" + "é" * 54)


def test_a_directory_of_ones_own(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    address.check_owner(tmp_path)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_an_open_directory(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(EPERM, match="open to other users"):
        address.check_owner(tmp_path)


def test_the_directory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    uid = tmp_path.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: uid + 1)
    with pytest.raises(EPERM, match="belongs to uid"):
        address.check_owner(tmp_path)
