"""config.json of a Hugging Face folder, which may say anything."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.models.checkpoint_config import ARCHITECTURES, NEUTRAL, read_config
from drivers.models.config import ModelConfig
from drivers.models.errors import ModelError
from tests.helpers.checkpoints import CASES, COMMON, VOCAB

LLAMA = {**COMMON, "model_type": "llama", "num_hidden_layers": 2}
GONE = object()
SCALED = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def of(model_type: str, /, **changes: Any) -> ModelConfig:
    """Return the configuration of a small model with some fields changed, or GONE."""
    raw = {**LLAMA, "model_type": model_type, **changes}
    return read_config({k: v for k, v in raw.items() if v is not GONE}, {}).config


def refused(code: str, said: str, model_type: str = "llama", /, **changes: Any) -> None:
    with pytest.raises(ModelError) as caught:
        of(model_type, **changes)
    message = caught.value.message
    assert caught.value.code == code and caught.value.hint
    assert message.startswith("config.json: ") and "\n" not in message and len(message) < 500
    assert said in message


# --- what is read ---------------------------------------------------------------------------------


def test_llama() -> None:
    assert of("llama") == ModelConfig(
        "llama", 2, 64, 96, 4, 2, 16, VOCAB, 128, 10_000.0, 1e-6, False, 1, (2,), halves=True
    )
    assert of("llama", num_key_value_heads=GONE).num_kv_heads == 4
    assert of("llama", head_dim=24).head_dim == 24
    assert of("llama", tie_word_embeddings=True).tied_embeddings


def test_mistral_slides_unless_it_says_not() -> None:
    assert of("mistral").window == 4096
    assert of("mistral", sliding_window=None).window == 0
    found = of("mistral", sliding_window=24, layer_types=["full_attention"] * 2)
    assert (found.window, found.global_every) == (24, 0), "as transformers has it"


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_qwen(kind: str) -> None:
    found = of(kind, sliding_window=20)
    assert (found.window, found.qkv_bias, found.qk_norm) == (0, kind == "qwen2", kind == "qwen3")
    assert found.head_dim == (16 if kind == "qwen2" else 128)
    all_slide = of(kind, use_sliding_window=True, sliding_window=20, max_window_layers=0)
    assert (all_slide.window, all_slide.global_every) == (20, 0)
    none = of(kind, use_sliding_window=True, sliding_window=20, max_window_layers=2)
    assert none.window == 0
    types = ["sliding_attention", "full_attention"]
    some = of(kind, use_sliding_window=True, sliding_window=20, layer_types=types)
    assert [some.slides(layer) for layer in range(2)] == [True, False]


def test_gemma() -> None:
    found = of("gemma3_text", num_hidden_layers=26, query_pre_attn_scalar=168)
    assert (found.arch, found.qk_norm, found.post_norms) == ("gemma3", True, True)
    assert (found.window, found.global_every, found.head_dim) == (4096, 6, 256)
    assert (found.rope_theta, found.local_rope_theta) == (1e6, 1e4)
    assert (found.activation, found.embedding_scale) == ("gelu_tanh", 8.0)
    assert math.isclose(found.attention_scale, 168**-0.5)
    assert found.tied_embeddings


def test_gemma_for_images_says_little() -> None:
    """The published one of 4 billion parameters leaves the rest to transformers."""
    text = {
        "hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }  # fmt: skip
    raw = {"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]}
    found = read_config(raw, {})
    assert found.multimodal and found.config == ModelConfig(
        "gemma3", 34, 2560, 10_240, 8, 4, 256, 262_208, 131_072, 1e6, 1e-6, True, 2, (1, 106),
        halves=True, qk_norm=True, post_norms=True, activation="gelu_tanh",
        embedding_scale=math.sqrt(2560), attention_scale=1 / 16, window=1024, global_every=6,
        local_rope_theta=1e4, rope_factor=8.0,
    )  # fmt: skip


def test_positions_as_either_version_writes_them() -> None:
    linear = {"rope_type": "linear", "factor": 4.0}
    old = of("llama", rope_theta=5e5, rope_scaling=linear)
    new = of("llama", rope_parameters={**linear, "rope_theta": 5e5})
    assert old == new and (old.rope_theta, old.rope_factor) == (5e5, 4.0)
    assert of("llama", rope_scaling=None, rope_theta=10_000) == of("llama")
    gemma_old = of("gemma3_text", rope_theta=7e5, rope_local_base_freq=5e3, rope_scaling=linear)
    gemma_new = of(
        "gemma3_text",
        rope_parameters={
            "full_attention": {**linear, "rope_theta": 7e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
        },
    )
    assert gemma_old == gemma_new
    assert (gemma_new.rope_theta, gemma_new.local_rope_theta) == (7e5, 5e3)


def test_llama3_scaling() -> None:
    """Waves of up to 16 positions as they are, of 64 and more slowed down, between them both."""
    raw = {**LLAMA, "rope_scaling": SCALED}
    factors = read_config(raw, {}).rope_factors
    assert factors is not None and len(factors) == 8
    assert 1 == factors[0] < factors[1] < factors[2] < 8
    assert all(math.isclose(factor, 8.0) for factor in factors[3:])


def test_all_ids_that_end_an_answer() -> None:
    assert read_config(LLAMA, {"eos_token_id": [7, 2, 5]}).config.eos_ids == (7, 2, 5)
    assert read_config(LLAMA, {"eos_token_id": 9}).config.eos_ids == (9, 2)
    silent = {key: value for key, value in LLAMA.items() if key != "eos_token_id"}
    assert read_config(silent, {"eos_token_id": 9}).config.eos_ids == (9,)
    assert read_config(silent, {}).config.eos_ids == (2,)
    assert of("llama", eos_token_id=None).eos_ids == ()
    assert of("qwen2", eos_token_id=GONE, bos_token_id=GONE).bos_id is None
    with pytest.raises(ModelError, match=r"eos_token_id .* up to 256 ids, but 257"):
        read_config(LLAMA, {"eos_token_id": list(range(257))})
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id is \[2, 320\]"):
        read_config(LLAMA, {"eos_token_id": [2, VOCAB]})


def test_code_of_a_model_is_not_run() -> None:
    found = read_config({**LLAMA, "auto_map": {"AutoModel": "evil.Model"}}, {})
    assert found.config == of("llama") and "auto_map is ignored" in found.notes[0]
    refused("ENOTSUP", "model_type 'evil'", "evil", auto_map={"AutoModel": "evil.Model"})


def test_settings_that_change_nothing() -> None:
    for name, neutral in NEUTRAL.items():
        for value in neutral:
            assert of("llama", **{name: value}) == of("llama")


# --- what is refused ------------------------------------------------------------------------------

CORRUPT: list[tuple[str, dict[str, Any]]] = [
    ("num_hidden_layers is None, not a number from 1", {"num_hidden_layers": GONE}),
    ("num_hidden_layers is 0", {"num_hidden_layers": 0}),
    ("num_hidden_layers is 1025", {"num_hidden_layers": 1025}),
    ("num_hidden_layers is '2'", {"num_hidden_layers": "2"}),
    ("num_hidden_layers is True", {"num_hidden_layers": True}),
    ("num_hidden_layers is 2.0", {"num_hidden_layers": 2.0}),
    ("hidden_size is 1000000000", {"hidden_size": 10**9}),
    ("hidden_size is None", {"hidden_size": GONE}),
    ("intermediate_size is -1", {"intermediate_size": -1}),
    ("vocab_size is None", {"vocab_size": GONE}),
    ("max_position_embeddings is [128]", {"max_position_embeddings": [128]}),
    ("num_key_value_heads is 3, not a divisor of 4", {"num_key_value_heads": 3}),
    ("head_dim is 0", {"head_dim": 0}),
    ("head_dim is None", {"hidden_size": 2}),
    ("rms_norm_eps is 0", {"rms_norm_eps": 0}),
    ("rms_norm_eps is inf", {"rms_norm_eps": math.inf}),
    ("rope_theta is -1.0", {"rope_theta": -1.0}),
    ("rope_theta is None", {"rope_theta": None}),
    ("bos_token_id is 320, not an id below 320", {"bos_token_id": VOCAB}),
    ("eos_token_id is [2, '3']", {"eos_token_id": [2, "3"]}),
    ("tie_word_embeddings is 1", {"tie_word_embeddings": 1}),
    ("rope_scaling is [1]", {"rope_scaling": [1]}),
    ("rope_scaling.factor is 0", {"rope_scaling": {"type": "linear", "factor": 0}}),
    ("rope_scaling.factor is None", {"rope_scaling": {"type": "linear"}}),
    ("rope_scaling.low_freq_factor is 4.0", {"rope_scaling": SCALED | {"low_freq_factor": 4.0}}),
    ("rope_scaling.high_freq_factor is '4'", {"rope_scaling": SCALED | {"high_freq_factor": "4"}}),
]  # fmt: skip
NOT_BUILT: list[tuple[str, dict[str, Any]]] = [
    ("architectures ['LlamaForSequen", {"architectures": ["LlamaForSequenceClassification"]}),
    ("architectures 'LlamaForCausalLM'", {"architectures": "LlamaForCausalLM"}),
    ("head_dim 15", {"head_dim": 15}),
    ("hidden_act 'gelu'", {"hidden_act": "gelu"}),
    ("hidden_act ['silu']", {"hidden_act": ["silu"]}),
    ("quantization_config {'bits': 4}", {"quantization_config": {"bits": 4}}),
    ("attention_bias True", {"attention_bias": True}),
    ("mlp_bias True", {"mlp_bias": True}),
    ("attn_logit_softcapping 50.0", {"attn_logit_softcapping": 50.0}),
    ("final_logit_softcapping 30.0", {"final_logit_softcapping": 30.0}),
    ("num_local_experts 8", {"num_local_experts": 8}),
    ("partial_rotary_factor 0.5", {"partial_rotary_factor": 0.5}),
    ("rope_scaling.rope_type 'yarn'", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ("rope_scaling.type 'dynamic'", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    ("rope_parameters.rope_type 'longrope'", {"rope_parameters": {"rope_type": "longrope"}}),
    ("rope_scaling.rope_type ['linear']", {"rope_scaling": {"rope_type": ["linear"]}}),
    ("rope_scaling.mrope_section [1]", {"rope_scaling": {"mrope_section": [1]}}),
    ("rope_scaling.'x\\nx\\nx", {"rope_scaling": {"x\n" * 999: 1}}),
    ("rope_scaling.partial_rotary_factor 0.5", {"rope_scaling": {"partial_rotary_factor": 0.5}}),
    ("rope_scaling {'factor'",
     {"rope_scaling": SCALED, "rope_parameters": {"rope_type": "default"}}),
    ("rope_parameters.other {}",
     {"rope_parameters": {"full_attention": {"rope_theta": 1.0}, "other": {}}}),
]  # fmt: skip


@pytest.mark.parametrize(("said", "changes"), CORRUPT)
def test_what_cannot_be(said: str, changes: dict[str, Any]) -> None:
    refused("ECORRUPT", said, **changes)


@pytest.mark.parametrize(("said", "changes"), NOT_BUILT)
def test_what_is_not_built(said: str, changes: dict[str, Any]) -> None:
    refused("ENOTSUP", said, **changes)


def test_architectures_that_are_not_built() -> None:
    for kind in ("gpt2", "mixtral", "gemma2", "qwen2_moe", "", None, 7, ["llama"], {}):
        with pytest.raises(ModelError, match=r"config\.json: model_type") as caught:
            read_config({**LLAMA, "model_type": kind}, {})
        assert caught.value.code == "ENOTSUP" and "qwen3" in caught.value.hint
    with pytest.raises(ModelError, match="model_type None"):
        read_config({}, {})


def test_layers_that_slide_in_no_order() -> None:
    slide, full = "sliding_attention", "full_attention"
    window = {"use_sliding_window": True, "sliding_window": 20, "num_hidden_layers": 4}
    for types in ([full, slide, slide, slide], [slide, full, full, slide]):
        refused("ENOTSUP", "layer_types [", "qwen3", layer_types=types, **window)
    refused("ENOTSUP", "max_window_layers 1", "qwen2", max_window_layers=1, **window)
    refused("ENOTSUP", "layer_types", "qwen2", layer_types=[slide] * 3 + ["chunked"], **window)
    refused("ECORRUPT", "a list of 4", "qwen2", layer_types=[slide] * 3, **window)
    refused("ECORRUPT", "a list of 4", "gemma3_text", layer_types=7, **window)


def test_scaled_positions_of_layers_that_slide() -> None:
    linear = {"type": "linear", "factor": 2.0}
    refused("ENOTSUP", "rope_scaling", "mistral", sliding_window=20, rope_scaling=linear)
    assert of("mistral", sliding_window=None, rope_scaling=linear).rope_factor == 2.0
    refused("ENOTSUP", "rope_scaling", "gemma3_text", num_hidden_layers=6, rope_scaling=SCALED)
    both = {"full_attention": linear, "sliding_attention": linear}
    refused("ENOTSUP", "rope_parameters", "gemma3_text", rope_parameters=both)
    refused("ENOTSUP", "rope_parameters", "gemma3_text", rope_parameters=linear)


def test_what_is_inside_a_text_config() -> None:
    raw = {**CASES["gemma3-images"].config}
    for changes, said in (
        ({"text_config": None}, "text_config is None"),
        ({"text_config": raw["text_config"] | {"model_type": "llama"}}, "text_config.model_type"),
        ({"text_config": raw["text_config"] | {"head_dim": -2}}, "text_config.head_dim is -2"),
        ({"text_config": raw["text_config"] | {"quantization_config": {}}}, "text_config.quanti"),
        ({"quantization_config": {}}, "config.json: quantization_config {}"),
    ):
        with pytest.raises(ModelError) as caught:
            read_config(raw | changes, {})
        assert said in caught.value.message


# --- any object at all ----------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["linear", "llama3", "sliding_attention", "full_attention", "silu"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["rope_type", "factor", "full_attention", "rope_theta"]), inner, max_size=3
    ),
    max_leaves=6,
)  # fmt: skip
NAMES = sorted(
    {*LLAMA, *NEUTRAL, "rope_scaling", "rope_parameters", "layer_types", "text_config"}.union(
        *(arch.defaults for arch in ARCHITECTURES.values())
    )
    - {"model_type"}
)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(ARCHITECTURES)),
    st.dictionaries(st.sampled_from(NAMES), values, max_size=3),
    values,
)
def test_only_model_errors_come_out(kind: str, changes: dict[str, Any], eos: Any) -> None:
    raw = {**LLAMA, "model_type": kind, "text_config": dict(LLAMA, model_type="gemma3_text")}
    raw |= changes
    try:
        found = read_config(json.loads(json.dumps(raw)), {"eos_token_id": eos}).config
    except ModelError as error:
        assert error.hint and len(error.message) < 500
    else:
        assert found.num_heads % found.num_kv_heads == 0 and found.head_dim % 2 == 0
        assert found.rope_theta > 0 and ModelConfig.from_json(found.to_json()) == found
