"""Weights: from a model file, or drawn at random, into a Llama.

A source names its tensors as GGUF does and gives them one at a time in float32, so that loading
never needs the whole model twice. Two are here: the GGUF file of an installed model, and the
builtin "random:layers=2,hidden=64,heads=4,kv_heads=2,vocab=512,seed=1", a model that needs no
download and says nothing sensible, for tests and for trying a device. Every key of it may be left
out; ffn, max_ctx and eos are further ones.

A source must have exactly the tensors that the model code uses, in the shapes that its
configuration gives: a model with biases or experts that were left out would still talk, wrongly.

`measure` says with accelerate, on a model without memory, what the weights take and where they are
to lie; only when all of them fit on the device is anything allocated. What is wrong with a file is
a ModelError.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from accelerate import init_empty_weights
from accelerate.utils import compute_module_sizes, infer_auto_device_map
from torch import Tensor

from drivers.models.config import ModelConfig
from drivers.models.errors import FETCH, ModelError
from drivers.models.gguf import GgufFile
from drivers.models.llama import Linear, Llama, LlamaLayer

Shapes = Mapping[str, tuple[int, ...]]
ROPE_FACTORS = "rope_freqs.weight"
"""The one tensor that may be there or not."""
RANDOM = "random"
RANDOM_KEYS = {
    "layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "vocab": 512, "ffn": 0,
    "max_ctx": 8192, "eos": -1, "seed": 1,
}  # fmt: skip


class Source(Protocol):
    """Where weights come from."""

    config: ModelConfig
    shapes: Shapes

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in float32, in the file's order of rows."""

    def close(self) -> None: ...


class GgufSource:
    """The tensors of a GGUF file."""

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)
        self.config = ModelConfig.from_gguf(self._file)
        self.shapes: Shapes = {name: tensor.shape for name, tensor in self._file.tensors.items()}

    def tensor(self, name: str) -> Tensor:
        try:
            return torch.from_numpy(self._file.dequantize(name))
        except NotImplementedError:
            kind = self._file.tensors[name].type_name
            raise ModelError("ENOTSUP", f"tensor {name} is of type {kind}, not built") from None

    def close(self) -> None:
        self._file.close()


class RandomSource:
    """Normal weights, each tensor from the seed and its name."""

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

    def tensor(self, name: str) -> Tensor:
        shape = self.shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        seed = int.from_bytes(f"{self._seed} {name}".encode(), "little") % (1 << 63)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return noise * (1.5 / math.sqrt(shape[1]))

    def close(self) -> None:
        """Nothing is open."""


def open_source(path: str) -> Source:
    """Return the source that a Load's path names, its tensors checked; ModelError if it is none."""
    kind, colon, options = path.partition(":")
    if kind == RANDOM and (colon or path == RANDOM):
        return RandomSource(options)
    files = sorted(Path(path).glob("*.gguf")) if Path(path).is_dir() else [Path(path)]
    if len(files) != 1 or not files[0].is_file():
        raise ModelError("ENOENT", f"{path} is no GGUF file and no folder with exactly one")
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


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Return the tensors that a model has, by the names of GGUF."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: Shapes = {
        "attn_norm": (hidden,), "attn_q": (queries, hidden), "attn_k": (keys, hidden),
        "attn_v": (keys, hidden), "attn_output": (hidden, queries), "ffn_norm": (hidden,),
        "ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn),
    }  # fmt: skip
    table = {"token_embd.weight": (config.vocab_size, hidden), "output_norm.weight": (hidden,)}
    if not config.tied_embeddings:
        table["output.weight"] = (config.vocab_size, hidden)
    for index in range(config.num_layers):
        table |= {f"blk.{index}.{name}.weight": shape for name, shape in layer.items()}
    return table


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
        model = Llama(config, dtype)
    # the table of positions is no weight, but as large as some
    turn_bytes = max_ctx * config.head_dim * 4
    places = infer_auto_device_map(
        model,
        max_memory={"cpu": max(budget - turn_bytes, 0)},
        no_split_module_classes=[LlamaLayer.__name__],
    )
    size = compute_module_sizes(model)[""] + turn_bytes
    return Measure(size, Counter(str(place) for place in places.values()))


def load(
    source: Source, dtype: torch.dtype, max_ctx: int, tile: int, progress: Callable[[int], None]
) -> Llama:
    """Return a model with the weights of `source`, calling `progress` after each layer."""
    config = source.config
    with init_empty_weights():
        model = Llama(config, dtype)
    tensors = _Reader(source, dtype)
    model.embed = torch.nn.Parameter(tensors.one("token_embd.weight"), requires_grad=False)
    model.head.fill(model.embed if config.tied_embeddings else tensors.one("output.weight"))
    for index, layer in enumerate(model.layers):
        _fill_layer(layer, tensors, f"blk.{index}.")
        progress(index + 1)
    _fill_norm(model.norm, tensors.one("output_norm.weight"))
    model.prepare(max_ctx, _rope_factors(source), tile)
    return model.eval()


def _rope_factors(source: Source) -> Tensor | None:
    """Return what divides the frequencies of positions, if there is something."""
    if ROPE_FACTORS not in source.shapes:
        return None
    factors = source.tensor(ROPE_FACTORS)
    wrong = factors[~(factors.isfinite() & (factors > 0))]
    if wrong.numel():
        what = (
            f"tensor {ROPE_FACTORS} has {wrong.numel()} factors such as {wrong[0]:g}, not above 0"
        )
        raise ModelError("ECORRUPT", what, FETCH)
    return factors


class _Reader:
    """Tensors of a source in the model's type."""

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self._source, self._dtype = source, dtype

    def one(self, *names: str) -> Tensor:
        """Return a tensor, or several stacked by rows."""
        parts = [self._source.tensor(name).to(self._dtype) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _fill_layer(layer: torch.nn.Module, tensors: _Reader, prefix: str) -> None:
    assert isinstance(layer, LlamaLayer)

    def fill(linear: Linear, *names: str) -> None:
        linear.fill(tensors.one(*(f"{prefix}{name}.weight" for name in names)))

    _fill_norm(layer.attn_norm, tensors.one(f"{prefix}attn_norm.weight"))
    fill(layer.qkv, "attn_q", "attn_k", "attn_v")
    fill(layer.out, "attn_output")
    _fill_norm(layer.mlp_norm, tensors.one(f"{prefix}ffn_norm.weight"))
    fill(layer.gate_up, "ffn_gate", "ffn_up")
    fill(layer.down, "ffn_down")


def _fill_norm(norm: torch.nn.Module, weight: Tensor) -> None:
    norm.weight = torch.nn.Parameter(weight, requires_grad=False)


def _options(text: str) -> dict[str, int]:
    """Return the options of a random model; EINVAL for one that is none or cannot be."""
    options = dict(RANDOM_KEYS)
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in options or not value.lstrip("-").isdecimal():
            raise ModelError("EINVAL", f"option {item}; a random model takes {', '.join(options)}")
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
