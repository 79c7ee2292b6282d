"""`llmos doctor`: each thing that can be wrong is made wrong once, and is found."""

import json
import os
import socket
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from drivers.models.store import default_root
from tests.helpers.daemon import daemon
from tests.helpers.shell import environment
from userland.checks import installation, machine
from userland.cli import run
from userland.desk import Desk

Found = list[tuple[str, str, str, str]]


def doctor(home: Path, *words: str, code: int = 0, **env: str) -> Found:
    """Run it; return level, check, text and what to do of each finding."""
    out, err = StringIO(), StringIO()
    with patch.dict(os.environ, environment(home) | env, clear=True):
        assert run(Desk(out, err), [*words, "doctor", "--quick", "--json"]) == code, out.getvalue()
    rows = json.loads(out.getvalue())["data"]
    return [(row["level"], row["check"], row["text"], row["todo"]) for row in rows]


def said(found: Found, level: str, check: str) -> Iterator[str]:
    return (f"{text} → {todo}" for *which, text, todo in found if which == [level, check])


def one(found: Found, level: str, check: str) -> str:
    (text,) = said(found, level, check)
    return text


def test_a_fit_machine_is_told_line_by_line(tmp_path: Path) -> None:
    out = StringIO()
    with patch.dict(os.environ, environment(tmp_path), clear=True):
        assert run(Desk(out, StringIO()), ["doctor", "--quick"]) == 0
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("ok    python    3.")
    at = next(at for at, line in enumerate(lines) if line.endswith("none is installed"))
    assert lines[at].startswith("warn  models")
    assert lines[at + 1].strip() == "try   llmos pull smollm2"
    assert "fail" not in {line.split()[0] for line in lines}


def test_a_kernel_that_runs(tmp_path: Path) -> None:
    with daemon(tmp_path) as kernel:
        found = doctor(tmp_path)
        assert f"pid {kernel.process.pid}, version" in next(said(found, "ok", "kernel"))
        elsewhere = doctor(tmp_path / "x", "-H", kernel.address)
        assert f"pid {kernel.process.pid}" in next(said(elsewhere, "ok", "kernel"))
        with patch("userland.checks.service.version", lambda _: "99.1"):
            assert "this is 99.1" in one(doctor(tmp_path), "warn", "kernel")


def test_a_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "run" / "kernel.sock"))
        assert "a kernel was killed" in one(doctor(tmp_path), "warn", "socket")


def test_a_kernel_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syscalls.client.HELLO_S", 0.02)
    (tmp_path / "run").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "run" / "kernel.sock"))
        door.listen()
        assert "did not answer" in one(doctor(tmp_path, code=1), "fail", "kernel")


def test_a_directory_that_others_may_enter(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    assert "chmod 700" in one(doctor(tmp_path, code=1), "fail", "socket")


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    found = doctor(tmp_path / ("x" * 107), code=1)
    assert "the system's limit is 107" in one(found, "fail", "socket")


def test_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("modle = 1\n")
    assert "config.toml:1" in one(doctor(tmp_path, code=1), "fail", "config")


def test_models_that_are_damaged(tmp_path: Path) -> None:
    sound = next(default_root().glob("smollm2/*/manifest.json")).parent
    for name, size in (("short", 5), ("gone", None)):
        copy = tmp_path / "models" / name / sound.name
        copy.mkdir(parents=True)
        for path in sound.iterdir():
            if path.name == "manifest.json":
                manifest = json.loads(path.read_text()) | {"name": name}
                (copy / path.name).write_text(json.dumps(manifest))
            elif path.suffix != ".gguf":
                (copy / path.name).write_bytes(path.read_bytes())
            elif size is not None:
                (copy / path.name).write_bytes(b"x" * size)
    broken = tmp_path / "models" / "odd" / "1"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    gone, odd, short = said(doctor(tmp_path, code=1), "fail", "models")
    assert gone.startswith("gone:") and odd.startswith("odd:1")
    assert short.startswith(f"short:{sound.name}: ") and "5" in short and "llmos pull" in short


def test_a_machine_that_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_quota", lambda: 0.5)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (64, 64))
    monkeypatch.setattr(installation, "LEAST_DISK", 1 << 60)
    found = doctor(tmp_path, LLMOS_KV_MEM="1000000G")
    assert "llmos up --kv-mem" in one(found, "warn", "memory")
    assert "--set threads=1" in one(found, "warn", "cores")
    assert "ulimit" in one(found, "warn", "files")
    assert any("free some space" in text for text in said(found, "warn", "models"))


def test_hardware_that_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"nosuch": ("/dev/null", "thing"), "cpu": ("/dev/zero", "part")}
    monkeypatch.setattr(machine, "ACCELERATORS", kinds)
    found = doctor(tmp_path)
    assert "thing (/dev/null) is not used" in one(found, "warn", "devices")
    assert "part (/dev/zero): --device cpu0" in one(found, "ok", "devices")


def test_packages_that_are_absent_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["click>=99", "no-such-package>=1", 'pytest; extra == "test"', "msgpack>=1"]
    monkeypatch.setattr(installation, "requires", lambda _: wanted)
    old, absent = said(doctor(tmp_path, code=1), "fail", "packages")
    assert "needed is click>=99" in old and "no-such-package is not installed" in absent


@pytest.mark.parametrize(
    ("version", "wanted", "fit"),
    [
        ("2.13.0+cpu", ">=2.13,<2.15", True),
        ("2.9", ">=2.13", False),
        ("2.15.0", ">=2.13,<2.15", False),
        ("1.15", "==1.15", True),
        ("3", "", True),
    ],
)
def test_versions(version: str, wanted: str, fit: bool) -> None:
    assert installation.fits(version, wanted) is fit


@pytest.mark.parametrize(
    ("program", "level", "text"),
    [
        ("echo 2.13.0+cpu False", "ok", "2.13.0+cpu, imported in"),
        ("echo 2.13.0 True", "ok", "2.13.0, sees CUDA, imported in"),
        ("echo no such library >&2; exit 1", "fail", "cannot be imported: no such library"),
        ("exit 7", "fail", "cannot be imported: exit code 7"),
        ("sleep 60", "fail", "not imported within 0.1 s"),
    ],
)
def test_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, level: str, text: str
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{program}\n".replace("sleep", "exec sleep"))
    fake.chmod(0o755)
    monkeypatch.setattr(machine.sys, "executable", str(fake))
    if "sleep" in program:
        monkeypatch.setattr(machine, "TORCH_S", 0.1)
    (finding,) = machine.torch()
    assert finding.level == level and finding.text.startswith(text)


def test_a_log_that_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "kernel.log").write_text("x" * 5000)
    assert "4.9 KiB" in one(doctor(tmp_path), "ok", "log")
    monkeypatch.setattr(installation, "LARGE_LOG", 4000)
    assert "llmos down && rm" in one(doctor(tmp_path), "warn", "log")
