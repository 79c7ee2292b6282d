"""Weights: from a model file, or drawn at random, into a Llama.

A source names its tensors as GGUF does and gives them one at a time in float32, so that loading
never needs the whole model twice. Two are here: the GGUF file of an installed model, and the
builtin "random:layers=2,hidden=64,heads=4,kv_heads=2,vocab=512,seed=1", a model that needs no
download and says nothing sensible, for tests and for trying a device. Every key of it may be left
out; ffn, max_ctx and eos are further ones.

`measure` says with accelerate, on a model without memory, what the weights take and whether they
fit on the device; only then is anything allocated.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from accelerate import init_empty_weights
from accelerate.utils import compute_module_sizes, infer_auto_device_map
from torch import Tensor

from drivers.base import DriverFault, FaultKind
from drivers.models.config import ModelConfig
from drivers.models.gguf import GgufFile
from drivers.models.llama import Linear, Llama, LlamaLayer

ARCHS = ("llama",)
RANDOM = "random"
RANDOM_KEYS = {
    "layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "vocab": 512, "ffn": 0,
    "max_ctx": 8192, "eos": -1, "seed": 1,
}  # fmt: skip


class Source(Protocol):
    """Where weights come from."""

    config: ModelConfig

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in float32, in the file's order of rows."""

    def has(self, name: str) -> bool: ...


class GgufSource:
    """The tensors of a GGUF file."""

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)
        self.config = ModelConfig.from_gguf(self._file)

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self._file.dequantize(name))

    def has(self, name: str) -> bool:
        return name in self._file.tensors


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

    def tensor(self, name: str) -> Tensor:
        shape = _shape(self.config, name.split(".")[-2])
        if len(shape) == 1:
            return torch.ones(shape)
        seed = int.from_bytes(f"{self._seed} {name}".encode(), "little") % (1 << 63)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return noise * (1.5 / math.sqrt(shape[1]))

    def has(self, name: str) -> bool:
        return name != "rope_freqs.weight"


def open_source(path: str) -> Source:
    """Return the source that a Load's path names; MODEL_LOAD if there is none."""
    kind, colon, options = path.partition(":")
    source: Source
    if kind == RANDOM and (colon or path == RANDOM):
        source = RandomSource(options)
    else:
        files = sorted(Path(path).glob("*.gguf")) if Path(path).is_dir() else [Path(path)]
        if len(files) != 1 or not files[0].is_file():
            raise DriverFault(FaultKind.MODEL_LOAD, f"{path} holds {len(files)} GGUF files, not 1")
        source = GgufSource(files[0])
    if source.config.arch not in ARCHS:
        raise DriverFault(
            FaultKind.MODEL_LOAD,
            f"no model code for architecture {source.config.arch}; there is {', '.join(ARCHS)}",
        )
    return source


def measure(config: ModelConfig, dtype: torch.dtype, budget: int) -> tuple[int, bool]:
    """Return the bytes of the weights, and whether they can be placed within `budget`."""
    with init_empty_weights():
        model = Llama(config, dtype)
    size = compute_module_sizes(model)[""]
    # the table of positions is no weight, but as large as some
    size += config.max_ctx * config.head_dim * 4
    places = infer_auto_device_map(
        model, max_memory={"cpu": max(budget, 0)}, no_split_module_classes=[LlamaLayer.__name__]
    )
    return size, set(places.values()) <= {"cpu"} and size <= budget


def load(
    source: Source, dtype: torch.dtype, max_ctx: int, tile: int, progress: Callable[[int], None]
) -> Llama:
    """Return a model with the weights of `source`, calling `progress` after each layer."""
    config = source.config
    with init_empty_weights():
        model = Llama(config, dtype)
    tensors = _Reader(source, dtype)
    model.embed = torch.nn.Parameter(tensors.one("token_embd.weight"), requires_grad=False)
    tied = not source.has("output.weight") or config.tied_embeddings
    model.head.fill(model.embed if tied else tensors.one("output.weight"))
    for index, layer in enumerate(model.layers):
        _fill_layer(layer, tensors, f"blk.{index}.")
        progress(index + 1)
    _fill_norm(model.norm, tensors.one("output_norm.weight"))
    factors = source.tensor("rope_freqs.weight") if source.has("rope_freqs.weight") else None
    model.prepare(max_ctx, factors, tile)
    return model.eval()


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
    """Return the options of a random model, MODEL_LOAD for one that is none or cannot be."""
    options = dict(RANDOM_KEYS)
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in options or not value.lstrip("-").isdecimal():
            raise DriverFault(
                FaultKind.MODEL_LOAD, f"option {item}; a random model takes {', '.join(options)}"
            )
        options[key] = int(value)
    heads, kv_heads, hidden = options["heads"], options["kv_heads"], options["hidden"]
    sizes = [options[key] for key in ("layers", "hidden", "heads", "kv_heads", "vocab", "max_ctx")]
    if min(sizes) < 1 or heads % kv_heads or hidden % (2 * heads):
        raise DriverFault(
            FaultKind.MODEL_LOAD,
            f"hidden={hidden} heads={heads} kv_heads={kv_heads}: heads must be a multiple of "
            "kv_heads, hidden of twice the heads, and all sizes above 0",
        )
    return options


def _shape(config: ModelConfig, name: str) -> tuple[int, ...]:
    hidden, ffn = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: Mapping[str, tuple[int, ...]] = {
        "token_embd": (config.vocab_size, hidden),
        "attn_q": (queries, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn),
    }  # fmt: skip
    return shapes.get(name, (hidden,))
