"""Hugging Face folders that are not whole, or hold more than a model."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers.base import DriverFault, FaultKind
from drivers.models.checkpoint import describe_checkpoint, find_checkpoint, is_checkpoint
from drivers.models.config import ModelConfig
from drivers.models.errors import ModelError
from drivers.models.weights import open_source
from tests.helpers import checkpoints, tiny_model
from tests.helpers.checkpoints import CASES, HIDDEN, VOCAB
from tests.helpers.contexts import Engine, load_of
from tests.helpers.folders import refused, with_text
from tests.helpers.safetensors_writer import safetensors

Rewrite = Callable[[dict[str, Any]], None]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder with its weights in shards, and text."""
    return with_text(checkpoints.write(tmp_path / "model", "qwen3"))


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """One with its weights in one file."""
    return with_text(checkpoints.write(tmp_path / "model", "qwen2"))


def change(path: Path, rewrite: Rewrite) -> None:
    """Read a JSON file, change it and write it again."""
    read = json.loads(path.read_text())
    rewrite(read)
    path.write_text(json.dumps(read))


# --- what is described ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_sound_folder(tmp_path: Path, name: str) -> None:
    folder = with_text(checkpoints.write(tmp_path / "model", name))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    found = describe_checkpoint(folder)
    used = {path.name for path in found.files}
    assert used == {path.name for path in folder.iterdir()}
    assert found.texts["tokenizer.json"] == (folder / "tokenizer.json").read_text()
    assert found.texts["chat_template.jinja"] == "{{ messages }}"
    assert ModelConfig.from_json(found.texts["config.json"]) == found.config
    sizes = {"F32": 4, "BF16": 2, "F16": 2}
    decoder = {own: s for own, s in checkpoints.shapes(CASES[name]).items() if "vision" not in own}
    decoder.pop("multi_modal_projector.mm_input_projection_weight", None)
    count = sum(int(np.prod(shape)) for shape in decoder.values())
    assert found.num_bytes == count * sizes[CASES[name].dtype]
    assert bool(found.notes) == (name == "gemma3-images")


def test_describing_takes_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from drivers.models.checkpoint import describe_checkpoint\n"
        "describe_checkpoint(Path(sys.argv[1]))\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert done.returncode == 0


def test_folders_that_are_none(tmp_path: Path) -> None:
    assert not is_checkpoint(tmp_path) and not is_checkpoint(tmp_path / "gone")
    (tmp_path / "config.json").write_text("{}")
    assert not is_checkpoint(tmp_path), "an installed model has one too"
    tiny_model.write(tmp_path / "m.gguf")
    (tmp_path / SINGLE).write_bytes(b"")
    assert not is_checkpoint(tmp_path) and find_checkpoint(tmp_path) is None
    refused(tmp_path / "gone", "cannot read config.json", code="ENOENT")


def test_an_installed_one_lies_further_inside(tmp_path: Path, folder: Path) -> None:
    """Beside it is the config.json that clients get."""
    home = tmp_path / "home"
    home.mkdir()
    for name, text in describe_checkpoint(folder).texts.items():
        (home / name).write_text(text)
    (home / "checkpoint").symlink_to(folder)
    assert find_checkpoint(folder) == folder and find_checkpoint(home) == home / "checkpoint"
    source = open_source(str(home))
    assert source.config.arch == "qwen3"
    source.close()


# --- files ----------------------------------------------------------------------------------------


def test_no_weights(folder: Path) -> None:
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink()
    refused(folder, f"neither {SINGLE} nor {INDEX}", code="ENOENT")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_not_opened(single: Path, name: str) -> None:
    (single / SINGLE).rename(single / name)
    assert is_checkpoint(single)
    refused(single, name, "a program", code="ENOTSUP")
    with pytest.raises(ModelError, match=name):
        open_source(str(single))


def test_both_kinds_of_weights(folder: Path) -> None:
    (folder / SINGLE).write_bytes(b"")
    refused(folder, f"both {SINGLE} and {INDEX}")


