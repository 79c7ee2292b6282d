"""Weights: from a model file, or drawn at random, into a Decoder.

A source names its tensors as GGUF does and gives them a few rows at a time, which go straight into
the model's own type, so that loading never needs the whole model twice, nor its largest matrix in
float32. Three are known: the GGUF file of an installed model; a Hugging Face folder
(checkpoint_source.py); and the builtin "random:layers=2,hidden=64,heads=4,kv_heads=2,vocab=512,
seed=1", a model that needs no download and says nothing sensible, for tests and for trying a
device. Every key of it may be left out; ffn, max_ctx and eos are further ones.

A source must have exactly the tensors that the model code uses, in the shapes that its
configuration gives: a model with biases or experts that were left out would still talk, wrongly.

Where rotary positions turn halves of a head, the rows of queries and keys are put into the pair
order that the decoder computes in.

`measure` says with accelerate, on a model without memory, what the weights take and where they are
to lie; only when all of them fit on the device is anything allocated. What is wrong with a file is
a ModelError.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from accelerate import init_empty_weights
from accelerate.utils import compute_module_sizes, infer_auto_device_map
from torch import Tensor

from drivers.models.checkpoint import find_checkpoint
from drivers.models.checkpoint_source import CheckpointSource
from drivers.models.config import ModelConfig
from drivers.models.decoder import Decoder, DecoderLayer, Linear
from drivers.models.errors import FETCH, ModelError
from drivers.models.gguf import GgufFile
from drivers.models.manifest import MANIFEST, check_unchanged, read_manifest
from drivers.models.tensors import ROPE_FACTORS, Shapes, tensor_shapes
from drivers.sizes import SLICE_BYTES, turn_bytes

RANDOM = "random"
RANDOM_KEYS = {
    "layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "vocab": 512, "ffn": 0,
    "max_ctx": 8192, "eos": -1, "seed": 1,
}  # fmt: skip
RANDOM_LIMITS = {
    "layers": 1024, "hidden": 1 << 20, "heads": 1024, "kv_heads": 1024, "vocab": 1 << 24,
    "ffn": 1 << 22, "max_ctx": 1 << 24,
}  # fmt: skip
"""As of models in files (arch.py)."""


class Source(Protocol):
    """Where weights come from."""

    config: ModelConfig
    shapes: Shapes

    def rows(self, name: str, first: int, end: int) -> Tensor:
        """Return part of a tensor along its first axis, in the file's order, as any float type."""

    def close(self) -> None: ...


class GgufSource:
    """The tensors of a GGUF file."""

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)
        self.config = ModelConfig.from_gguf(self._file)
        self.shapes: Shapes = {name: tensor.shape for name, tensor in self._file.tensors.items()}

    def rows(self, name: str, first: int, end: int) -> Tensor:
        try:
            return torch.from_numpy(self._file.dequantize(name, first, end))
        except NotImplementedError:
            kind, file = self._file.tensors[name].type_name, self._file.path.name
            what = f"{file}: tensor {name} is of type {kind}, which is not built"
            hint = "built are F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ1 to IQ4"
            raise ModelError("ENOTSUP", what, hint) from None

    def close(self) -> None:
        self._file.close()


class RandomSource:
    """Normal weights, each slice from the seed, the tensor's name and the slice's first row."""

    def __init__(self, text: str) -> None:
        options = _options(text)
        self._seed, hidden = options["seed"], options["hidden"]
        self.config = ModelConfig(
            arch="llama",
            num_layers=options["layers"],
            hidden_size=hidden,
            intermediate_size=options["ffn"] or 3 * hidden,
            num_heads=options["heads"],
            num_kv_heads=options["kv_heads"],
            head_dim=hidden // options["heads"],
            vocab_size=options["vocab"],
            max_ctx=options["max_ctx"],
            rope_theta=10000.0,
            norm_eps=1e-5,
            tied_embeddings=True,
            bos_id=None,
            eos_ids=(options["eos"],) if options["eos"] >= 0 else (),
        )
        self.shapes = tensor_shapes(self.config)

    def rows(self, name: str, first: int, end: int) -> Tensor:
        shape = end - first, *self.shapes[name][1:]
        if len(shape) == 1:
            return torch.ones(shape)
        digest = hashlib.blake2b(f"{self._seed} {name} {first}".encode(), digest_size=7).digest()
        seed = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        return torch.randn(shape, generator=seed).mul_(1.5 / math.sqrt(shape[1]))

    def close(self) -> None:
        """Nothing is open."""


