"""config.json of a Hugging Face folder as ModelConfig. Torch-free.

What is left out of a config.json has the value that transformers 5.23 gives it; what would change
the computation and is not built is refused by name, for a model that ignores it would still talk,
wrongly.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from drivers.models.checkpoint_rope import FULL, SLIDING, read_ropes
from drivers.models.config import ModelConfig
from drivers.models.json_fields import Fields

CONFIG, GENERATION = "config.json", "generation_config.json"
GEMMA, GEMMA_TEXT = "gemma3", "gemma3_text"
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
MAX_SIZE = 1 << 24
MAX_ENDS = 256
"""Ids that end an answer; a kernel takes no more."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a config.json does not say about its model."""

    class_name: str
    defaults: Mapping[str, Any]
    built: Mapping[str, Any]
    """Further fields of ModelConfig."""


_USUAL = {
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA = _USUAL | {"bos_token_id": 1, "eos_token_id": 2}
_QWEN = _USUAL | {"sliding_window": 4096, "max_window_layers": 28}
_GEMMA = {
    "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0, "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 6,
    "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
_NORMS = {"qk_norm": True, "post_norms": True}

ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", _LLAMA, {}),
    "mistral": Architecture(
        "MistralForCausalLM", _LLAMA | {"num_key_value_heads": 8, "sliding_window": 4096}, {}
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", _QWEN, {"qkv_bias": True}),
    "qwen3": Architecture("Qwen3ForCausalLM", _QWEN | {"head_dim": 128}, {"qk_norm": True}),
    GEMMA_TEXT: Architecture("Gemma3ForCausalLM", _GEMMA, _NORMS),
    GEMMA: Architecture("Gemma3ForConditionalGeneration", _GEMMA, _NORMS),
}
"""By the `model_type` of config.json."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,), "quantization": (None,), "compression_config": (None,),
    "attention_bias": (None, False), "mlp_bias": (None, False), "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,), "use_bidirectional_attention": (None, False),
    "partial_rotary_factor": (None, 1.0), "num_experts": (None, 0), "num_local_experts": (None, 0),
    "n_routed_experts": (None, 0), "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False), "per_layer_config": (None,), "pruned_heads": (None, {}),
    "no_rope_layers": (None, []), "num_kv_shared_layers": (None, 0), "clip_qkv": (None,),
    "logit_scale": (None, 1.0), "logits_scaling": (None, 1.0), "embedding_multiplier": (None, 1.0),
    "residual_multiplier": (None, 1.0), "attention_multiplier": (None,),
}  # fmt: skip
"""Settings that change what a model computes, and the values with which they do not."""


class Read(NamedTuple):
    """What a config.json says."""

    config: ModelConfig
    rope_factors: tuple[float, ...] | None
    """The speed of each pair of a head is divided by its factor, [head_dim / 2]."""
    multimodal: bool
    notes: tuple[str, ...]


def read_config(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> Read:
    """Return what config.json and generation_config.json, {} if there is none, say of a model.

    ENOTSUP for what is not built, ECORRUPT for what cannot be; either names the field.
    """
    top = Fields(CONFIG, raw)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise top.not_built("model_type", ", ".join(ARCHITECTURES))
    arch = ARCHITECTURES[kind]
    if raw.get("architectures") not in (None, [], [arch.class_name]):
        raise top.not_built("architectures", f"{arch.class_name} for {kind}")
    _refuse(top)
    fields = Fields(CONFIG, raw, arch.defaults)
    if kind == GEMMA:
        text = top.section("text_config")
        if text is None:
            raise top.corrupt("text_config", "an object")
        if text.values.get("model_type", GEMMA_TEXT) != GEMMA_TEXT:
            raise text.not_built("model_type", GEMMA_TEXT)
        _refuse(text)
        shared = ("tie_word_embeddings", "bos_token_id", "eos_token_id")
        values = {**text.values, **{name: raw[name] for name in shared if name in raw}}
        fields = Fields(CONFIG, values, arch.defaults, "text_config.")
    config, factors = _config(fields, kind, arch, Fields(GENERATION, generation))
    notes = [f"{CONFIG}: auto_map is ignored, no code of a model is run"] * ("auto_map" in raw)
    return Read(config, factors, kind == GEMMA, tuple(notes))


def _refuse(fields: Fields) -> None:
    for name, neutral in NEUTRAL.items():
        if fields.value(name) not in neutral:
            raise fields.not_built(name, " or ".join(map(str, neutral)))


def _config(
    read: Fields, kind: str, arch: Architecture, generation: Fields
) -> tuple[ModelConfig, tuple[float, ...] | None]:
    gemma = kind in (GEMMA, GEMMA_TEXT)
    layers = read.number("num_hidden_layers", 1, 1024)
    hidden = read.number("hidden_size", 1, 1 << 20)
    heads = read.number("num_attention_heads", 1, 1024)
    kv_heads = read.number("num_key_value_heads", 1, 1024, heads)
    head_dim = read.number("head_dim", 1, 4096, hidden // heads)
    max_ctx = read.number("max_position_embeddings", 1, MAX_SIZE)
    vocab = read.number("vocab_size", 1, MAX_SIZE)
    if head_dim % 2:
        raise read.not_built("head_dim", "an even size")
    if heads % kv_heads:
        raise read.corrupt("num_key_value_heads", f"a divisor of {heads} heads")
    window = _window(read, kind)
    slides = _sliding(read, kind, window, layers)
    local = "rope_local_base_freq" if gemma else "rope_theta"
    full, sliding = read_ropes(read, local, head_dim, max_ctx)
    if any(slides) and (sliding.scaled or full.factors):
        scaling = "rope_scaling" if read.value("rope_scaling") else "rope_parameters"
        raise read.not_built(scaling, "linear scaling of layers that do not slide")
    bos = read.ids("bos_token_id", vocab)
    config = ModelConfig(
        arch=GEMMA if gemma else kind,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=read.number("intermediate_size", 1, 1 << 22),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_ctx=max_ctx,
        rope_theta=full.theta,
        norm_eps=read.real("rms_norm_eps"),
        tied_embeddings=read.flag("tie_word_embeddings"),
        bos_id=bos[0] if bos else None,
        eos_ids=_ends(read, generation, vocab),
        halves=True,
        activation=_activation(read, "hidden_activation" if gemma else "hidden_act"),
        embedding_scale=math.sqrt(hidden) if gemma else 1.0,
        attention_scale=read.real("query_pre_attn_scalar") ** -0.5 if gemma else 0.0,
        window=window if any(slides) else 0,
        global_every=_period(slides, read),
        local_rope_theta=sliding.theta if any(slides) and sliding.theta != full.theta else 0.0,
        rope_factor=full.factor,
        **arch.built,
    )
    return config, full.factors


def _activation(read: Fields, name: str) -> str:
    activation = read.value(name)
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise read.not_built(name, ", ".join(ACTIVATIONS))
    return ACTIVATIONS[activation]


def _ends(read: Fields, generation: Fields, vocab: int) -> tuple[int, ...]:
    """Return the ids that end an answer, by either file."""
    ids = generation.ids("eos_token_id", vocab)
    if not ids or "eos_token_id" in read.values:
        ids += read.ids("eos_token_id", vocab)
    ends = tuple(dict.fromkeys(ids))
    if len(ends) > MAX_ENDS:
        raise read.corrupt("eos_token_id", f"up to {MAX_ENDS} ids, but {len(ends)}")
    return ends


def _window(read: Fields, kind: str) -> int:
    """Return how many positions a sliding layer sees, 0 if none slides."""
    if kind == "llama" or (kind in ("qwen2", "qwen3") and not read.flag("use_sliding_window")):
        return 0
    return 0 if read.value("sliding_window") is None else read.number("sliding_window", 1, MAX_SIZE)


def _sliding(read: Fields, kind: str, window: int, layers: int) -> list[bool]:
    """Return for each layer whether it sees only the window."""
    if not window:
        return [False] * layers
    if kind == "mistral":  # transformers, too, reads no layer_types here
        return [True] * layers
    types = read.value("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != layers:
            raise read.corrupt("layer_types", f"a list of {layers}, one a layer")
        if any(layer not in (SLIDING, FULL) for layer in types):
            raise read.not_built("layer_types", f"{SLIDING} and {FULL}")
        return [layer == SLIDING for layer in types]
    if kind in ("qwen2", "qwen3"):
        first = read.number("max_window_layers", 0, MAX_SIZE)
        return [layer >= first for layer in range(layers)]
    every = read.number("sliding_window_pattern", 1, MAX_SIZE)
    return [(layer + 1) % every != 0 for layer in range(layers)]


def _period(slides: Sequence[bool], read: Fields) -> int:
    """Return of how many layers the last sees all; 0 if all slide, or none."""
    if all(slides) or not any(slides):
        return 0
    every = slides.index(False) + 1
    if any(slide != ((layer + 1) % every != 0) for layer, slide in enumerate(slides)):
        name = "layer_types" if read.value("layer_types") else "max_window_layers"
        raise read.not_built(name, "one full layer after every so many that slide")
    return every
