"""A Llama of a few kilobytes in a GGUF file, written with the `gguf` package's own writer.

Its weights are noise from a seed, scaled so that greedy ids depend on every position, and wide
enough that no two logits are close.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, VOCAB, MAX_CTX = 2, 64, 96, 4, 2, 251, 512
EOS = 2


def shapes(layers: int = LAYERS, tied: bool = True) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the model."""
    keys = HIDDEN // HEADS * KV_HEADS
    table: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    if not tied:
        table["output.weight"] = (VOCAB, HIDDEN)
    for n in range(layers):
        table |= {
            f"blk.{n}.attn_norm.weight": (HIDDEN,),
            f"blk.{n}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{n}.attn_k.weight": (keys, HIDDEN),
            f"blk.{n}.attn_v.weight": (keys, HIDDEN),
            f"blk.{n}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{n}.ffn_norm.weight": (HIDDEN,),
            f"blk.{n}.ffn_gate.weight": (FFN, HIDDEN),
            f"blk.{n}.ffn_up.weight": (FFN, HIDDEN),
            f"blk.{n}.ffn_down.weight": (HIDDEN, FFN),
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
    quantized: bool = False,
    **metadata: str,
) -> Path:
    """Write the model to a file; the matrices in Q8_0 if `quantized`, else in F32."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(MAX_CTX)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_eos_token_id(EOS)
    for key, text in metadata.items():
        writer.add_string(key, text)
    for name, value in (weights or values(shapes())).items():
        if quantized and value.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def install(folder: Path) -> str:
    """Write the model into a folder; return what Load.path names."""
    write(folder / "tiny.gguf")
    return str(folder)
