"""Tokenizers from GGUF metadata, as `tokenizers` JSON.

Built are byte-level BPE (`tokenizer.ggml.model` gpt2) with the ways to cut words that are known in
pretokenizer.py, and SentencePiece vocabularies (llama, see spm.py). The ids equal llama.cpp's
(tests/data/tokenizer_*.json), but for this: markup that is merely spelled in a text is never
markup. What may follow from a JSON is the clients' affair: syscalls/tokenizer.py lists the shapes
that it takes, and those made here are among them.
"""

from typing import TYPE_CHECKING, Any, NoReturn

from drivers.models.errors import FETCH, ModelError, short
from drivers.models.gguf import GgufFile
from drivers.models.metadata import CONTROL, vocab_size
from drivers.models.pretokenizer import PRES, WHOLE_WORDS, pre_tokenizer
from drivers.models.spm import BYTE, SPACE, byte_piece, merges

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNKNOWN, USER_DEFINED = 2, 4
"""Token types of GGUF: special are unknown and control, user-defined are words added later."""
MODELS = "gpt2", "llama"


def tokenizer_json(file: GgufFile) -> str:
    """Return the file's tokenizer as JSON; ENOTSUP, ECORRUPT."""
    metadata, name = file.metadata, file.path.name
    model = metadata.get("tokenizer.ggml.model")
    if model not in MODELS:
        what = f"{name} has a tokenizer of kind {short(model)}, which is not built"
        raise ModelError("ENOTSUP", what, f"built are: {', '.join(MODELS)}")
    build = _byte_level if model == "gpt2" else _sentence_pieces
    return build(_Vocabulary(file)).to_str()


class _Vocabulary:
    """The lists of a file's tokenizer, checked against each other."""

    def __init__(self, file: GgufFile) -> None:
        self.metadata, self.name = file.metadata, file.path.name
        self.tokens = self.strings("tokens")
        rows = vocab_size(file)
        if not 0 < len(self.tokens) <= rows:
            self.corrupt(f"{len(self.tokens)} tokens, but the embedding has {rows} rows")
        self.ids = {token: id for id, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            self.corrupt(f"{len(self.tokens) - len(self.ids)} tokens are there twice")
        self.types = self.numbers("token_type", int, "types")

    def strings(self, key: str) -> list[str]:
        values = self.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self.corrupt(f"tokenizer.ggml.{key} is no list of strings")
        return values

    def numbers(self, key: str, kind: type, what: str) -> list[Any]:
        """Return one number for each token."""
        values = self.metadata.get(f"tokenizer.ggml.{key}", [])
        if not isinstance(values, list) or len(values) != len(self.tokens):
            count = len(values) if isinstance(values, list) else short(values)
            self.corrupt(f"{len(self.tokens)} tokens, but {count} {what}")
        if not all(type(value) is kind and value == value for value in values):
            self.corrupt(f"tokenizer.ggml.{key} is no list of {kind.__name__}s")
        return values

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if type(value) is not bool:
            self.corrupt(f"tokenizer.ggml.{key} is {short(value)}, not true or false")
        return value

    def of_kind(self, *kinds: int) -> list[str]:
        return [t for t, kind in zip(self.tokens, self.types, strict=True) if kind in kinds]

    def corrupt(self, what: str) -> NoReturn:
        raise ModelError("ECORRUPT", f"{self.name}: {what}", FETCH)

    def not_built(self, what: str, hint: str) -> NoReturn:
        raise ModelError("ENOTSUP", f"{self.name} {what}, which is not built", hint)


def _byte_level(vocabulary: _Vocabulary) -> "Tokenizer":
    from tokenizers import decoders

    pre = vocabulary.metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in PRES:
        vocabulary.not_built(f"has pre-tokenizer {short(pre)}", f"built are: {', '.join(PRES)}")
    pairs = [tuple(merge.split(" ", 1)) for merge in vocabulary.strings("merges")]
    if any(len(pair) != 2 for pair in pairs):
        vocabulary.corrupt("a merge is not a pair")
    tokenizer = _bpe(vocabulary, pairs, ignore_merges=pre in WHOLE_WORDS)
    tokenizer.pre_tokenizer = pre_tokenizer(pre, vocabulary.ids)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_pieces(vocabulary: _Vocabulary) -> "Tokenizer":
    from tokenizers import decoders, normalizers

    scores = vocabulary.numbers("scores", float, "scores")
    if vocabulary.flag("remove_extra_whitespaces", False):
        vocabulary.not_built("removes spaces from text", "built is: text as it is")
    lacking = {byte_piece(value) for value in range(256)} - set(vocabulary.of_kind(BYTE))
    if lacking:
        what = f"has no pieces for {len(lacking)} bytes, such as {min(lacking)}"
        vocabulary.not_built(what, "built are vocabularies that can spell every text")
    pairs = merges(vocabulary.tokens, scores, vocabulary.types)
    tokenizer = _bpe(vocabulary, pairs, byte_fallback=True)
    begins = [normalizers.Prepend(SPACE)] if vocabulary.flag("add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*begins, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if begins else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _bpe(vocabulary: _Vocabulary, pairs: list[Any], **options: bool) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, models

    try:
        tokenizer = Tokenizer(models.BPE(vocabulary.ids, pairs, **options))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        vocabulary.corrupt(f"the merges do not fit the tokens: {short(str(error))}")
    special, words = vocabulary.of_kind(UNKNOWN, CONTROL), vocabulary.of_kind(USER_DEFINED)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in words])
    return tokenizer
