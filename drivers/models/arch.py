"""Architectures: what the keys of a GGUF file mean, one function for each.

Each takes the metadata and returns the fields of ModelConfig that differ from their defaults; what
all have in common is read by `common`. A key that describes the model must be known here: read, or
without meaning for what is computed, or at the one value that is built. Anything else is refused,
because a model with a setting left out would still talk, wrongly.

Sources: the keys are those of llama.cpp (src/llama-arch.cpp, src/models/*.cpp); what a Gemma 3 file
does not say is from its published configuration (Gemma3TextConfig of transformers).
"""

import math
from collections.abc import Callable
from typing import Any

from drivers.models.metadata import Metadata

Fields = dict[str, Any]

READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.sliding_window",
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
    "rope.scale_linear",
}  # fmt: skip
GEMMA_READ = {"attention.sliding_window_pattern", "rope.freq_base_swa"}
MEANINGLESS = {
    "vocab_size", "tensor_data_layout", "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
}  # fmt: skip
BUILT: dict[str, object] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attn_logit_softcapping": 0.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "final_logit_softcapping": 0.0,
    "leading_dense_block_count": 0,
    "pooling_type": 0,
    "use_parallel_residual": False,
}
"""Settings that a file may spell out, with the only value that is built."""

GEMMA3_GLOBAL_EVERY = 6
GEMMA3_LOCAL_THETA = 10_000.0
GEMMA3_27B_LAYERS = 62


def config_fields(read: Metadata, arch: str) -> Fields:
    """Return the fields of an architecture's ModelConfig; ENOTSUP, ECORRUPT."""
    known = READ | MEANINGLESS | (GEMMA_READ if arch == "gemma3" else set())
    for key in read.settings():
        if key in BUILT:
            read.refuse(key, BUILT[key])
        elif key not in known:
            raise read.not_built(key, "this version of llmos does not know this setting")
    fields = common(read)
    fields |= ARCHS[arch](read, fields)
    ends = [read.token(f"{end}_token_id") for end in ("eos", "eot", "eom")]
    ends += read.spelled(TURN_ENDS[arch])
    fields["eos_ids"] = tuple(dict.fromkeys(id for id in ends if id is not None))
    return fields


def common(read: Metadata) -> Fields:
    """Return what every architecture says in the same words."""
    heads = read.number("attention.head_count", 1, 1024)
    hidden = read.number("embedding_length", 1, 1 << 20)
    head_dim = read.number("attention.key_length", 1, 4096, hidden // heads)
    read.refuse("rope.dimension_count", head_dim)
    read.refuse("attention.value_length", head_dim)
    bos_id = read.token("bos_token_id")
    adds_bos = read.flag("add_bos_token", _adds_bos(read))
    return {
        "num_layers": read.number("block_count", 1, 1024),
        "hidden_size": hidden,
        "intermediate_size": read.number("feed_forward_length", 1, 1 << 22),
        "num_heads": heads,
        "num_kv_heads": read.number("attention.head_count_kv", 1, 1024, heads),
        "head_dim": head_dim,
        "vocab_size": read.vocab_size,
        "max_ctx": read.number("context_length", 1, 1 << 24),
        "rope_theta": read.real("rope.freq_base", 10_000.0),
        "norm_eps": read.real("attention.layer_norm_rms_epsilon", 1e-5),
        "tied_embeddings": read.tied,
        "bos_id": bos_id,
        "add_bos": adds_bos and bos_id is not None,
        "rope_factor": _rope_factor(read),
    }


def _adds_bos(read: Metadata) -> bool:
    """Return whether text begins with bos where the file does not say so, as llama.cpp has it."""
    return read.text("model") == "llama" or read.text("pre") in ("llama-bpe", "tekken")


def _rope_factor(read: Metadata) -> float:
    """Return what positions are divided by; a factor without a type is a linear one."""
    kind = read.value("rope.scaling.type")
    if kind not in (None, "none", "linear"):
        raise read.not_built("rope.scaling.type", "built are none and linear")
    factor = read.real("rope.scaling.factor", read.real("rope.scale_linear", 1.0))
    return 1.0 if kind == "none" else factor


def _window(read: Metadata, fields: Fields) -> int:
    """Return the positions that a sliding layer sees, 0 if no context can leave them."""
    if read.value("attention.sliding_window") is None:
        return 0
    window = read.number("attention.sliding_window", 0, (1 << 32) - 1)
    return window if window < fields["max_ctx"] else 0


# --- one by one -----------------------------------------------------------------------------------


def llama(read: Metadata, fields: Fields) -> Fields:
    """Llama, SmolLM and Mistral: rows of queries and keys are in pair order in these files."""
    window = _window(read, fields)
    if window and fields["rope_factor"] != 1.0:
        raise read.not_built("rope.scaling.factor", "built are scaled positions or a window")
    return {"window": window}


def qwen2(read: Metadata, fields: Fields) -> Fields:
    """Qwen2 and 2.5: as Llama with biases. Which of its layers slide no key says."""
    if _window(read, fields):
        raise read.not_built("attention.sliding_window", "built is none, or the whole context")
    return {"halves": True, "qkv_bias": True}


def qwen3(read: Metadata, fields: Fields) -> Fields:
    """Qwen3, the dense ones."""
    return qwen2(read, fields) | {"qkv_bias": False, "qk_norm": True}


def gemma3(read: Metadata, fields: Fields) -> Fields:
    """Gemma 3, text: five layers of six slide, with frequencies of their own.

    Queries are scaled by their length, but in the 27B model by hidden_size / num_heads.
    """
    hidden, heads = fields["hidden_size"], fields["num_heads"]
    big = fields["num_layers"] == GEMMA3_27B_LAYERS
    window = _window(read, fields)
    local = read.real("rope.freq_base_swa", GEMMA3_LOCAL_THETA)
    return {
        "halves": True,
        "qk_norm": True,
        "post_norms": True,
        "activation": "gelu_tanh",
        "embedding_scale": math.sqrt(hidden),
        "attention_scale": (hidden // heads) ** -0.5 if big else 0.0,
        "window": window,
        "global_every": _global_every(read) if window else 0,
        "local_rope_theta": local if window else 0.0,
    }


def _global_every(read: Metadata) -> int:
    """Return of how many layers the last sees all; newer files list the layers that slide."""
    key = "attention.sliding_window_pattern"
    pattern = read.value(key)
    if pattern is None or type(pattern) is int:
        return read.number(key, 1, 1024, GEMMA3_GLOBAL_EVERY)
    every = pattern.index(False) + 1 if isinstance(pattern, list) and False in pattern else 0
    layers = read.number("block_count", 1, 1024)
    if not every or pattern != [(layer + 1) % every != 0 for layer in range(layers)]:
        raise read.not_built(key, "built is: of so many layers the last sees all")
    return every


ARCHS: dict[str, Callable[[Metadata, Fields], Fields]] = {
    "llama": llama, "mistral": llama, "qwen2": qwen2, "qwen3": qwen3, "gemma3": gemma3,
}  # fmt: skip
TURN_ENDS: dict[str, tuple[str, ...]] = {
    "llama": ("<|eot_id|>", "<|eom_id|>"),
    "mistral": (),
    "qwen2": ("<|im_end|>", "<|endoftext|>"),
    "qwen3": ("<|im_end|>", "<|endoftext|>"),
    "gemma3": ("<end_of_turn>",),
}
"""Markup that ends an answer, said by the file or not: chat models are tuned to write it."""