def test_files_that_nobody_uses(single: Path) -> None:
    (single / "consolidated.safetensors").write_bytes(b"never opened")
    (single / "adapter.safetensors").write_bytes(b"never opened")
    found = describe_checkpoint(single)
    assert found.notes == ("adapter.safetensors and 1 more are not used",)
    assert single / "adapter.safetensors" not in found.files


JSON_LIES = {
    "empty": (b"", "no JSON at byte 0"),
    "half": (b'{"a": ', "no JSON at byte 6"),
    "list": (b"[]", "no object but []"),
    "deep": (b"[" * 10_000, "too deep"),
    "not UTF-8": (b'{"\xff": 1}', "not UTF-8 at byte 2"),
    "twice": (b'{"a": 1, "a": 2}', "'a' is there twice"),
    "infinite": (b'{"a": Infinity}', "Infinity is no number"),
    "items": (b"[" + b"0," * 5_000_000, "items, the limit is"),
}
JSON_FILES = [
    "config.json", "generation_config.json", INDEX, "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip


@pytest.mark.parametrize("lie", JSON_LIES)
def test_json_that_lies(folder: Path, lie: str) -> None:
    data, said = JSON_LIES[lie]
    for name in JSON_FILES:
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(data)
        refused(folder, name, said if lie != "items" else "limit")
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
    describe_checkpoint(folder)


def test_json_that_is_long(folder: Path) -> None:
    for name in JSON_FILES:
        path = folder / name
        before = path.read_bytes() if path.exists() else b"{}"
        with path.open("wb") as file:
            file.truncate(80 << 20)
        refused(folder, name, "bytes, which is the limit")
        path.write_bytes(before)
    describe_checkpoint(folder)


def test_a_file_cut_anywhere(folder: Path) -> None:
    """The weights at some places, the index and config.json at many."""
    for name, step in ((INDEX, 97), ("config.json", 13), (sorted(folder.glob("*"))[2].name, 9973)):
        path = folder / name
        whole = path.read_bytes()
        for size in range(0, len(whole) - 1, step):
            path.write_bytes(whole[:size])
            refused(folder, name)
        path.write_bytes(whole)
    describe_checkpoint(folder)


def test_directories_and_pipes(single: Path) -> None:
    (single / "tokenizer_config.json").mkdir()
    refused(single, "tokenizer_config.json", "no file", code="ENOENT")
    (single / SINGLE).unlink()
    os.mkfifo(single / SINGLE)
    refused(single, SINGLE, "no file", code="ENOENT")


# --- the index ------------------------------------------------------------------------------------

FIRST, SECOND = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
NORM, HEAD = "model.norm.weight", "lm_head.weight"


@pytest.mark.parametrize(
    ("rewrite", "said"),
    [
        (lambda index: index.clear(), ["weight_map is None"]),
        (lambda index: index.update(weight_map=[]), ["weight_map is []"]),
        (lambda index: index["weight_map"].update({NORM: 7}), [f"weight_map.{NORM} is 7"]),
        (lambda index: index["weight_map"].update({NORM: "../x.safetensors"}), ["'../x.safe"]),
        (lambda index: index["weight_map"].update({NORM: "/etc/passwd"}), ["'/etc/passwd'"]),
        (lambda index: index["weight_map"].update({NORM: "x.bin"}), ["'x.bin'"]),
        (lambda index: index["weight_map"].update({NORM: "gone.safetensors"}),
         ["1 files that are not there: gone.safetensors"]),
        (lambda index: index["weight_map"].update({NORM: FIRST}), [INDEX, FIRST, "not there"]),
        (lambda index: index["weight_map"].update(new=FIRST), [FIRST, "not there", "'new'"]),
        (lambda index: index["weight_map"].update({"a\nb" * 999: 7}), ["weight_map.'a\\nba\\nb"]),
        (lambda index: index["weight_map"].pop(NORM), [SECOND, "does not have", NORM]),
    ],
)  # fmt: skip
def test_an_index_that_lies(folder: Path, rewrite: Rewrite, said: list[str]) -> None:
    assert json.loads((folder / INDEX).read_text())["weight_map"][NORM] == SECOND
    change(folder / INDEX, rewrite)
    refused(folder, *said)


def test_a_tensor_in_two_shards(folder: Path) -> None:
    weights = {NORM: np.ones(HIDDEN, "f4"), "other": np.ones(1, "f4")}
    (folder / "more.safetensors").write_bytes(safetensors(weights, "BF16"))
    change(folder / INDEX, lambda index: index["weight_map"].update(other="more.safetensors"))
    refused(folder, "more.safetensors: tensors that", INDEX, NORM)


# --- tensors --------------------------------------------------------------------------------------


def rewritten(folder: Path, name: str = "qwen2", **changes: tuple[int, ...] | None) -> Path:
    """Write the weights again, with other shapes; None leaves a tensor out."""
    shapes = {**checkpoints.shapes(CASES[name]), **changes}
    weights = {own: np.zeros(shape, "f4") for own, shape in shapes.items() if shape is not None}
    (folder / SINGLE).write_bytes(safetensors(weights, "F32"))
    return folder


Q, BIAS = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.bias"


def test_tensors_that_are_missing(single: Path) -> None:
    for name in (Q, BIAS, NORM, "model.embed_tokens.weight"):
        refused(rewritten(single, **{name: None}), f"no file has the tensor {name}", "config.json")


def test_tensors_of_another_shape(single: Path) -> None:
    for name, shape in ((Q, (HIDDEN, HIDDEN + 1)), (BIAS, (33,)), (NORM, (HIDDEN, 1))):
        refused(rewritten(single, **{name: shape}), SINGLE, name, "at byte", str(shape))
    for rows in (VOCAB - 1, VOCAB + 1):
        changed = rewritten(single, **{"model.embed_tokens.weight": (rows, HIDDEN)})
        refused(changed, "model.embed_tokens.weight", f"({rows}, 64)", f"({VOCAB}, 64)")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.2.self_attn.q_proj.weight", "model.layers.0.self_attn.o_proj.bias",
        "model.layers.0.mlp.experts.0.up_proj.weight", "vision_tower.x", "lm_head.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
    ],
)  # fmt: skip
def test_tensors_that_nobody_asked_for(single: Path, name: str) -> None:
    """Left out in silence, they would change what the model says; lm_head is said to be tied."""
    changed = rewritten(single, **{name: (VOCAB, HIDDEN)})
    refused(changed, SINGLE, "1 tensors", name[:20], code="ENOTSUP")


