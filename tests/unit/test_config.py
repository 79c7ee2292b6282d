"""Configuration: layers, what is refused and where, and that there is one table of the kernel's."""

import os
import re
import sys
from pathlib import Path

import pytest

from kernel.config import Config as KernelConfig
from kernel.config import default_kv_bytes, table
from kernel.main import parse
from userland import config as module
from userland.asking import Sampling
from userland.bin.up import boot_of, configured, up
from userland.config import Config, Place, gather, places, take_options
from userland.exits import Failure
from userland.keys import CLIENT, Key, Unfit, kernel_keys, option_of, size_of

DOCS = Path(__file__).resolve().parents[2] / "docs" / "config.md"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("LLMOS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLMOS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "SYSTEM", tmp_path / "system.toml")
    monkeypatch.chdir(tmp_path)


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def of_file(text: str, tmp_path: Path, of_kernel: bool = True) -> Config:
    place = Place("user", put(tmp_path / "c.toml", text))
    return gather(of_kernel, [place])


# --- layers ---------------------------------------------------------------------------------------


def test_each_layer_wins_over_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen() -> tuple[object, str]:
        config = gather(of_kernel=True)
        take_options(config, {"kv_mem": None}, ())
        assert config.problems == []
        setting = config.settings["max_tokens"]
        return setting.value, setting.origin

    assert seen() == (512, "built-in")
    system = put(tmp_path / "system.toml", "\nmax_tokens = 1")
    assert seen() == (1, f"{system}:2")
    user = put(tmp_path / "home" / "config.toml", "max_tokens = 2")
    assert seen() == (2, f"{user}:1")
    put(tmp_path / ".llmos.toml", "max_tokens = 3")
    assert seen() == (3, ".llmos.toml:1")
    monkeypatch.setenv("LLMOS_MAX_TOKENS", "4")
    assert seen() == (4, "LLMOS_MAX_TOKENS")
    config = gather(of_kernel=True)
    take_options(config, {"model": "m", "kv_mem": "1M"}, ["threads=3"])
    assert config.settings["model"].origin == "--model"
    assert (config.value("kernel.kv_mem"), config.value("kernel.threads")) == (1 << 20, 3)


def test_where_the_users_file_is(tmp_path: Path) -> None:
    def user(**environ: str) -> Path:
        return places(environ, tmp_path)[1].path

    assert user(LLMOS_HOME="/h", LLMOS_CONFIG="/x/c.toml") == Path("/x/c.toml")
    assert user(LLMOS_HOME="/h") == Path("/h/config.toml")
    assert user().parts[-2:] == ("llmos", "config.toml")


def test_a_named_file_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CONFIG", "/no/such.toml")
    assert gather(False).problems == [
        "/no/such.toml: there is no such file (LLMOS_CONFIG names it)"
    ]


def test_a_client_asks_no_kernel_for_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    kernel_keys.cache_clear()
    config = of_file("top_k = 5\n[kernel]\nnobody_knows = 1", tmp_path, of_kernel=False)
    assert (config.problems, config.value("top_k")) == ([], 5)


def test_a_directory_sets_nothing_of_the_kernel(tmp_path: Path) -> None:
    put(tmp_path / ".llmos.toml", "top_k = 5\n[kernel]\nthreads = 9")
    config = gather(of_kernel=True)
    assert config.problems == [
        ".llmos.toml:2: [kernel] is for your own config.toml, not for .llmos.toml"
    ]
    assert config.value("kernel.threads") == 0


def test_a_directory_of_somebody_else_sets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / ".llmos.toml", "top_k = 5")
    owner = (tmp_path / ".llmos.toml").stat().st_uid
    if owner == 0:
        os.chown(tmp_path / ".llmos.toml", 4711, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    config = gather(of_kernel=False)
    assert config.value("top_k") == 0
    assert config.notes == [".llmos.toml belongs to another user, and is not read"]


def test_sampling_over_a_default(tmp_path: Path) -> None:
    config = of_file("temperature = 1\ntop_k = 7", tmp_path, of_kernel=False)
    assert config.sampling() == Sampling(1.0, 512, None, 0.9, 7)
    assert config.sampling(Sampling(0.0)) == Sampling(1.0, 512, None, 1.0, 7)
    assert config.explicit("seed") is None and config.explicit("max_tokens") is None


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature = 1", "1: there is no key 'temprature' for clients; did you mean temp"),
        ("\n[kernel]\nblok_size=1", "3: there is no key 'blok_size' in [kernel]; did you mean b"),
        ("kernel.blok_size=1", "1: there is no key 'blok_size' in [kernel]; did you mean b"),
        ("kv_mem = 5", "1: kv_mem is the kernel's: it belongs below [kernel]"),
        ("[kernel]\ntop_p = 1", "2: top_p is not the kernel's: it belongs above [kernel]"),
        ("kernel = 5", "1: kernel is a table"),
        ("max_tokens = '9'", '1: max_tokens: expected a whole number, 1 to 2,147,483,647, got "9"'),
        ("top_k = true", "1: top_k: expected a whole number, 0 to 2,147,483,647, got true"),
        ("max_tokens = 0", "1: max_tokens: expected a whole number, 1 to 2,147,483,647, got 0"),
        ("temperature = nan", "1: temperature: expected a number, 0 to 100.0, got nan"),
        ("color = 'red'", '1: color: expected one of auto, always, never, got "red"'),
        ("model = ['a']", "1: model: expected text, got a list"),
        ("seed = 1979-05-27", "1: seed: expected a whole number"),
        ("[kernel]\nkv_mem = '2X'", '2: kv_mem: expected a size like 720M or 2GiB, got "2X"'),
        ("[kernel]\nblock_size = 0", "2: block_size: expected a whole number, 1 or more, got 0"),
        ("[kernel]\ndtype = 'int3'", "2: dtype: expected one of bfloat16, float32"),
        ("x = [", ": Invalid value (at"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    config = of_file(text, tmp_path)
    assert len(config.problems) == 1
    place = str(tmp_path / "c.toml")
    assert config.problems[0].startswith(place + ("" if said.startswith(":") else ":") + said)
    with pytest.raises(Failure) as failure:
        config.refuse()
    assert failure.value.exit_code == 78


def test_the_line_is_that_of_the_right_table(tmp_path: Path) -> None:
    config = of_file("top_k = 1\n[kernel]\nthreads = 1\ntop_k = 2\n", tmp_path)
    assert config.problems[0].startswith(f"{tmp_path / 'c.toml'}:4:")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xff")
    assert "byte 0 is no UTF-8" in gather(False, [Place("user", tmp_path / "b.toml")]).problems[0]
    assert "cannot be read" in gather(False, [Place("user", tmp_path)]).problems[0]


def test_variables_and_options_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_THREADS", "many")
    assert gather(True).problems == [
        'LLMOS_THREADS: expected a whole number, 0 or more, got "many"'
    ]
    assert gather(False).problems == [], "a client reads nothing of the kernel's"
    monkeypatch.delenv("LLMOS_THREADS")
    for pair in ("blok_size=1", "block_size=0", "threads"):
        with pytest.raises(Failure) as failure:
            take_options(gather(True), {}, [pair])
        assert failure.value.exit_code == 2
        assert pair.partition("=")[0] in failure.value.message


@pytest.mark.parametrize(
    ("text", "size"),
    [("64M", 64 << 20), ("1.5GiB", 3 << 29), ("1000000", 1000000), ("2 kb", 2048)]
    + [(text, None) for text in ("", "-1", "0", "12Q", "nan", "inf", "1e400", "2000000000G")],
)
def test_sizes(text: str, size: int | None) -> None:
    assert size_of(text) == size


def test_nothing_is_a_size_where_it_is_the_default() -> None:
    keys = {key.name: key for key in kernel_keys()}
    assert keys["host_mem"].of_text("0") == keys["host_mem"].of_toml(0) == 0
    assert keys["host_mem"].of_text("8GiB") == 8 << 30
    with pytest.raises(Unfit, match="a size like"):
        keys["kv_mem"].of_text("0")


@pytest.mark.parametrize("text", ["true", "YES", "on", "1"])
def test_words_for_true(text: str) -> None:
    assert Key("x", "bool", False).of_text(text) is True
    with pytest.raises(Unfit):
        Key("x", "bool", False).of_text(f"{text}!")


# --- one table ------------------------------------------------------------------------------------


def test_every_key_of_the_kernel_reaches_it(tmp_path: Path) -> None:
    """What is set here is what the kernel parses, whatever its field is called."""
    texts = {"str": "null0", "int": "7654321", "float": "7.5", "bool": "true", "size": "7654321"}
    texts["folder"] = str(tmp_path / "there")
    pairs = [
        f"{key.name}={'float32' if key.name == 'dtype' else texts[key.kind]}"
        for key in kernel_keys()
    ]
    config = configured(pairs=tuple(pairs), model="m")
    boot = boot_of(config, tmp_path, f"ipc://{tmp_path}/kernel.sock")
    parsed = parse(boot.command[boot.command.index("--run-dir") :])
    for key in kernel_keys():
        field = option_of(key).removeprefix("--").replace("-", "_")
        assert getattr(parsed, field) == config.value(key.shown), key.name
        assert getattr(parsed, field) != getattr(KernelConfig(Path()), field), key.name


def test_what_nobody_has_set_is_left_to_the_kernel(tmp_path: Path) -> None:
    boot = boot_of(configured(pairs=()), tmp_path, f"ipc://{tmp_path}/kernel.sock")
    home = tmp_path / "home"
    assert boot.options == (
        "--state-dir", str(home / "state"), "--keys-dir", str(home / "keys"),
    ), "but for where it keeps things, which it cannot know"  # fmt: skip


def test_folders_are_taken_from_here_and_from_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    config = of_file('[kernel]\nstate_dir = "~/state"\nkeys_dir = "keys"', tmp_path)
    assert config.problems == []
    assert config.value("kernel.state_dir") == str(tmp_path / "me" / "state")
    assert config.value("kernel.keys_dir") == str(tmp_path / "keys")
    found = configured(pairs=("state_dir=",))
    assert found.settings["kernel.state_dir"].explicit
    boot = boot_of(found, tmp_path, f"ipc://{tmp_path}/kernel.sock")
    assert boot.options[:2] == ("--state-dir", ""), "nothing is kept"
    assert (
        "expected a folder, or nothing, got 5"
        in of_file("[kernel]\nstate_dir = 5", tmp_path).problems[0]
    )


def test_the_table_that_userland_reads_is_the_kernels_own() -> None:
    names = {option_of(key).removeprefix("--").replace("-", "_") for key in kernel_keys()}
    assert names == {row["key"] for row in table()}
    assert names == set(KernelConfig.__dataclass_fields__) - {"run_dir", "model", "model_dir"}
    defaults = {key.name: key.default for key in kernel_keys()}
    assert (defaults["kv_mem"], defaults["block_size"]) == (default_kv_bytes(), 16)


def test_the_page_and_the_help_say_what_the_tables_say() -> None:
    page = DOCS.read_text()
    client, kernel = page.split("## The kernel's keys")
    assert re.findall(r"^\| (\w+) \|", kernel, re.MULTILINE)[1:] == [k.name for k in kernel_keys()]
    rows = re.findall(r"^\| (\w+) \| (.*?) \|", client, re.MULTILINE)[1:]
    shown = {key.name: "none" if key.default is None else str(key.default) for key in CLIENT}
    assert {name: default.removesuffix(".0") for name, default in rows} == {
        name: default.removesuffix(".0") for name, default in shown.items()
    }
    defaults = {key.name: key.default for key in (*CLIENT, *kernel_keys())}
    for option in up.params:
        found = re.search(r"\[default: (\w+)\]", getattr(option, "help", "") or "")
        if found:
            assert found[1] == defaults[option.name or ""]
