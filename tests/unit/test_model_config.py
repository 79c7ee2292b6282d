"""ModelConfig from metadata that may say anything."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from struct import pack

import pytest

from drivers.models.config import ModelConfig
from drivers.models.errors import ModelError
from drivers.models.gguf import GgufFile
from tests.helpers.gguf_writer import (
    BOOL,
    F32,
    STRING,
    U32,
    array,
    f32,
    gguf,
    llama,
    llama_file,
    strings,
    text,
    u32,
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ModelConfig]:
    """Return a function that reads the configuration of a small file with other metadata."""

    def read(*changes: tuple[str, bytes], without: str = "") -> ModelConfig:
        entries = llama() | dict(changes)
        entries.pop(without, None)
        path = tmp_path / "m.gguf"
        path.write_bytes(llama_file(entries))
        with GgufFile(path) as file:
            return ModelConfig.from_gguf(file)

    return read


def test_a_small_model(config: Callable[..., ModelConfig]) -> None:
    found = config()
    assert found == ModelConfig(
        "llama", 2, 8, 16, 2, 2, 4, 260, 64, 10_000.0, found.norm_eps, True, None, (1,)
    )
    assert math.isclose(found.norm_eps, 1e-5, rel_tol=1e-6)
    assert ModelConfig.from_json(found.to_json()) == found
    assert config(without="tokenizer.ggml.eos_token_id").eos_ids == ()


def test_the_real_model(smollm2: Path) -> None:
    found = ModelConfig.from_json((smollm2 / "config.json").read_text(encoding="utf-8"))
    assert (found.num_layers, found.hidden_size, found.intermediate_size) == (30, 576, 1536)
    assert (found.num_heads, found.num_kv_heads, found.head_dim) == (9, 3, 64)
    assert (found.vocab_size, found.max_ctx, found.rope_theta) == (49_152, 8192, 100_000.0)
    assert found.tied_embeddings and found.eos_ids == (2,)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (text("general.architecture", "gemma2"), "ENOTSUP", "'gemma2'"),
        (array("general.architecture", F32, 0, b""), "ENOTSUP", "[]"),
        (u32("llama.block_count", 0), "ECORRUPT", "from 1 to 1024"),
        (u32("llama.block_count", 1025), "ECORRUPT", "1025"),
        (text("llama.block_count", "30"), "ECORRUPT", "'30'"),
        (("llama.block_count", pack("<I?", 7, True)), "ECORRUPT", "True"),
        (array("llama.block_count", F32, 9, bytes(36)), "ECORRUPT", "[0.0, 0.0, 0.0, 0.0, ...]"),
        (u32("llama.embedding_length", 2**32 - 1), "ECORRUPT", "4294967295"),
        (u32("llama.embedding_length", 1), "ECORRUPT", "key_length is 0"),
        (u32("llama.attention.head_count_kv", 3), "ECORRUPT", "2 heads do not share 3"),
        (u32("llama.context_length", 2**25), "ECORRUPT", "33554432"),
        (f32("llama.rope.freq_base", math.nan), "ECORRUPT", "nan"),
        (f32("llama.rope.freq_base", -1.0), "ECORRUPT", "-1.0"),
        (f32("llama.attention.layer_norm_rms_epsilon", math.inf), "ECORRUPT", "inf"),
        (u32("tokenizer.ggml.eos_token_id", 260), "ECORRUPT", "an id below 260"),
        (text("tokenizer.ggml.bos_token_id", "1"), "ECORRUPT", "'1'"),
        (text("llama.rope.scaling.type", "yarn"), "ENOTSUP", "'yarn'"),
        (array("llama.rope.scaling.type", STRING, 0, b""), "ENOTSUP", "[]"),
        (f32("llama.rope.scaling.factor", 0.0), "ECORRUPT", "rope.scaling.factor is 0.0"),
        (u32("llama.rope.scale_linear", 4), "ECORRUPT", "rope.scale_linear is 4, not a real"),
        (u32("llama.expert_count", 8), "ENOTSUP", "llama.expert_count 8"),
        (f32("llama.attn_logit_softcapping", 50.0), "ENOTSUP", "softcapping 50.0 is not built"),
        (f32("llama.final_logit_softcapping", 30.0), "ENOTSUP", "softcapping 30.0 is not built"),
        (f32("llama.attention.clamp_kqv", 8.0), "ENOTSUP", "attention.clamp_kqv 8.0"),
        (("llama.attention.causal", pack("<I?", 7, False)), "ENOTSUP", "attention.causal False"),
        (f32("llama.attention.temperature_scale", 0.1), "ENOTSUP", "temperature_scale 0.1"),
        (text("llama.a_setting_of_tomorrow", "x"), "ENOTSUP", "a_setting_of_tomorrow 'x'"),
        (f32("llama.attention.sliding_window", 16.0), "ECORRUPT", "sliding_window is 16.0"),
        (u32("tokenizer.ggml.add_bos_token", 1), "ECORRUPT", "add_bos_token is 1, not true"),
        (u32("llama.rope.dimension_count", 2), "ENOTSUP", "rope.dimension_count 2"),
        (u32("llama.attention.value_length", 8), "ENOTSUP", "attention.value_length 8"),
        (u32("llama.attention.key_length", 3), "ENOTSUP", "heads of 3 elements"),
        (u32("tokenizer.ggml.eot_token_id", 260), "ECORRUPT", "an id below 260"),
    ],
)
def test_a_number_that_cannot_be(
    config: Callable[..., ModelConfig], change: tuple[str, bytes], code: str, said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        config(change)
    assert caught.value.code == code and caught.value.hint
    assert said in caught.value.message


def test_settings_that_change_nothing(config: Callable[..., ModelConfig]) -> None:
    same = [
        text("llama.rope.scaling.type", "none"), f32("llama.rope.scaling.factor", 1.0),
        f32("llama.rope.scale_linear", 1.0), u32("llama.rope.dimension_count", 4),
        u32("llama.attention.value_length", 4),
    ]  # fmt: skip
    assert config(*same) == config()


def test_all_ids_that_end_an_answer(config: Callable[..., ModelConfig]) -> None:
    eot, eom = u32("tokenizer.ggml.eot_token_id", 7), u32("tokenizer.ggml.eom_token_id", 5)
    assert config(eot, eom).eos_ids == (1, 7, 5)
    assert config(u32("tokenizer.ggml.eot_token_id", 1)).eos_ids == (1,)
    assert config(eot, without="tokenizer.ggml.eos_token_id").eos_ids == (7,)


def test_positions_may_be_scaled(config: Callable[..., ModelConfig]) -> None:
    factor = f32("llama.rope.scaling.factor", 4.0)
    assert config(factor).rope_factor == 4.0
    assert config(factor, text("llama.rope.scaling.type", "linear")).rope_factor == 4.0
    assert config(factor, text("llama.rope.scaling.type", "none")).rope_factor == 1.0
    assert config(f32("llama.rope.scale_linear", 2.0)).rope_factor == 2.0


def test_a_window_is_one_only_if_a_context_can_leave_it(
    config: Callable[..., ModelConfig],
) -> None:
    key = "llama.attention.sliding_window"
    assert [config(u32(key, size)).window for size in (0, 16, 63, 64, 2**32 - 1)] == [
        0, 16, 63, 0, 0,
    ]  # fmt: skip
    with pytest.raises(ModelError, match=r"scaling\.factor 2\.0 is not built") as caught:
        config(u32(key, 16), f32("llama.rope.scaling.factor", 2.0))
    assert caught.value.code == "ENOTSUP"


FLAGS = {word: ("tokenizer.ggml.add_bos_token", pack("<I?", 7, word)) for word in (True, False)}


def test_who_puts_bos_before_text(config: Callable[..., ModelConfig]) -> None:
    bos = u32("tokenizer.ggml.bos_token_id", 0)
    assert not config(bos).add_bos and config(bos, FLAGS[True]).add_bos
    assert not config(FLAGS[True]).add_bos, "there is none to put"
    for usual in (text("tokenizer.ggml.model", "llama"), text("tokenizer.ggml.pre", "llama-bpe")):
        assert config(bos, usual).add_bos and not config(bos, usual, FLAGS[False]).add_bos


# --- other architectures --------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Callable[..., ModelConfig]:
    """Return a function that reads the same small file as one of another architecture."""

    def read(arch: str, *changes: tuple[str, bytes]) -> ModelConfig:
        named = {key.replace("llama.", f"{arch}.", 1): value for key, value in llama().items()}
        path = tmp_path / "m.gguf"
        named |= dict([text("general.architecture", arch)])
        path.write_bytes(llama_file(named | dict(changes)))
        with GgufFile(path) as file:
            return ModelConfig.from_gguf(file)

    return read


def test_mistral_is_a_llama_by_another_name(
    other: Callable[..., ModelConfig], config: Callable[..., ModelConfig]
) -> None:
    assert replace(other("mistral"), arch="llama") == config()


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_which_layers_of_qwen_slide_is_not_said(
    other: Callable[..., ModelConfig], arch: str
) -> None:
    key = f"{arch}.attention.sliding_window"
    assert other(arch, u32(key, 64)).window == 0
    with pytest.raises(ModelError, match=f"{key} 32 is not built") as caught:
        other(arch, u32(key, 32))
    assert caught.value.code == "ENOTSUP"


def pattern(*slides: bool) -> tuple[str, bytes]:
    return array("gemma3.attention.sliding_window_pattern", BOOL, len(slides), bytes(slides))


def test_which_layers_of_gemma_slide(other: Callable[..., ModelConfig]) -> None:
    window, layers = u32("gemma3.attention.sliding_window", 32), u32("gemma3.block_count", 4)
    usual = other("gemma3", window)
    assert (usual.window, usual.global_every, usual.local_rope_theta) == (32, 6, 10_000.0)
    every = u32("gemma3.attention.sliding_window_pattern", 2)
    assert other("gemma3", window, every).global_every == 2
    listed = other("gemma3", window, layers, pattern(True, False, True, False))
    assert listed.global_every == 2
    assert other("gemma3", window, f32("gemma3.rope.freq_base_swa", 5e3)).local_rope_theta == 5e3
    whole = other("gemma3")
    assert (whole.window, whole.global_every, whole.local_rope_theta) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (u32("gemma3.attention.sliding_window_pattern", 0), "ECORRUPT"),
        (text("gemma3.attention.sliding_window_pattern", "x"), "ENOTSUP"),
        (pattern(), "ENOTSUP"),
        (pattern(False, True), "ENOTSUP"),
        (pattern(True, True), "ENOTSUP"),
        (pattern(True, False, True), "ENOTSUP"),
        (f32("gemma3.rope.freq_base_swa", -1.0), "ECORRUPT"),
        (f32("gemma3.final_logit_softcapping", 30.0), "ENOTSUP"),
        (text("gemma3.rope.scaling.type", "yarn"), "ENOTSUP"),
    ],
)
def test_settings_of_gemma_that_cannot_be(
    other: Callable[..., ModelConfig], change: tuple[str, bytes], code: str
) -> None:
    with pytest.raises(ModelError, match=change[0]) as caught:
        other("gemma3", u32("gemma3.attention.sliding_window", 32), change)
    assert caught.value.code == code


def test_gemmas_keys_are_not_those_of_others(config: Callable[..., ModelConfig]) -> None:
    with pytest.raises(ModelError, match="sliding_window_pattern 2 is not built"):
        config(u32("llama.attention.sliding_window_pattern", 2))


@pytest.mark.parametrize(
    ("arch", "word", "kind", "eos_ids"),
    [
        ("gemma3", "<end_of_turn>", 3, (1, 9)),
        ("gemma3", "<end_of_turn>", 1, (1,)),
        ("gemma3", "<|im_end|>", 3, (1,)),
        ("qwen3", "<|endoftext|>", 3, (1, 9)),
        ("llama", "<|eot_id|>", 3, (1, 9)),
        ("llama", "<|endoftext|>", 3, (1,)),
    ],
)
def test_markup_that_ends_a_turn(
    other: Callable[..., ModelConfig], arch: str, word: str, kind: int, eos_ids: tuple[int, ...]
) -> None:
    tokens = strings("tokenizer.ggml.tokens", [*"abcdefghi", word])
    types = array("tokenizer.ggml.token_type", U32, 10, pack("<10I", *[1] * 9, kind))
    assert other(arch, tokens, types).eos_ids == eos_ids


@pytest.mark.parametrize(
    "key", ["llama.block_count", "llama.attention.head_count", "llama.context_length"]
)
def test_a_number_that_is_missing(config: Callable[..., ModelConfig], key: str) -> None:
    with pytest.raises(ModelError, match=f"{key} is None"):
        config(without=key)


def test_no_embedding(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(list(llama().items())))
    with GgufFile(path) as file, pytest.raises(ModelError, match=r"token_embd\.weight"):
        ModelConfig.from_gguf(file)
