"""Models on the CPU driver against plain ones in float64, and files that are not right."""

import logging
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivers import base
from drivers.base import DriverFault, FaultKind
from drivers.cpu import machine
from drivers.models import arch
from drivers.models import weights as reader
from drivers.models.config import ModelConfig
from drivers.models.gguf import GgufFile
from drivers.models.manifest import MANIFEST
from drivers.models.tensors import tensor_shapes
from tests.helpers import tiny_model
from tests.helpers.contexts import Engine, How, load_of
from tests.helpers.plain_decoder import Array, Plain
from tests.helpers.tiny_model import CONFIGS, HEADS, HIDDEN, VOCAB

BEST = How(logprobs=VOCAB // 4)
IDS = [(n * n * 7 + n) % VOCAB for n in range(50)]


def open_engine(path: Path, dtype: str = "float32", **changes: Any) -> Engine:
    return Engine(load_of(str(path), dtype, **{"num_blocks": 32, "threads": 1, **changes}))


def far_off(engine: Engine, right: Array) -> float:
    """Return how far the best logprobs are from the right ones, after several chunks of IDS."""
    ctx, worst = engine.ctx(IDS), 0.0
    for count in (1, 4, 20, 1, 24):
        sampled = engine.step([(ctx, count)], BEST)
        ids, values = base.read_ints(sampled.top_ids), base.read_reals(sampled.top_logprobs)
        expected = right[ctx.computed - 1]
        assert len(ids) == BEST.logprobs
        worst = max(worst, float(np.abs(expected[list(ids)] - np.array(values)).max()))
    assert ctx.computed == len(IDS)
    return worst


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_file_says_what_the_model_is(tmp_path: Path, kind: str) -> None:
    path = tiny_model.write(tmp_path / "model.gguf", config=CONFIGS[kind])
    with GgufFile(path) as file:
        found = ModelConfig.from_gguf(file)
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    assert replace(found, norm_eps=1e-5) == CONFIGS[kind]
    assert tensor_shapes(found) == shapes


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "headed"])
@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
def test_logits_are_those_of_a_plain_model(
    tmp_path: Path, kind: str, tied: bool, deterministic: bool
) -> None:
    config = CONFIGS[kind]
    weights = tiny_model.values(tiny_model.shapes(tied, config))
    path = tiny_model.write(tmp_path / "model.gguf", weights, config=config)
    right = Plain(weights, config).logprobs(IDS)
    assert far_off(open_engine(path, deterministic=deterministic), right) < 1e-4


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("linear", {"rope_factor": 1.0}),
        ("mistral", {"window": 21}),
        ("qwen2", {"halves": False}),
        ("qwen2", {"qkv_bias": False}),
        ("qwen3", {"qk_norm": False}),
        ("gemma3", {"post_norms": False}),
        ("gemma3", {"activation": "silu"}),
        ("gemma3", {"embedding_scale": 1.0}),
        ("gemma3", {"attention_scale": 0.2}),
        ("gemma3", {"window": 36}),
        ("gemma3", {"global_every": 0}),
        ("gemma3", {"local_rope_theta": 0.0}),
        ("gemma3", {"rope_factor": 1.0}),
    ],
    ids=str,
)
def test_every_option_matters(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    """To these weights and ids: the test above would see it if one were left out."""
    config = CONFIGS[kind]
    weights = tiny_model.values(tiny_model.shapes(config=config))
    one, other = Plain(weights, config), Plain(weights, replace(config, **changes))
    assert np.abs(one.logprobs(IDS) - other.logprobs(IDS)).max() > 0.01


def test_an_attention_scale_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the 27B model of Gemma 3 has, which is known by its number of layers."""
    monkeypatch.setattr(arch, "GEMMA3_27B_LAYERS", 7)
    config = replace(CONFIGS["gemma3"], head_dim=8)
    weights = tiny_model.values(tiny_model.shapes(config=config))
    path = tiny_model.write(tmp_path / "model.gguf", weights, config=config)
    right = Plain(weights, replace(config, attention_scale=16**-0.5)).logprobs(IDS)
    assert far_off(open_engine(path), right) < 1e-4


@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_read_a_few_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    config = CONFIGS[kind]
    weights = tiny_model.values(tiny_model.shapes(config=config))
    path = tiny_model.write(tmp_path / "model.gguf", weights, "Q8_0", config=config)
    whole = open_engine(path)
    monkeypatch.setattr(reader, "SLICE_BYTES", 7 * 4 * HIDDEN)
    sliced = open_engine(path)
    ctxs = whole.ctx(IDS), sliced.ctx(IDS)
    assert whole.generate(ctxs[:1], 5) == sliced.generate(ctxs[1:], 5)
    assert far_off(sliced, Plain(weights, config).logprobs(IDS)) < 1.0


def test_bfloat16_is_near(tmp_path: Path) -> None:
    weights = tiny_model.values(tiny_model.shapes())
    path = tiny_model.write(tmp_path / "model.gguf", weights)
    worst = far_off(open_engine(path, "bfloat16"), Plain(weights).logprobs(IDS))
    assert 1e-4 < worst < 0.5


def test_rope_factors_of_the_file_are_used(tmp_path: Path) -> None:
    weights = tiny_model.values(tiny_model.shapes())
    factors = np.linspace(1, 8, HIDDEN // HEADS // 2).astype("f4")
    path = tiny_model.write(tmp_path / "model.gguf", {**weights, "rope_freqs.weight": factors})
    plain = Plain(weights)
    assert far_off(open_engine(path), plain.logprobs(IDS, factors)) < 1e-4
    assert far_off(open_engine(path), plain.logprobs(IDS)) > 0.01


def test_quantized_weights_are_near(tmp_path: Path) -> None:
    weights = tiny_model.values(tiny_model.shapes())
    path = tiny_model.write(tmp_path / "model.gguf", weights, "Q8_0")
    assert 1e-4 < far_off(open_engine(path), Plain(weights).logprobs(IDS)) < 0.5


# --- refused --------------------------------------------------------------------------------------


def refused(path: Path, kind: FaultKind, **changes: Any) -> str:
    with pytest.raises(DriverFault) as caught:
        open_engine(path, **changes)
    assert caught.value.kind is kind
    return caught.value.message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"blk.1.ffn_up.weight": None}, "blk.1.ffn_up.weight"),
        ({"blk.0.attn_q.weight": (HIDDEN, HIDDEN - 32)}, "(64, 32)"),
        ({"blk.0.attn_q.bias": (HIDDEN,)}, "blk.0.attn_q.bias"),
        ({"blk.0.ffn_gate_exps.weight": (4, 96, HIDDEN)}, "blk.0.ffn_gate_exps.weight"),
    ],
    ids=["missing", "shape", "bias", "experts"],
)
def test_a_file_with_other_tensors_is_refused(
    tmp_path: Path, changes: dict[str, tuple[int, ...] | None], told: str
) -> None:
    """Left out in silence, they would change what the model says."""
    table = {**tiny_model.shapes(), **changes}
    right = {name: shape for name, shape in table.items() if shape}
    path = tiny_model.write(tmp_path / "model.gguf", tiny_model.values(right))
    assert told in refused(path, FaultKind.MODEL_LOAD)


@pytest.mark.parametrize(
    ("factors", "told"),
    [
        ([1.0] * 5, "should have shape (8,), it has (5,)"),
        ([9.0], "should have shape (8,), it has (1,)"),
        ([1.0] * 7 + [0.0], "1 factors such as 0, not above 0"),
        ([math.nan] + [1.0] * 7, "1 factors such as nan"),
        ([math.inf, -1.0] + [1.0] * 6, "2 factors such as inf"),
    ],
)
def test_rope_factors_that_cannot_be(tmp_path: Path, factors: list[float], told: str) -> None:
    weights = tiny_model.values(tiny_model.shapes())
    wrong = {**weights, "rope_freqs.weight": np.array(factors, "f4")}
    path = tiny_model.write(tmp_path / "model.gguf", wrong)
    message = refused(path, FaultKind.MODEL_LOAD)
    assert told in message and "ECORRUPT" in message


def test_a_broken_file_is_refused_and_the_driver_lives(tmp_path: Path) -> None:
    path = tiny_model.write(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    assert "ECORRUPT" in refused(path, FaultKind.MODEL_LOAD)


@pytest.mark.parametrize(
    "what",
    [
        "layers=0", "heads=3", "speed=1", "layers=x", "layers=1025", "vocab=99999999999",
        "seed=" + "9" * 5000,
    ],
    ids=lambda what: what[:20],
)  # fmt: skip
def test_unknown_options_of_the_random_model_are_refused(what: str) -> None:
    assert "random model" in refused(Path(f"random:{what}"), FaultKind.MODEL_LOAD)


def test_a_path_that_no_file_can_have() -> None:
    assert "name too long" in refused(Path("x" * 300), FaultKind.MODEL_LOAD)


def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    assert "it is no file" in refused(tmp_path, FaultKind.MODEL_LOAD)


def test_the_estimate_is_logged_before_anything_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_model.write(tmp_path / "model.gguf")
    with caplog.at_level(logging.INFO, "drivers.cpu.model"):
        engine = open_engine(path)
    estimate, progress = engine.messages[0], engine.messages[1]
    assert isinstance(estimate, base.Estimate) and isinstance(progress, base.Progress)
    (record,) = caplog.records
    assert f"32 KV blocks of {estimate.block_bytes} bytes" in record.getMessage()
    parameters = sum(math.prod(shape) for shape in tiny_model.shapes(tied=False).values())
    table = tiny_model.MAX_CTX * (HIDDEN // HEADS)
    assert estimate.weights_bytes == 4 * (parameters + table)


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model.write(tmp_path / "model.gguf")
    block_bytes = open_engine(path).loaded.block_bytes
    told = refused(path, FaultKind.OOM, num_blocks=1 << 24)
    assert f"{1 << 24} KV blocks of {block_bytes} bytes" in told and "kv_bytes can be" in told
    free = 66 << 20
    monkeypatch.setattr(machine, "memory_free", lambda: free)
    assert "free 66.0 MiB" in refused(path, FaultKind.OOM, num_blocks=500)
    monkeypatch.setattr(machine, "memory_free", lambda: 1 << 20)
    assert "is the least" in refused(path, FaultKind.OOM)


def test_a_long_context_needs_room_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """For gathered keys and values, scores and positions; or it may be cut."""
    path = Path("random:layers=1,hidden=64,heads=4,kv_heads=4,vocab=64,ffn=64,max_ctx=1048576")
    monkeypatch.setattr(machine, "memory_free", lambda: 1 << 30)
    told = refused(path, FaultKind.OOM)
    assert "weights 64.1 MiB" in told and "to work in 1382.8 MiB" in told
    assert "a max_ctx below 1048576" in told
    estimate = open_engine(path, max_ctx=4096).messages[0]
    assert isinstance(estimate, base.Estimate) and estimate.weights_bytes < 1 << 20