KV_VERSION = 1
"""Rises when the model code computes other KV from the same file."""


def digest_of(path: str) -> str:
    """Return what the KV of given ids depends on, hex; empty if the files have no known sum."""
    if path.partition(":")[0] == RANDOM:
        content = path
    elif (Path(path) / MANIFEST).exists():
        content = read_manifest(Path(path)).manifest.sha256
    else:
        return ""
    return hashlib.sha256(f"{KV_VERSION} {content}".encode()).hexdigest()


def open_source(path: str) -> Source:
    """Return the source that a Load's path names, its tensors checked; ModelError if it is none."""
    kind, colon, options = path.partition(":")
    if kind == RANDOM and (colon or path == RANDOM):
        return RandomSource(options)
    check_unchanged(Path(path))
    folder = find_checkpoint(Path(path))
    if folder is not None:
        return CheckpointSource(folder)
    files = sorted(Path(path).glob("*.gguf")) if Path(path).is_dir() else [Path(path)]
    if len(files) != 1 or not files[0].is_file():
        what = f"{path} is no GGUF file, no folder with exactly one, and no Hugging Face folder"
        raise ModelError("ENOENT", what)
    source = GgufSource(files[0])
    _check_tensors(source)
    return source


def _check_tensors(source: Source) -> None:
    wanted = tensor_shapes(source.config)
    for name, shape in wanted.items():
        found = source.shapes.get(name)
        if found != shape:
            raise ModelError("ECORRUPT", f"tensor {name} should have shape {shape}, it has {found}")
    factors, pairs = source.shapes.get(ROPE_FACTORS), source.config.head_dim // 2
    if factors not in (None, (pairs,)):
        what = f"tensor {ROPE_FACTORS} should have shape {(pairs,)}, it has {factors}"
        raise ModelError("ECORRUPT", what, FETCH)
    extra = sorted(source.shapes.keys() - wanted.keys() - {ROPE_FACTORS})
    if extra:
        raise ModelError("ENOTSUP", f"{len(extra)} tensors that are not built, such as {extra[0]}")


class Measure(NamedTuple):
    """What accelerate says of a model that was not loaded."""

    weights_bytes: int
    places: Counter[str]  # modules by where they are to lie

    @property
    def fits(self) -> bool:
        return set(self.places) <= {"cpu"}


def measure(config: ModelConfig, dtype: torch.dtype, max_ctx: int, budget: int) -> Measure:
    """Size the weights, and place them within `budget` bytes of this device."""
    with init_empty_weights():
        model = Decoder(config, dtype)
    # the tables of positions are no weights, but as large as some
    tables = turn_bytes(config, max_ctx)
    places = infer_auto_device_map(
        model,
        max_memory={"cpu": max(budget - tables, 0)},
        no_split_module_classes=[DecoderLayer.__name__],
    )
    size = compute_module_sizes(model)[""] + tables
    return Measure(size, Counter(str(place) for place in places.values()))


def load(
    source: Source, dtype: torch.dtype, max_ctx: int, tile: int, progress: Callable[[int], None]
) -> Decoder:
    """Return a model with the weights of `source`, calling `progress` after each layer."""
    config = source.config
    with init_empty_weights():
        model = Decoder(config, dtype)
    tensors = _Reader(source, dtype)
    model.embed = torch.nn.Parameter(tensors.read("token_embd.weight"), requires_grad=False)
    model.head.fill(model.embed if config.tied_embeddings else tensors.read("output.weight"))
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, DecoderLayer)
        _fill_layer(layer, tensors, f"blk.{index}.")
        progress(index + 1)
    _fill_norm(model.norm, tensors.read("output_norm.weight"))
    model.prepare(max_ctx, _rope_factors(source), tile)
    return model.eval()


def _rope_factors(source: Source) -> Tensor | None:
    """Return what divides the frequencies of positions, if there is something."""
    if ROPE_FACTORS not in source.shapes:
        return None
    factors = source.rows(ROPE_FACTORS, 0, source.shapes[ROPE_FACTORS][0]).float()
    wrong = factors[~(factors.isfinite() & (factors > 0))]
    if wrong.numel():
        what = (
            f"tensor {ROPE_FACTORS} has {wrong.numel()} factors such as {wrong[0]:g}, not above 0"
        )
        raise ModelError("ECORRUPT", what, FETCH)
    return factors