def test_a_head_that_is_not_there(single: Path) -> None:
    change(single / "config.json", lambda config: config.update(tie_word_embeddings=False))
    refused(single, HEAD)


def test_frequencies_of_early_checkpoints_are_left_out(single: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert describe_checkpoint(rewritten(single, **{name: (8,)})).notes == ()


def test_a_decoder_for_images_of_newer_versions(tmp_path: Path) -> None:
    """They say model.language_model where older ones say language_model.model."""
    folder = checkpoints.write(tmp_path / "model", "gemma3-images")
    before = describe_checkpoint(folder)
    with_names = {}
    for own, shape in checkpoints.shapes(CASES["gemma3-images"]).items():
        name = own.replace("language_model.model.", "model.language_model.")
        name = name if name.startswith("model.") else f"model.{name}"
        with_names[name] = np.zeros(shape, "f4")
    (folder / SINGLE).write_bytes(safetensors(with_names, "F32"))
    after = describe_checkpoint(folder)
    assert (after.config, after.places.keys()) == (before.config, before.places.keys())
    assert after.notes == before.notes and "2 tensors for images" in after.notes[0]


def test_the_driver_says_what_is_wrong_and_lives(single: Path) -> None:
    rewritten(single, **{Q: None})
    with pytest.raises(DriverFault) as caught:
        Engine(load_of(str(single), num_blocks=16))
    assert caught.value.kind is FaultKind.MODEL_LOAD and Q in caught.value.message


def test_weights_that_change_while_they_are_opened(
    single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drivers.models import checkpoint_source

    checkpoint = describe_checkpoint(single)
    rewritten(single)  # in another type
    monkeypatch.setattr(checkpoint_source, "read_checkpoint", lambda folder: checkpoint)
    with pytest.raises(ModelError, match="another place than a moment ago"):
        open_source(str(single))
