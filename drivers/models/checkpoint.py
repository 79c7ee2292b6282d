"""A Hugging Face folder as a model: which files make it up, and what they say. Torch-free.

    config.json  generation_config.json            the numbers (checkpoint_config, checkpoint_rope)
    tokenizer.json  tokenizer_config.json  chat_template.jinja          text (checkpoint_text)
    model.safetensors                              all tensors in one file, or
    model.safetensors.index.json                   {"weight_map": {"tensor": "shard"}}
    model-00001-of-00002.safetensors ...           and the shards that it names

A model has exactly the tensors that its configuration asks for, in their shapes, each in the file
that the index says. Tensors get the names that GGUF has for them, which the model code uses. Only
safetensors are read: .bin and .pt files are pickles, programs that run when they are opened, and
no program of a model is ever run.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from drivers.models.checkpoint_config import CONFIG, GENERATION, Read, read_config
from drivers.models.checkpoint_text import TEMPLATE, TOKENIZER, read_texts
from drivers.models.config import ModelConfig
from drivers.models.errors import FETCH, ModelError, short
from drivers.models.json_fields import Fields
from drivers.models.json_object import read_object
from drivers.models.safetensors_file import MAX_TENSORS, SafetensorsFile, StoredTensor
from drivers.models.tensors import tensor_shapes

FOLDER = "checkpoint"
"""Where an installed model has its checkpoint: a config.json of our own lies beside it."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_CONFIG = 1 << 20
MAX_CONFIG_ITEMS = 1 << 16
MAX_INDEX = 16 << 20
MAX_SHARDS = 1024
SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}\.safetensors")