class _Reader:
    """Tensors of a source in the model's type and order."""

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self._source, self._dtype = source, dtype

    def read(self, *names: str) -> Tensor:
        """Return a tensor, or several stacked by rows."""
        shapes = [self._source.shapes[name] for name in names]
        counts = [shape[0] for shape in shapes]
        whole = torch.empty((sum(counts), *shapes[0][1:]), dtype=self._dtype)
        for name, part in zip(names, torch.split(whole, counts), strict=True):
            self._copy(name, part)
        return whole

    def turned(self, *names: str) -> Tensor:
        """Return queries' and keys' rows, and what else is named, with each head in pair order."""
        whole, config = self.read(*names), self._source.config
        if config.halves:
            size = (config.num_heads + config.num_kv_heads) * config.head_dim
            whole[:size] = in_pairs(whole[:size], config.head_dim)
        return whole

    def head_norm(self, name: str) -> Tensor:
        """Return the norm's weight of one head, in pair order."""
        whole, config = self.read(name), self._source.config
        return in_pairs(whole, config.head_dim) if config.halves else whole

    def _copy(self, name: str, out: Tensor) -> None:
        count = len(out)
        step = count if out.ndim == 1 else max(1, SLICE_BYTES // (4 * out.shape[1]))
        for first in range(0, count, step):
            end = min(first + step, count)
            out[first:end] = self._source.rows(name, first, end)


def in_pairs(rows: Tensor, dim: int) -> Tensor:
    """Return rows of heads with row i of each head at 2i and row i + D/2 at 2i + 1."""
    return rows.view(-1, 2, dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _fill_layer(layer: DecoderLayer, tensors: _Reader, prefix: str) -> None:
    def fill(linear: Linear, *names: str) -> None:
        linear.fill(tensors.read(*(f"{prefix}{name}.weight" for name in names)))

    def fill_norm(norm: torch.nn.Module | None, name: str) -> None:
        if norm is not None:
            _fill_norm(norm, tensors.read(f"{prefix}{name}.weight"))

    qkv = [f"{prefix}attn_{name}" for name in "qkv"]
    bias = None if layer.qkv.bias is None else tensors.turned(*(f"{name}.bias" for name in qkv))
    layer.qkv.fill(tensors.turned(*(f"{name}.weight" for name in qkv)), bias)
    if layer.head_norm is not None:
        layer.head_norm.fill(*(tensors.head_norm(f"{name}_norm.weight") for name in qkv[:2]))
    fill(layer.out, "attn_output")
    fill(layer.gate_up, "ffn_gate", "ffn_up")
    fill(layer.down, "ffn_down")
    fill_norm(layer.attn_norm, "attn_norm")
    fill_norm(layer.attn_post_norm, "post_attention_norm")
    fill_norm(layer.mlp_norm, "ffn_norm")
    fill_norm(layer.mlp_post_norm, "post_ffw_norm")


def _fill_norm(norm: torch.nn.Module, weight: Tensor) -> None:
    norm.weight = torch.nn.Parameter(weight, requires_grad=False)


def _options(text: str) -> dict[str, int]:
    """Return the options of a random model; EINVAL for one that is none or cannot be."""
    options = dict(RANDOM_KEYS)
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in options or not value.lstrip("-").isdecimal():
            raise ModelError("EINVAL", f"option {item}; a random model takes {', '.join(options)}")
        limit = RANDOM_LIMITS.get(key, 1 << 31)
        if len(value) > 10 or int(value) > limit:
            what = f"{key} of a random model is {value:.16}, the limit is {limit}"
            raise ModelError("EINVAL", what)
        options[key] = int(value)
    heads, kv_heads, hidden = options["heads"], options["kv_heads"], options["hidden"]
    sizes = [options[key] for key in ("layers", "hidden", "heads", "kv_heads", "vocab", "max_ctx")]
    if min(sizes) < 1 or heads % kv_heads or hidden % (2 * heads):
        raise ModelError(
            "EINVAL",
            f"a random model of hidden={hidden} heads={heads} kv_heads={kv_heads}: heads must be "
            "a multiple of kv_heads, hidden of twice the heads, and all sizes above 0",
        )
    return options
