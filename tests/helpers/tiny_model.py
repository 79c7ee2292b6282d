"""Models of a few kilobytes in GGUF files, written with the `gguf` package's own writer.

There is one of each kind in CONFIGS, small enough that a plain float64 model is quick beside it;
windows are so short that most contexts of the tests leave them. Their weights are noise from a
seed, scaled so that greedy ids depend on every position, and wide enough that no two logits are
close.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import RopeScalingType
from gguf.quants import quantize

from drivers.models.config import ModelConfig

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, VOCAB, MAX_CTX = 2, 64, 96, 4, 2, 251, 512
EOS = 2

LLAMA = ModelConfig(
    "llama", LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, HIDDEN // HEADS, VOCAB, MAX_CTX,
    rope_theta=10_000.0, norm_eps=1e-5, tied_embeddings=True, bos_id=None, eos_ids=(EOS,),
)  # fmt: skip
QWEN2 = replace(LLAMA, arch="qwen2", halves=True, qkv_bias=True)
CONFIGS = {
    "llama": LLAMA,
    "linear": replace(LLAMA, rope_factor=4.0),
    "mistral": replace(LLAMA, window=20),
    "qwen2": QWEN2,
    "qwen3": replace(
        QWEN2, arch="qwen3", qkv_bias=False, qk_norm=True, head_dim=24, rope_theta=1e6
    ),
    "gemma3": replace(
        LLAMA, arch="gemma3", num_layers=7, num_kv_heads=1, halves=True, qk_norm=True,
        post_norms=True, activation="gelu_tanh", embedding_scale=8.0, rope_theta=1e6,
        local_rope_theta=10_000.0, rope_factor=8.0, window=37, global_every=6,
    ),
}  # fmt: skip
"""By kind; what of it the file does not say, its architecture does."""


def shapes(tied: bool = True, config: ModelConfig = LLAMA) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a model."""
    dim, hidden, ffn = config.head_dim, config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    table: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, hidden),
        "output_norm.weight": (hidden,),
    }
    if not tied:
        table["output.weight"] = (config.vocab_size, hidden)
    for n in range(config.num_layers):
        table |= {
            f"blk.{n}.attn_norm.weight": (hidden,),
            f"blk.{n}.attn_q.weight": (queries, hidden),
            f"blk.{n}.attn_k.weight": (keys, hidden),
            f"blk.{n}.attn_v.weight": (keys, hidden),
            f"blk.{n}.attn_output.weight": (hidden, queries),
            f"blk.{n}.ffn_norm.weight": (hidden,),
            f"blk.{n}.ffn_gate.weight": (ffn, hidden),
            f"blk.{n}.ffn_up.weight": (ffn, hidden),
            f"blk.{n}.ffn_down.weight": (hidden, ffn),
        }
        if config.qkv_bias:
            sizes = zip("qkv", (queries, keys, keys), strict=True)
            table |= {f"blk.{n}.attn_{name}.bias": (size,) for name, size in sizes}
        if config.qk_norm:
            table |= {f"blk.{n}.attn_{name}_norm.weight": (dim,) for name in "qk"}
        if config.post_norms:
            table |= {
                f"blk.{n}.post_{name}_norm.weight": (hidden,) for name in ("attention", "ffw")
            }
    return table


def values(table: dict[str, tuple[int, ...]], seed: int = 1) -> "dict[str, np.ndarray[Any, Any]]":
    """Return weights for these tensors."""
    random = np.random.default_rng(seed)
    return {
        name: random.normal(1.0 if len(shape) == 1 else 0.0, _spread(shape), shape).astype("f4")
        for name, shape in table.items()
    }


def _spread(shape: tuple[int, ...]) -> float:
    return 0.1 if len(shape) == 1 else 2.0 / math.sqrt(shape[1])


def write(
    path: Path,
    weights: "dict[str, np.ndarray[Any, Any]] | None" = None,
    kind: str = "F32",
    config: ModelConfig = LLAMA,
    **metadata: str,
) -> Path:
    """Write the model to a file, its matrices as quantized as `kind` says."""
    writer = GGUFWriter(path, config.arch)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_ctx)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_eos_token_id(EOS)
    if config.window:
        writer.add_sliding_window(config.window)
    if config.rope_factor != 1.0:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_factor)
    for key, text in metadata.items():
        writer.add_string(key, text)
    for name, value in (weights or values(shapes(config=config))).items():
        stored = GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        writer.add_tensor(name, quantize(value, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def install(folder: Path) -> str:
    """Write the model into a folder; return what Load.path names."""
    write(folder / "tiny.gguf")
    return str(folder)