BASES = ("model.", "language_model.model.", "model.language_model.")
"""What names begin with: a decoder alone, and the decoder of one for images, by older and newer
versions of transformers."""
HEADS = dict(zip(BASES, ("", "language_model.", ""), strict=True))
WHOLE_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
"""What GGUF calls the tensors of a layer, and Hugging Face."""
POST_NORM_NAMES = {
    "ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
"""The same of a layer that norms its results as well."""
BUILT_TENSORS = "built are the tensors of the architecture, and no further ones"
DERIVED = re.compile(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""What early checkpoints store and the configuration says."""
VISION = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..*")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a folder says of its model; nothing is open."""

    folder: Path
    config: ModelConfig
    rope_factors: tuple[float, ...] | None
    """The speed of each pair of a head is divided by its factor, [head_dim / 2]."""
    places: Mapping[str, "Place"]
    """The tensors by GGUF's names."""
    texts: Mapping[str, str]
    """What clients get: config.json (ours), and tokenizer.json and chat_template.jinja if any."""
    files: tuple[Path, ...]
    """All that is used: what a copy takes, and what a sum is made over."""
    notes: tuple[str, ...]
    """What people should know, a line each."""

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(place.tensor.nbytes for place in self.places.values())

    @property
    def dtype(self) -> str:
        """The types of the tensors, such as BF16 or "BF16, F32"."""
        return ", ".join(sorted({place.tensor.dtype for place in self.places.values()}))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies."""

    path: Path
    tensor: StoredTensor


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder has the files of a checkpoint, sound or not."""
    if not (folder / CONFIG).is_file() or any(folder.glob("*.gguf")):
        return False
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", INDEX, *PICKLES))


def find_checkpoint(path: Path) -> Path | None:
    """Return the folder of a checkpoint: that of an installed model, or the path itself."""
    folders = path / FOLDER, path
    return next((folder for folder in folders if is_checkpoint(folder)), None)


def describe_checkpoint(folder: Path) -> Checkpoint:
    """Read and check everything but the weights' bytes; ENOENT, ECORRUPT, ENOTSUP."""
    checkpoint = read_checkpoint(folder)
    texts = read_texts(folder, checkpoint.config)
    config = replace(checkpoint.config, bos_id=texts.bos_id, add_bos=texts.add_bos)
    named = {
        CONFIG: config.to_json(), TOKENIZER: texts.tokenizer, TEMPLATE: texts.template,
    }  # fmt: skip
    return replace(
        checkpoint,
        config=config,
        texts={name: text for name, text in named.items() if text is not None},
        files=checkpoint.files + texts.files,
        notes=checkpoint.notes + texts.notes,
    )


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and check what computing takes: all but the text files."""
    generation_path = folder / GENERATION
    raw = read_object(folder / CONFIG, MAX_CONFIG, MAX_CONFIG_ITEMS)
    generation: dict[str, Any] = {}
    if generation_path.exists():
        generation = read_object(generation_path, MAX_CONFIG, MAX_CONFIG_ITEMS)
    read = read_config(raw, generation)
    weights = _weights(folder)
    places, notes = _placed(read, _tensors(weights))
    files = [folder / CONFIG, generation_path, folder / INDEX, *weights]
    return Checkpoint(
        folder, read.config, read.rope_factors, places, {},
        tuple(path for path in files if path.exists()),
        read.notes + notes + _unused(folder, weights),
    )  # fmt: skip


# --- which files there are ------------------------------------------------------------------------

Weights = Mapping[Path, "frozenset[str] | None"]
"""Files of weights, with the tensors that they should have; None: that is for them to say."""


def _weights(folder: Path) -> Weights:
    single, index = (folder / SINGLE).exists(), (folder / INDEX).exists()
    if single and index:
        what = f"{folder.name} has both {SINGLE} and {INDEX}, which may differ"
        raise ModelError("ECORRUPT", what, "remove the one that is not meant")
    if single:
        return {folder / SINGLE: None}
    if index:
        return _shards(folder)
    pickles = sorted(path.name for kind in PICKLES for path in folder.glob(kind))
    if pickles:
        what = f"{folder.name} has its weights in {pickles[0]:.64}, a program that opening it runs"
        raise ModelError("ENOTSUP", what, "take the model's .safetensors, or convert it elsewhere")
    raise ModelError("ENOENT", f"{folder.name} has neither {SINGLE} nor {INDEX}", FETCH)


def _shards(folder: Path) -> Weights:
    raw = read_object(folder / INDEX, MAX_INDEX, 2 * MAX_TENSORS)
    fields = Fields(INDEX, raw)
    table = fields.section("weight_map")
    if table is None or len(table.values) > MAX_TENSORS:
        raise fields.corrupt("weight_map", f"1 to {MAX_TENSORS} tensors with their files")
    names: dict[str, set[str]] = {}
    for tensor, shard in table.values.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise table.corrupt(tensor, "the name of a .safetensors file of this folder")
        names.setdefault(shard, set()).add(tensor)
    if len(names) > MAX_SHARDS:
        raise fields.corrupt("weight_map", f"up to {MAX_SHARDS} files, but {len(names)}")
    missing = sorted(shard for shard in names if not (folder / shard).exists())
    if missing:
        what = f"{INDEX}: weight_map names {len(missing)} files that are not there: {missing[0]}"
        raise ModelError("ECORRUPT", what, FETCH)
    return {folder / shard: frozenset(names[shard]) for shard in sorted(names)}


def _unused(folder: Path, weights: Weights) -> tuple[str, ...]:
    others = sorted(
        {path.name for path in folder.glob("*.safetensors")} - {p.name for p in weights}
    )
    if not others:
        return ()
    more = f" and {len(others) - 1} more are" if len(others) > 1 else " is"
    return (f"{others[0]:.64}{more} not used",)


# --- which tensors they have ----------------------------------------------------------------------


def _tensors(weights: Weights) -> dict[str, Place]:
    """Return the tensors of all files by their own names."""
    places: dict[str, Place] = {}
    for path, listed in weights.items():
        with SafetensorsFile(path) as file:
            tensors = file.tensors
        if listed is not None:
            _check_listed(path.name, listed, frozenset(tensors))
        places |= {name: Place(path, tensor) for name, tensor in tensors.items()}
    return places


def _check_listed(shard: str, listed: frozenset[str], stored: frozenset[str]) -> None:
    for names, what in (
        (listed - stored, f"{INDEX}: weight_map has tensors in {shard} that are not there"),
        (stored - listed, f"{shard}: tensors that {INDEX} does not have there"),
    ):
        if names:
            raise ModelError("ECORRUPT", f"{what}: {len(names)}, {short(min(names))}", FETCH)


def _placed(read: Read, stored: dict[str, Place]) -> tuple[dict[str, Place], tuple[str, ...]]:
    """Return the tensors by GGUF's names, each as the configuration asks for it, and notes."""
    config, left, places = read.config, dict(stored), {}
    base = _base(stored) if read.multimodal else BASES[0]
    for name, shape in tensor_shapes(config).items():
        own = _own_name(name, base, config.post_norms)
        place = left.pop(own, None)
        if place is None:
            what = f"no file has the tensor {own} that {CONFIG} asks for"
            raise ModelError("ECORRUPT", what, FETCH)
        if place.tensor.shape != shape:
            what = f"{place.path.name}: tensor {own} at byte {place.tensor.offset} has shape"
            what = f"{what} {place.tensor.shape}, by {CONFIG} it should have {shape}"
            raise ModelError("ECORRUPT", what, FETCH)
        places[name] = place
    vision = [name for name in left if read.multimodal and VISION.fullmatch(name)]
    extra = sorted(name for name in left.keys() - vision if not DERIVED.fullmatch(name))
    if extra:
        what = f"{left[extra[0]].path.name}: {len(extra)} tensors that {CONFIG} does not ask for"
        raise ModelError("ENOTSUP", f"{what}, such as {short(extra[0])}", BUILT_TENSORS)
    note = f"{len(vision)} tensors for images are left out: this model takes text only here"
    return places, (note,) * bool(vision)


def _base(stored: Mapping[str, Place]) -> str:
    """Return what the names of a decoder begin with; in one for images too, by its writer."""
    found = (base for base in BASES if f"{base}embed_tokens.weight" in stored)
    return next(found, BASES[0])


def _own_name(name: str, base: str, post_norms: bool) -> str:
    """Return what a folder calls a tensor of GGUF's name."""
    part, _, kind = name.rpartition(".")
    if part == "output":
        return f"{HEADS[base]}lm_head.{kind}"
    if not part.startswith("blk."):
        return f"{base}{WHOLE_NAMES[part]}.{kind}"
    _, layer, tensor = part.split(".")
    names = LAYER_NAMES | POST_NORM_NAMES if post_norms else LAYER_NAMES
    return f"{base}layers.{layer}.{names[tensor]}.{kind}"
