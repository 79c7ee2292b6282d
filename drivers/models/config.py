"""ModelConfig: the numbers that make a model out of its weights."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from drivers.models.errors import FETCH, ModelError, short
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
    add_bos: bool = False
    """Text in an empty context begins with bos_id; the client puts it there."""
    halves: bool = False
    """Rotary positions turn elements i and i + D/2 of a head; otherwise 2i and 2i + 1."""
    qkv_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of queries and keys, before they are turned."""
    post_norms: bool = False
    """RMSNorm also of what attention and MLP give, before it is added."""
    activation: str = "silu"  # | gelu_tanh
    embedding_scale: float = 1.0
    attention_scale: float = 0.0  # of scores; 0: head_dim ** -0.5
    window: int = 0
    """Positions that a sliding layer sees, its own included; 0: every layer sees all."""
    global_every: int = 0
    """Of so many layers the last sees all, the others slide; 0: every layer slides, if any."""
    local_rope_theta: float = 0.0  # of sliding layers; 0: rope_theta
    rope_factor: float = 1.0  # positions of layers that see all are divided by it

    def slides(self, layer: int) -> bool:
        """Return whether a layer sees only the window."""
        if not self.window:
            return False
        return not self.global_every or (layer + 1) % self.global_every != 0

    @classmethod
    def from_gguf(cls, file: GgufFile) -> "ModelConfig":
        """Read the configuration of a GGUF file; ENOTSUP for an architecture that is not built."""
        read = _Reader(file)
        arch = file.metadata.get("general.architecture")
        if arch not in ARCHS:
            what = f"{file.path.name} has architecture {short(arch)}, which is not built"
            raise ModelError("ENOTSUP", what, f"built are: {', '.join(ARCHS)}")
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
            vocab_size(file),
            read.number(f"{arch}.context_length", 1, 1 << 24),
            read.real(f"{arch}.rope.freq_base", 10_000.0),
            read.real(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5),
            "output.weight" not in file.tensors,
            read.token("tokenizer.ggml.bos_token_id"),
            read.ends(),
        )  # fmt: skip
        read.refuse(f"{arch}.rope.scaling.type", "none")
        for factor in ("rope.scaling.factor", "rope.scale_linear"):
            read.refuse(f"{arch}.{factor}", 1.0)
        read.refuse(f"{arch}.rope.dimension_count", config.head_dim)
        read.refuse(f"{arch}.attention.value_length", config.head_dim)
        if config.head_dim % 2:
            what = f"{file.path.name}: heads of {config.head_dim} elements, rotated in pairs"
            raise ModelError("ENOTSUP", what, "built are even head sizes")
        if config.num_heads % config.num_kv_heads:
            raise ModelError(
                "ECORRUPT",
                f"{config.num_heads} heads do not share {config.num_kv_heads} KV heads evenly",
                FETCH,
            )
        return config

    def to_json(self) -> str:
        """Return the configuration as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Return the configuration that `to_json` wrote, of this version or another."""
        read = known(cls, json.loads(text))
        return cls(**(read | {"eos_ids": tuple(read["eos_ids"])}))


def known(cls: Any, read: dict[str, Any]) -> dict[str, Any]:
    """Return what a dataclass takes of a JSON object: a newer llmos may have written more."""
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in read.items() if name in names}


def vocab_size(file: GgufFile) -> int:
    """Return the rows of the embedding; ids are below it."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError("ECORRUPT", f"{file.path.name} has no tensor token_embd.weight", FETCH)
    return embedding.shape[0]


class _Reader:
    """Numbers of the metadata, each in its range."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def _corrupt(self, key: str, value: Any, want: str) -> ModelError:
        name = self._file.path.name
        return ModelError("ECORRUPT", f"{name}: {key} is {short(value)}, not {want}", FETCH)

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self._file.metadata.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self._corrupt(key, value, f"a number from {low} to {high}")
        return value

    def real(self, key: str, default: float) -> float:
        value = self._file.metadata.get(key, default)
        if type(value) is not float or not 0 < value < 1e12:
            raise self._corrupt(key, value, "a real number above 0")
        return value

    def token(self, key: str) -> int | None:
        value = self._file.metadata.get(key)
        if value is not None and (
            type(value) is not int or not 0 <= value < vocab_size(self._file)
        ):
            raise self._corrupt(key, value, f"an id below {vocab_size(self._file)}")
        return value

    def ends(self) -> tuple[int, ...]:
        """Return the ids that end an answer: of the text, the turn, the message."""
        ids = [self.token(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
        return tuple(dict.fromkeys(id for id in ids if id is not None))

    def refuse(self, key: str, built: object) -> None:
        """Refuse a setting that would change what the model computes."""
        value = self._file.metadata.get(key)
        if value is not None and value != built:
            what = f"{self._file.path.name}: {key} {short(value)} is not built"
            raise ModelError("ENOTSUP", what, f"built is {built}")
