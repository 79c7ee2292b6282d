"""ModelConfig: the numbers that make a model out of its weights."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from drivers.models.errors import ModelError
from drivers.models.gguf import GgufFile

ARCHS = ("llama",)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Of a decoder with grouped-query attention. Sizes in elements, `max_ctx` in positions."""

    arch: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_ctx: int
    rope_theta: float
    norm_eps: float
    tied_embeddings: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]

    @classmethod
    def from_gguf(cls, file: GgufFile) -> "ModelConfig":
        """Read the configuration of a GGUF file; ENOTSUP for an architecture that is not built."""
        read = _Reader(file)
        arch = file.metadata.get("general.architecture")
        if arch not in ARCHS:
            raise ModelError(
                "ENOTSUP",
                f"{file.path.name} has architecture {arch!r}; built are {', '.join(ARCHS)}",
            )
        heads = read.number(f"{arch}.attention.head_count", 1, 1024)
        hidden = read.number(f"{arch}.embedding_length", 1, 1 << 20)
        config = cls(
            arch,
            read.number(f"{arch}.block_count", 1, 1024),
            hidden,
            read.number(f"{arch}.feed_forward_length", 1, 1 << 22),
            heads,
            read.number(f"{arch}.attention.head_count_kv", 1, 1024, heads),
            read.number(f"{arch}.attention.key_length", 1, 4096, hidden // heads),
            _vocab(file),
            read.number(f"{arch}.context_length", 1, 1 << 24),
            read.real(f"{arch}.rope.freq_base", 10_000.0),
            read.real(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5),
            "output.weight" not in file.tensors,
            read.token("tokenizer.ggml.bos_token_id"),
            tuple(filter(lambda i: i is not None, [read.token("tokenizer.ggml.eos_token_id")])),
        )  # fmt: skip
        read.refuse(f"{arch}.rope.scaling.type", ("none",))
        if config.num_heads % config.num_kv_heads:
            raise ModelError(
                "ECORRUPT",
                f"{config.num_heads} heads do not share {config.num_kv_heads} KV heads evenly",
            )
        return config

    def to_json(self) -> str:
        """Return the configuration as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Return the configuration that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**(fields | {"eos_ids": tuple(fields["eos_ids"])}))


def _vocab(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError("ECORRUPT", f"{file.path.name} has no tensor token_embd.weight")
    return embedding.shape[0]


class _Reader:
    """Numbers of the metadata, each in its range."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def _corrupt(self, key: str, value: Any, want: str) -> ModelError:
        name = self._file.path.name
        return ModelError("ECORRUPT", f"{name}: {key} is {value!r}, it should be {want}")

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self._file.metadata.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self._corrupt(key, value, f"from {low} to {high}")
        return value

    def real(self, key: str, default: float) -> float:
        value = self._file.metadata.get(key, default)
        if type(value) is not float or not 0 < value < 1e12:
            raise self._corrupt(key, value, "a number above 0")
        return value

    def token(self, key: str) -> int | None:
        value = self._file.metadata.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < _vocab(self._file)):
            raise self._corrupt(key, value, "an id of the vocabulary")
        return value

    def refuse(self, key: str, harmless: tuple[str, ...]) -> None:
        value = self._file.metadata.get(key)
        if value is not None and value not in harmless:
            raise ModelError("ENOTSUP", f"{self._file.path.name}: {key} {value!r} is not built")
