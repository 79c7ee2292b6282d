"""How a Hugging Face folder's model turns its positions. Torch-free.

transformers 5 writes `rope_parameters`, one object or one a kind of layer; earlier versions wrote
`rope_theta` and `rope_scaling`, and `rope_local_base_freq` for the sliding layers of Gemma 3.
"""

import math
from typing import NamedTuple

from drivers.models.json_fields import Fields

SLIDING, FULL = "sliding_attention", "full_attention"
KINDS = {
    "default": frozenset[str](),
    "linear": frozenset(["factor"]),
    "llama3": frozenset([
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ]),
}  # fmt: skip
"""Scalings that are built, and what they take."""


class Rope(NamedTuple):
    """How positions of one kind of layers are turned."""

    theta: float
    factor: float = 1.0  # positions are divided by it
    factors: tuple[float, ...] | None = None  # the speed of each pair is divided by one

    @property
    def scaled(self) -> bool:
        return self != Rope(self.theta)


def read_ropes(read: Fields, local_theta: str, head_dim: int, max_ctx: int) -> tuple[Rope, Rope]:
    """Return how layers that see all turn positions, and how those that slide do.

    `local_theta` names the base of those that slide; scaling is not for them if they have one.
    """
    apart = local_theta != "rope_theta"
    scaling, parameters = read.section("rope_scaling"), read.section("rope_parameters")
    thetas = read.real("rope_theta"), read.real(local_theta)
    if scaling and parameters:
        raise read.not_built("rope_scaling", "one of rope_scaling and rope_parameters")
    if parameters and parameters.values.keys() & {SLIDING, FULL}:
        for name in sorted(parameters.values.keys() - {SLIDING, FULL}):
            raise parameters.not_built(name, f"{SLIDING} and {FULL}")
        sections = parameters.section(FULL), parameters.section(SLIDING)
    elif parameters and apart:
        raise read.not_built("rope_parameters", f"{SLIDING} and {FULL}")
    else:
        both = scaling or parameters
        sections = both, None if apart else both
    full, sliding = (
        Rope(theta) if section is None else _rope(section, theta, head_dim, max_ctx)
        for section, theta in zip(sections, thetas, strict=True)
    )
    return full, sliding


def _rope(section: Fields, theta: float, head_dim: int, max_ctx: int) -> Rope:
    values = section.values
    kind_of = "rope_type" if "rope_type" in values else "type"
    kind = values.get(kind_of, "default")
    if not isinstance(kind, str) or kind not in KINDS:
        raise section.not_built(kind_of, ", ".join(KINDS))
    known = KINDS[kind] | {"rope_type", "type", "rope_theta"}
    for name in sorted(values.keys() - known):
        if (name, values[name]) != ("partial_rotary_factor", 1.0):
            raise section.not_built(name, f"{kind} with {', '.join(sorted(known))}")
    if "rope_theta" in values:
        theta = section.real("rope_theta")
    if kind == "linear":
        return Rope(theta, section.real("factor"))
    if kind == "llama3":
        return Rope(theta, factors=_llama3(section, theta, head_dim, max_ctx))
    return Rope(theta)


def _llama3(section: Fields, theta: float, head_dim: int, max_ctx: int) -> tuple[float, ...]:
    """Return what divides the speed of each pair: 1 for fast ones, `factor` for slow ones.

    Source: _compute_llama3_parameters of transformers, after the code that came with Llama 3.1.
    """
    factor, low, high = (
        section.real(name) for name in ("factor", "low_freq_factor", "high_freq_factor")
    )
    old = section.number("original_max_position_embeddings", 1, 1 << 24, max_ctx)
    if low >= high:
        raise section.corrupt("low_freq_factor", f"below high_freq_factor {high:g}")
    factors = []
    for pair in range(head_dim // 2):
        length = 2 * math.pi * theta ** (2 * pair / head_dim)  # of a wave, in positions
        fast = min(max((old / length - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - fast) / factor + fast))
    return tuple(factors)
