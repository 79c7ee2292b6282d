"""Tokenizers from GGUF metadata, as `tokenizers` JSON.

Built are byte-level BPE files (`tokenizer.ggml.model` gpt2) whose pre-tokenizer is known here. The
ids equal llama.cpp's (tests/data/tokenizer_smollm2.json). An unknown `pre` is refused: a guess
would give ids that are nearly right.
"""

from typing import TYPE_CHECKING, Any

from drivers.models.errors import ModelError
from drivers.models.gguf import GgufFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROL, USER_DEFINED = 3, 4
"""Token types of GGUF: special tokens, and words added to the vocabulary."""
PRES = ("smollm",)


def tokenizer_json(file: GgufFile) -> str:
    """Return the file's tokenizer as JSON; ENOTSUP, ECORRUPT."""
    metadata, name = file.metadata, file.path.name
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise ModelError("ENOTSUP", f"{name} has a tokenizer of kind {model!r}; built is 'gpt2'")
    if pre not in PRES:
        known = ", ".join(PRES)
        raise ModelError("ENOTSUP", f"{name} has pre-tokenizer {pre!r}; built are {known}")
    tokens = _strings(file, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in _strings(file, "tokenizer.ggml.merges")]
    types = metadata.get("tokenizer.ggml.token_type", [])
    if len(set(tokens)) != len(tokens) or any(len(merge) != 2 for merge in merges):
        raise ModelError("ECORRUPT", f"{name}: a token is there twice, or a merge is not a pair")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ModelError("ECORRUPT", f"{name}: {len(tokens)} tokens, but not as many types")
    return _build(name, tokens, merges, types).to_str()


def _strings(file: GgufFile, key: str) -> list[str]:
    values = file.metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ModelError("ECORRUPT", f"{file.path.name}: {key} is no list of strings")
    return values


def _build(name: str, tokens: list[str], merges: list[Any], types: list[int]) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: id for id, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab, merges))
    except Exception as error:
        raise ModelError("ECORRUPT", f"{name}: the merges do not fit the vocabulary") from error
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    kinds = list(zip(tokens, types, strict=True))
    special = [AddedToken(t, normalized=False, special=True) for t, k in kinds if k == CONTROL]
    words = [AddedToken(t, normalized=False) for t, k in kinds if k == USER_DEFINED]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(words)
    return tokenizer
