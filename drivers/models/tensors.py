"""The tensors that a model has, by the names of GGUF: what a source must hold, no more, no less."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drivers.models.config import ModelConfig

Shapes = Mapping[str, tuple[int, ...]]
ROPE_FACTORS = "rope_freqs.weight"
"""The one tensor that may be there or not."""


def tensor_shapes(config: "ModelConfig") -> Shapes:
    """Return the shape of every tensor, in numpy's order."""
    table = {
        "token_embd.weight": (config.vocab_size, config.hidden_size),
        "output_norm.weight": (config.hidden_size,),
    }
    if not config.tied_embeddings:
        table["output.weight"] = (config.vocab_size, config.hidden_size)
    layer = _layer_shapes(config)
    for index in range(config.num_layers):
        table |= {f"blk.{index}.{name}": shape for name, shape in layer.items()}
    return table


def _layer_shapes(config: "ModelConfig") -> Shapes:
    hidden, ffn, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    table: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,), "attn_q.weight": (queries, hidden),
        "attn_k.weight": (keys, hidden), "attn_v.weight": (keys, hidden),
        "attn_output.weight": (hidden, queries), "ffn_norm.weight": (hidden,),
        "ffn_gate.weight": (ffn, hidden), "ffn_up.weight": (ffn, hidden),
        "ffn_down.weight": (hidden, ffn),
    }  # fmt: skip
    if config.qkv_bias:
        table |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    if config.qk_norm:
        table |= {"attn_q_norm.weight": (dim,), "attn_k_norm.weight": (dim,)}
    if config.post_norms:
        table |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
    return table
