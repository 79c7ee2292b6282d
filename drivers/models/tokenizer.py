"""Tokenizers from GGUF metadata, as `tokenizers` JSON.

Built are byte-level BPE files (`tokenizer.ggml.model` gpt2) whose pre-tokenizer is known here. The
ids equal llama.cpp's (tests/data/tokenizer_smollm2.json). An unknown `pre` is refused: a guess
would give ids that are nearly right.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from drivers.models.errors import FETCH, ModelError, short
from drivers.models.gguf import GgufFile
from drivers.models.metadata import vocab_size

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Token types of GGUF: special tokens are of the first two, the third are words added later."""
MODEL = "gpt2"
PRES = ("smollm",)


def tokenizer_json(file: GgufFile) -> str:
    """Return the file's tokenizer as JSON; ENOTSUP, ECORRUPT."""
    metadata, name = file.metadata, file.path.name
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model != MODEL:
        what = f"{name} has a tokenizer of kind {short(model)}, which is not built"
        raise ModelError("ENOTSUP", what, f"built is: {MODEL}")
    if pre not in PRES:
        what = f"{name} has pre-tokenizer {short(pre)}, which is not built"
        raise ModelError("ENOTSUP", what, f"built are: {', '.join(PRES)}")
    tokens = _strings(file, "tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type", [])
    _check_vocabulary(file, tokens, types)
    merges = [tuple(merge.split(" ", 1)) for merge in _strings(file, "tokenizer.ggml.merges")]
    if any(len(merge) != 2 for merge in merges):
        raise ModelError("ECORRUPT", f"{name}: a merge is not a pair", FETCH)
    return _build(name, tokens, merges, types).to_str()


def _strings(file: GgufFile, key: str) -> list[str]:
    values = file.metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ModelError("ECORRUPT", f"{file.path.name}: {key} is no list of strings", FETCH)
    return values


def _check_vocabulary(file: GgufFile, tokens: list[str], types: object) -> None:
    name, rows = file.path.name, vocab_size(file)
    if not 0 < len(tokens) <= rows:
        what = f"{name}: {len(tokens)} tokens, but the embedding has {rows} rows"
        raise ModelError("ECORRUPT", what, FETCH)
    if len(set(tokens)) != len(tokens):
        twice = len(tokens) - len(set(tokens))
        raise ModelError("ECORRUPT", f"{name}: {twice} tokens are there twice", FETCH)
    if not isinstance(types, list) or len(types) != len(tokens):
        count = len(types) if isinstance(types, list) else short(types)
        raise ModelError("ECORRUPT", f"{name}: {len(tokens)} tokens, but {count} types", FETCH)


def _build(name: str, tokens: list[str], merges: list[Any], types: list[int]) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocab = {token: id for id, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        what = f"{name}: the merges do not fit the tokens: {short(str(error))}"
        raise ModelError("ECORRUPT", what, FETCH) from None
    tokenizer.pre_tokenizer = _pre_tokenizer(vocab)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = list(zip(tokens, types, strict=True))
    special = [t for t, kind in kinds if kind in (UNKNOWN, CONTROL)]
    words = [t for t, kind in kinds if kind == USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in words])
    return tokenizer


def _pre_tokenizer(vocab: Mapping[str, int]) -> "PreTokenizer":
    """Split before every digit, then as GPT-2; bytes without a token are pieces of their own.

    Such a byte gives no id. As part of a longer piece it would let its neighbours merge over it.
    """
    from tokenizers import Regex, pre_tokenizers

    steps: list[PreTokenizer] = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    lacking = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(vocab))
    if lacking:
        letters = "".join(f"\\x{{{ord(letter):x}}}" for letter in lacking)
        steps.append(pre_tokenizers.Split(Regex(f"[{letters}]"), "isolated"))
    return pre_tokenizers.Sequence(steps)
