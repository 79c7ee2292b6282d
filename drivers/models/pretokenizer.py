"""Pre-tokenizers: how byte-level BPE files cut text into words before bytes are merged.

A file names its way (`tokenizer.ggml.pre`); each is a chain of patterns, and every pattern cuts
what the one before it left whole. A name that is not here is refused: a guess would give ids that
are nearly right. Sources: src/llama-vocab.cpp of llama.cpp and the tokenizer.json of the models;
`tests/data/make_tokenizer.py` records what llama.cpp makes of each.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"

LLAMA3 = rf"{_CUT}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
QWEN2 = rf"{_CUT}|{_LETTERS}|\p{{N}}|{_REST}"
TEKKEN = rf"{_WORD}|{_CAPITALS}|\p{{N}}|{_SLASH}"
GPT4O = rf"{_WORD}{_CUT}?|{_CAPITALS}{_CUT}?|\p{{N}}{{1,3}}|{_SLASH}"
"""These two as the models have them. llama.cpp comes near: letters with marks may differ."""
DIGITS = r"\p{N}"
DEFAULT = r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"

PRES: Mapping[str, tuple[str, ...]] = {
    "default": DEFAULT,
    "gpt-2": (GPT2,),
    "gpt-4o": (GPT4O,),
    "llama-bpe": (LLAMA3,),
    "llama3": (LLAMA3,),
    "llama-v3": (LLAMA3,),
    "llama4": (GPT4O,),
    "mpt": (GPT2,),
    "olmo": (GPT2,),
    "phi-2": (GPT2,),
    "deepseek-r1-qwen": (QWEN2,),
    "qwen2": (QWEN2,),
    "codeshell": (DIGITS, GPT2),
    "command-r": (DIGITS, GPT2),
    "refact": (DIGITS, GPT2),
    "smollm": (DIGITS, GPT2),
    "starcoder": (DIGITS, GPT2),
    "tekken": (TEKKEN,),
}
WHOLE_WORDS = frozenset(["llama-bpe", "llama3", "llama-v3", "tekken"])
"""Where a word that is a token as it stands is not made by merges."""


def pre_tokenizer(pre: str, vocab: Mapping[str, int]) -> "PreTokenizer":
    """Return the chain of a known name; bytes without a token are pieces of their own.

    Such a byte gives no id. As part of a longer piece it would let its neighbours merge over it.
    """
    from tokenizers import Regex, pre_tokenizers

    steps: list[PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRES[pre]
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    lacking = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(vocab))
    if lacking:
        letters = "".join(f"\\x{{{ord(letter):x}}}" for letter in lacking)
        steps.append(pre_tokenizers.Split(Regex(f"[{letters}]"), "isolated"))
    return pre_tokenizers.Sequence(steps)
