"""Sampling: how an infer draws its ids, from what a program says to what the ABI takes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from syscalls.errors import EINVAL
from syscalls.following import Schema, follow

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
"""The step of splitmix64: seeds that are so far apart give unrelated noise."""


class Sampling(NamedTuple):
    """The arguments of an infer, in the order of `abi.Infer` after the handle."""

    max_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    penalize_from: int | None = None
    grammar_kind: int = 0
    grammar: bytes = b""
    grammar_from: int | None = None

    def checked(self) -> "Sampling":
        """Return it; EINVAL where a hint can say more than the kernel's check of a number."""
        if self.max_tokens < 1:
            raise EINVAL(
                f"max_tokens is {self.max_tokens}, an infer generates at least one id",
                "score() and prompt_logprobs() give the probability of ids that are there",
            )
        return self

    def of_fork(self, index: int, same_seed: bool) -> "Sampling":
        """Return the sampling of one of n forks: their seeds come from one, by their index."""
        if self.seed is None or same_seed:
            return self
        return self._replace(seed=(self.seed + index * GOLDEN) & MASK)


class Options(TypedDict, total=False):
    """What a program may say of an infer, by name; `Context.infer` has the defaults."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    stop: str | Sequence[str]
    stop_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int | None
    text: bool
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    penalize_from: int | None
    schema: Schema | None
    regex: str | None
    lark: str | None
    grammar_from: int | None


class Asked(NamedTuple):
    """An infer as a program asks for it."""

    sampling: Sampling
    stop: tuple[str, ...]
    text: bool


def asked(how: Options) -> Asked:
    """Return what these options ask for."""
    fields = {name: value for name, value in how.items() if name in Sampling._fields}
    fields["stop_ids"] = tuple(how.get("stop_ids", ()))
    fields["logit_bias"] = tuple((how.get("logit_bias") or {}).items())
    grammar = follow(how.get("schema"), how.get("regex"), how.get("lark"))
    fields["grammar_kind"], fields["grammar"] = grammar
    stop = how.get("stop", ())
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    return Asked(Sampling(**fields).checked(), stops, how.get("text", True))  # type: ignore[arg-type]
