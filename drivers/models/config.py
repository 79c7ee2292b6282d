"""ModelConfig: the numbers that make a model out of its weights."""

import json
from dataclasses import asdict, dataclass

from drivers.models.arch import ARCHS, config_fields
from drivers.models.errors import FETCH, ModelError, short
from drivers.models.gguf import GgufFile
from drivers.models.manifest import known
from drivers.models.metadata import Metadata


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
        """Read the configuration of a GGUF file; ENOTSUP for what is not built."""
        arch = file.metadata.get("general.architecture")
        if not isinstance(arch, str) or arch not in ARCHS:
            what = f"{file.path.name} has architecture {short(arch)}, which is not built"
            raise ModelError("ENOTSUP", what, f"built are: {', '.join(ARCHS)}")
        config = cls(arch=arch, **config_fields(Metadata(file, arch), arch))
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
