"""`llmos config`, and what a client says of settings that are not the running kernel's."""

import json
import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.helpers.daemon import Daemon, daemon
from tests.helpers.shell import environment
from userland.cli import run
from userland.desk import Desk


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def home(kernel: Daemon) -> Iterator[Path]:
    yield kernel.run_dir.parent
    (kernel.run_dir.parent / "config.toml").unlink(missing_ok=True)


def llmos(home: Path, *words: str, **env: str) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with patch.dict(os.environ, environment(home) | env, clear=True):
        code = run(Desk(out, err), list(words))
    return code, out.getvalue(), err.getvalue()


def shown(home: Path, **env: str) -> dict[str, dict[str, object]]:
    code, out, _ = llmos(home, "config", "show", "--json", **env)
    assert code == 0
    return {row["key"]: row for row in json.loads(out)["data"]}


def test_show_tells_the_value_its_origin_and_what_runs(home: Path) -> None:
    file = home / "config.toml"
    file.write_text("temperature = 1\n[kernel]\nblock_size = 32\nnum_blocks = 4096\n")
    rows = shown(home, LLMOS_THREADS="2")
    assert rows["temperature"] == {
        "key": "temperature", "value": 1.0, "origin": f"{file}:1", "running": None,
    }  # fmt: skip
    block_size = rows["kernel.block_size"]
    assert (block_size["value"], block_size["running"]) == (32, 16)
    assert rows["kernel.threads"]["origin"] == "LLMOS_THREADS"
    code, out, err = llmos(home, "config", "show", "--origin", LLMOS_THREADS="2")
    line = next(line for line in out.splitlines() if line.startswith("kernel.block_size"))
    assert code == 0 and line.split() == ["kernel.block_size", "32", "16", f"{file}:3"]
    assert f"the kernel runs with block_size = 16, not with that of {file}:3" in err
    assert "threads = 0, not with that of LLMOS_THREADS" in err
    assert "num_blocks" not in err, "the same value is no difference"


def test_show_without_a_kernel_has_no_such_column(tmp_path: Path) -> None:
    code, out, err = llmos(tmp_path, "config", "show")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["KEY", "VALUE"]


def test_check_names_all_that_is_wrong(home: Path, tmp_path: Path) -> None:
    (home / "config.toml").write_text("modle = 'x'\ntop_k = 'y'\n")
    code, out, err = llmos(home, "config", "check")
    assert (code, out) == (78, "")
    assert err.index("modle") < err.index("top_k: expected") < err.index("2 things")
    code, out, err = llmos(home, "config", "check", "--json")
    assert code == 78 and len(json.loads(out)["data"]["problems"]) == 2
    assert "2 things" in json.loads(err)["error"]["message"]
    other = tmp_path / "other.toml"
    other.write_text("top_k = 5\n")
    code, out, err = llmos(home, "config", "check", str(other))
    assert (code, out, err) == (0, f"{other}: keys set: 1; nothing is wrong\n", "")
    assert llmos(home, "config", "check", str(tmp_path / "absent.toml"))[0] == 78


@pytest.mark.parametrize("words", [["up"], ["ask", "q"], ["config", "show"]])
def test_nothing_runs_by_half_a_configuration(home: Path, words: list[str]) -> None:
    (home / "config.toml").write_text("modle = 'x'\n")
    code, out, err = llmos(home, *words)
    assert (code, out) == (78, "")
    assert "did you mean model?" in err and "config check" in err


def test_path_lists_the_files(home: Path) -> None:
    (home / "config.toml").write_text("")
    _, out, _ = llmos(home, "config", "path", "--json")
    found = {row["layer"]: row for row in json.loads(out)["data"]}
    assert list(found) == ["system", "user", "project"]
    assert found["user"] == {"layer": "user", "path": str(home / "config.toml"), "exists": True}


def test_up_names_what_a_running_kernel_does_not_get(home: Path) -> None:
    file = home / "config.toml"
    file.write_text("[kernel]\nblock_size = 32\nnum_blocks = 4096\n")
    with patch("userland.models.installed"):
        code, _, err = llmos(home, "up", "--kv-mem", "1G", "--set", "max_calls=7")
    assert code == 0
    said = f"--kv-mem, --set max_calls, block_size ({file}:2) not applied (llmos down stops it)"
    assert said in err


def test_variables_of_the_kernel_are_no_clients_to_set(home: Path) -> None:
    code, _, err = llmos(home, "ps", LLMOS_BLOCK_SIZE="32", LLMOS_KV_MEM="2G")
    assert code == 0
    assert err.count("LLMOS_BLOCK_SIZE=32 is not what the kernel runs with, 16") == 1
    assert err.count("LLMOS_KV_MEM=2G") == 1
    with patch("userland.running.running", side_effect=AssertionError("asked for nothing")):
        assert llmos(home, "ps", LLMOS_MODEL="m")[0] == 0
    code, _, err = llmos(home, "ps", LLMOS_BLOCK_SIZE="16", LLMOS_NUM_BLOCKS="4096", LLMOS_XYZ="1")
    assert (code, err) == (0, "")
    assert "LLMOS_BLOCK_SIZE=x is not" in llmos(home, "ps", LLMOS_BLOCK_SIZE="x")[2]
