"""Every type of tensor that GGUF files have: through our reader, in slices, and in a real model."""

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from drivers.models import weights
from drivers.models.config import ModelConfig
from drivers.models.errors import ModelError
from drivers.models.gguf import GgufFile
from syscalls.text import TextModel
from tests.helpers import tiny_model
from tests.helpers.gguf_writer import Tensor as Entry
from tests.helpers.gguf_writer import gguf

# noise has scales of infinity
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")

TEXT = Path(__file__).parents[1] / "data" / "public_domain.txt"
EXCERPT = slice(4000, 5200)  # characters, 300 ids or so

BUILT = [
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
]  # fmt: skip
SHAPE = 24, 512


def random_file(path: Path, kind: str, shape: tuple[int, ...] = SHAPE) -> bytes:
    """Write a file with one tensor of noise; return its bytes."""
    number = GGMLQuantizationType[kind]
    per_block, block_bytes = GGML_QUANT_SIZES[number]
    random = np.random.default_rng(number)
    raw = random.bytes(prod(shape) // per_block * block_bytes)
    path.write_bytes(gguf([], [Entry("noise", shape[::-1], int(number))], raw))
    return raw


@pytest.mark.parametrize("kind", BUILT)
def test_values_are_those_of_the_library(tmp_path: Path, kind: str) -> None:
    raw = random_file(tmp_path / "m.gguf", kind)
    rows = np.frombuffer(raw, np.uint8).reshape(SHAPE[0], -1)
    right = dequantize(rows, GGMLQuantizationType[kind])
    with GgufFile(tmp_path / "m.gguf") as file:
        whole = file.dequantize("noise")
        assert whole.dtype == np.float32 and whole.shape == SHAPE and whole.flags.writeable
        assert np.array_equal(whole, right.reshape(SHAPE), equal_nan=True)
        for first, end in ((0, 1), (5, 22), (23, 24)):
            part = file.dequantize("noise", first, end)
            assert np.array_equal(part, whole[first:end], equal_nan=True), (first, end)


@pytest.mark.parametrize("shape", [(512,), (3, 4, 256)])
def test_tensors_of_other_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    random_file(tmp_path / "m.gguf", "Q8_0", shape)
    with GgufFile(tmp_path / "m.gguf") as file:
        whole = file.dequantize("noise")
        assert whole.shape == shape
        part = file.dequantize("noise", 1, 3)
        assert np.array_equal(part, whole[1:3], equal_nan=True) and part.shape == (2, *shape[1:])


@pytest.mark.parametrize("kind", ["Q8_1", "Q8_K", "I8", "I32", "F64"])
def test_a_type_that_is_not_built(tmp_path: Path, kind: str) -> None:
    """Named with its tensor, and without a word of the library's."""
    path = tiny_model.write(tmp_path / "model.gguf")
    source = weights.GgufSource(path)
    tensor = source._file.tensors["blk.0.attn_q.weight"]
    source._file.tensors[tensor.name] = tensor._replace(type_name=kind)
    with pytest.raises(ModelError, match=f"model.gguf.*attn_q.weight is of type {kind}") as caught:
        source.rows(tensor.name, 0, 1)
    assert caught.value.code == "ENOTSUP" and "Q2_K to Q6_K" in caught.value.hint
    source.close()


# --- a real model ---------------------------------------------------------------------------------


def loss(path: Path, ids: list[int]) -> float:
    """Return the mean negative log-probability of ids, in float32, on plain attention."""
    source = weights.open_source(str(path))
    model = weights.load(source, torch.float32, len(ids), 0, lambda done: None)
    source.close()
    c = model.config

    def attend(_: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (
            x.view(len(ids), -1, c.head_dim).transpose(0, 1) for x in (queries, keys, values)
        )
        seen: Any = torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, enable_gqa=True
        )
        return torch.as_tensor(seen[0].transpose(0, 1).reshape(len(ids), -1))

    with torch.inference_mode():
        every = torch.arange(len(ids))
        logits = model.forward(torch.tensor(ids), every, every, attend)
        odds = logits[:-1].log_softmax(-1)
        return float(-odds[every[:-1], torch.tensor(ids[1:])].mean())


class Original(NamedTuple):
    """The installed model, taken apart, and its loss on an excerpt of the text."""

    config: ModelConfig
    values: dict[str, Any]
    ids: list[int]
    loss: float


@pytest.fixture(scope="module")
def original(smollm2: Path) -> Original:
    (path,) = smollm2.glob("*.gguf")
    text = TextModel((smollm2 / "tokenizer.json").read_text(encoding="utf-8"), None, {})
    ids = text.encode(TEXT.read_text(encoding="ascii")[EXCERPT])
    with GgufFile(path) as file:
        values = {name: file.dequantize(name) for name in file.tensors}
        return Original(ModelConfig.from_gguf(file), values, ids, loss(path, ids))


LIMITS = [("F16", 0.001), ("BF16", 0.01), ("Q8_0", 0.01), ("Q5_0", 0.2), ("Q4_0", 0.6)]


@pytest.mark.full
@pytest.mark.parametrize(("kind", "limit"), LIMITS)
def test_smollm2_in_another_type(
    original: Original, tmp_path: Path, kind: str, limit: float
) -> None:
    """The perplexity stays within a factor of exp(limit): all matrices are quantized once more,
    the embedding too, by the plain methods that the library has."""
    assert 1.5 < original.loss < 4.0, "the excerpt is English to the model"
    other = tiny_model.write(tmp_path / "m.gguf", original.values, kind, original.config)
    found = loss(other, original.ids)
    print(f"{kind}: loss {found:.4f}, it was {original.loss:.4f}")
    assert abs(found - original.loss) < limit
