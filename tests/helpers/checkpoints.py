"""Random Hugging Face folders of every architecture, and what transformers makes of them.

The weights are drawn from the tensors' names, by a generator whose numbers never change, so only
the logits are stored (tests/data/make_checkpoints.py). What matters differs from case to case: the
type that is stored, one file or shards, tied or not, how config.json is written, by transformers 5
or before, and windows that are shorter than the prompts.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.safetensors_writer import Array, safetensors

REFERENCE = Path(__file__).parents[1] / "data" / "reference_checkpoints.npz"
VOCAB, MAX_CTX = 320, 128
HIDDEN, FFN, HEADS, KV_HEADS = 64, 96, 4, 2
LENGTHS = (5, 33, 90)
"""Of the prompts: below every window, and well beyond."""
ROWS = ((4,), (0, 15, 32), (20, 23, 24, 31, 64, 89))
"""Positions of each prompt whose logits are stored."""

COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": MAX_CTX,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GEMMA: dict[str, Any] = COMMON | {
    "model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 16, "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24, "sliding_window": 20,
    "rope_theta": 100_000.0, "rope_local_base_freq": 1000.0,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A folder: its config.json, how its weights are stored."""

    config: Mapping[str, Any]
    dtype: str
    shards: int = 1
    base: str = "model."

    @property
    def text_config(self) -> Mapping[str, Any]:
        return self.config.get("text_config", self.config)  # type: ignore[no-any-return]


CASES = {
    "llama": Case(
        COMMON
        | {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        "BF16",
    ),
    "llama-old": Case(
        COMMON
        | {
            "model_type": "llama", "num_hidden_layers": 2, "rms_norm_eps": 1e-6, "head_dim": 24,
            "tie_word_embeddings": False, "rope_theta": 5000.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        "F32",
        shards=3,
    ),
    "mistral": Case(
        COMMON
        | {
            "model_type": "mistral", "architectures": ["MistralForCausalLM"],
            "num_hidden_layers": 3, "rms_norm_eps": 1e-5, "sliding_window": 24,
            "tie_word_embeddings": False, "rope_theta": 10_000.0,
        },
        "F16",
    ),
    "qwen2": Case(
        COMMON
        | {
            "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 2,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "rope_theta": 1_000_000.0,
            "use_sliding_window": False, "sliding_window": 20, "max_window_layers": 2,
        },
        "BF16",
    ),
    "qwen3": Case(
        COMMON
        | {
            "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2,
            "head_dim": 32, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
        "BF16",
        shards=2,
    ),
    "gemma3": Case(GEMMA | {"architectures": ["Gemma3ForCausalLM"]}, "BF16"),
    "gemma3-images": Case(
        {
            "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": GEMMA
            | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "sliding_window": 24},
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16,
                "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 14,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 1, "image_token_index": 300, "boi_token_index": 301,
            "eoi_token_index": 302, "bos_token_id": 1, "eos_token_id": [2, 3],
        },
        "F32",
        base="language_model.model.",
    ),
}  # fmt: skip


def prompts() -> list[list[int]]:
    """Return the ids of the prompts: no pattern, and none of the first ones."""
    return [[4 + (n * n * 7 + n * 13 + length) % 290 for n in range(length)] for length in LENGTHS]


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the tensors by the names that transformers has for them."""
    config = case.text_config
    kind, base = config["model_type"], case.base
    dim = config.get("head_dim", HIDDEN // HEADS)
    queries, keys = HEADS * dim, KV_HEADS * dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,),
        "self_attn.q_proj.weight": (queries, HIDDEN), "self_attn.k_proj.weight": (keys, HIDDEN),
        "self_attn.v_proj.weight": (keys, HIDDEN), "self_attn.o_proj.weight": (HIDDEN, queries),
        "mlp.gate_proj.weight": (FFN, HIDDEN), "mlp.up_proj.weight": (FFN, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, FFN),
    }  # fmt: skip
    if kind == "qwen2":
        for name, size in (("q", queries), ("k", keys), ("v", keys)):
            layer[f"self_attn.{name}_proj.bias"] = (size,)
    if kind in ("qwen3", "gemma3_text"):
        layer |= dict.fromkeys(("self_attn.q_norm.weight", "self_attn.k_norm.weight"), (dim,))
    if kind == "gemma3_text":
        for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            layer[f"{name}.weight"] = (HIDDEN,)
    table = {f"{base}embed_tokens.weight": (VOCAB, HIDDEN), f"{base}norm.weight": (HIDDEN,)}
    for index in range(config["num_hidden_layers"]):
        table |= {f"{base}layers.{index}.{name}": shape for name, shape in layer.items()}
    if not config.get("tie_word_embeddings", kind == "gemma3_text"):
        table["lm_head.weight"] = (VOCAB, HIDDEN)
    if case.base != "model.":
        table["multi_modal_projector.mm_input_projection_weight"] = (16, HIDDEN)
        table["vision_tower.vision_model.post_layernorm.bias"] = (16,)
    return table


def values(name: str, shape: tuple[int, ...], gemma: bool) -> Array:
    """Return the weights of a tensor, from its name alone."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little")
    noise = np.random.RandomState(seed).standard_normal(shape)
    if len(shape) == 1:
        middle = 0.0 if gemma or name.endswith("bias") else 1.0
        return (middle + 0.3 * noise).astype("f4")
    spread = 0.25 if "embed" in name else 1.5 / math.sqrt(shape[1])
    return (spread * noise).astype("f4")


def write(folder: Path, name: str, **config: Any) -> Path:
    """Write the folder of a case, with changes to its config.json."""
    case = CASES[name]
    gemma = case.text_config["model_type"] == "gemma3_text"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**case.config, **config}))
    weights = {own: values(own, shape, gemma) for own, shape in shapes(case).items()}
    if case.shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors(weights, case.dtype))
        return folder
    names = list(weights)
    table: dict[str, str] = {}
    for index in range(case.shards):
        shard = f"model-{index + 1:05}-of-{case.shards:05}.safetensors"
        part = {own: weights[own] for own in names[index :: case.shards]}
        table |= dict.fromkeys(part, shard)
        (folder / shard).write_bytes(safetensors(part, case.dtype))
    index = {"metadata": {"total_size": 0}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def reference(name: str) -> list[dict[int, Array]]:
    """Return the log-probabilities that transformers has, by position, of each prompt."""
    with np.load(REFERENCE, allow_pickle=False) as stored:
        logits = stored[name].astype(np.float64)
    best = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = iter(best)
    return [{row: next(rows) for row in prompt} for prompt in ROWS]
