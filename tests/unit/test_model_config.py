"""ModelConfig from metadata that may say anything."""

import math
from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest

from drivers.models.config import ModelConfig
from drivers.models.errors import ModelError
from drivers.models.gguf import GgufFile
from tests.helpers.gguf_writer import F32, STRING, array, f32, gguf, llama, llama_file, text, u32


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
        (text("general.architecture", "gemma3"), "ENOTSUP", "'gemma3'"),
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
        (f32("llama.rope.scaling.factor", 4.0), "ENOTSUP", "rope.scaling.factor 4.0"),
        (f32("llama.rope.scale_linear", 4.0), "ENOTSUP", "rope.scale_linear 4.0"),
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
