"""A model's tokenizer: text to ids, and the bytes that each id stands for.

It is made of the JSON of the `tokenizers` library, which is hostile data like a chat template: that
library can be told to do many things to text, some of which never end or stop the whole process. So
a JSON is taken apart first, and only what is known here goes to the library: BPE; the patterns of
models in use, word for word; the few changes of text that can be undone (and NFC). Everything else
is refused by name.

There are two kinds, told apart by the decoder:

    byte level         a piece is spelled in 256 letters, one for each byte
    sentence pieces    a piece is text with U+2581 for a space, or <0xNN> for a byte

Some of the second kind put a space before a text, so that its first word is the piece that it would
be inside a text: the beginning of a context and what follows markup get one (`begins`), what goes
on does not, and the bytes of a whole text are given without it again.
"""

import json
import re
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_IDS = 1 << 32
MAX_STEPS = 16
"""Of a sequence: each goes through all of a text. Models in use have up to five."""
SPACE = "▁"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")

_LETTER, _LETTERS = r"[^\r\n\p{L}\p{N}]?", r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD, _CAPITALS = f"{_LETTER}{_UPPER}*{_LOWER}+", f"{_LETTER}{_UPPER}+{_LOWER}*"
_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH = _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    rf"{_CUT}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",  # Llama 3
    rf"{_CUT}|{_LETTERS}|\p{{N}}|{_REST}",  # Qwen2
    rf"{_WORD}|{_CAPITALS}|\p{{N}}|{_SLASH}",  # Tekken
    rf"{_WORD}{_CUT}?|{_CAPITALS}{_CUT}?|\p{{N}}{{1,3}}|{_SLASH}",  # GPT-4o
    r"\p{N}", r"\p{N}+", r"[0-9][0-9][0-9]", r"[\p{P}\$\+<=>\^~\|]+",  # before or after them
}  # fmt: skip
"""Patterns of models in use, word for word. Each takes a time that grows with the text and not
faster; of a pattern that is not known nobody can say so."""
LETTERS = re.compile(r"\[(\\x\{[0-9a-f]{1,6}\})+\]")
"""Single characters, which is what the pattern for bytes without a token looks like."""


class TextError(ValueError):
    """The model cannot do this with text: no template, an unknown kind of tokenizer."""


class ModelTokenizer:
    """One model's tokenizer; may be used by several threads."""

    def __init__(self, text: str) -> None:
        parts = _parts(text)
        self._by_bytes = parts["decoder"]["type"] == "ByteLevel"
        self._begun = _library(parts)
        self._going_on = self._begun
        self.prepends = _without_prepend(parts)
        if self.prepends:
            self._going_on = _library(parts)
        self._lock = Lock()  # the library holds a setting that every encode changes
        added = self._begun.get_added_tokens_decoder()
        self._added = {id: token.content.encode() for id, token in added.items()}
        markup = sorted((t.content for t in added.values() if t.special), key=len, reverse=True)
        self._markup_ends = tuple(markup)
        self._markup = re.compile("|".join(map(re.escape, markup))) if self.prepends else None
        self._alphabet = {char: value for value, char in enumerate(byte_alphabet())}

    def encode(self, text: str, special: bool, begins: bool) -> list[int]:
        """Return the ids of text; markup spelled in it is parsed only if `special`.

        `begins` says that it is the start of a context, or comes after markup.
        """
        if special and not begins and self._markup is not None:
            found = self._markup.search(text)
            if found is not None:  # what follows markup begins
                head, tail = text[: found.start()], text[found.start() :]
                return self._ids(self._going_on, head, True) + self._ids(self._begun, tail, True)
        return self._ids(self._begun if begins else self._going_on, text, special)

    def _ids(self, tokenizer: "Tokenizer", text: str, special: bool) -> list[int]:
        with self._lock:
            tokenizer.encode_special_tokens = not special
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def is_added(self, id: int) -> bool:
        """Return whether an id is markup, or a word that was added to the vocabulary."""
        return id in self._added

    def ends_in_markup(self, text: str) -> bool:
        """Return whether what comes after a text of markup comes after a special token."""
        return text.endswith(self._markup_ends)

    def spelling(self, id: int | None) -> str | None:
        """Return how an id is spelled in the vocabulary."""
        if id is None or not 0 <= id < MAX_IDS:
            return None
        token: str | None = self._begun.id_to_token(id)
        return token

    def id_bytes(self, id: int) -> bytes:
        """Return the bytes that an id stands for; none for an id without a token."""
        added = self._added.get(id)
        if added is not None:
            return added
        token = self.spelling(id)
        if not token:
            return b""
        if not self._by_bytes:
            byte = BYTE.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
        if all(char in self._alphabet for char in token):
            return bytes(self._alphabet[char] for char in token)
        return token.encode()  # no byte-level spelling: it stands for itself


class Unspacing:
    """The bytes of ids one by one, without the space that was put before what begins."""

    def __init__(self, tokenizer: ModelTokenizer, begins: bool) -> None:
        self._tokenizer = tokenizer
        self._begins = begins and tokenizer.prepends

    def bytes_of(self, id: int) -> bytes:
        """Return the bytes that the next id adds to the text."""
        raw = self._tokenizer.id_bytes(id)
        if self._tokenizer.is_added(id):
            self._begins = self._tokenizer.prepends
        elif self._begins and raw:
            self._begins = False
            return raw.removeprefix(b" ")
        return raw


def byte_alphabet() -> list[str]:
    """Return the character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [""] * 256
    for value in printable:
        alphabet[value] = chr(value)
    others = [value for value in range(256) if value not in printable]
    for shift, value in enumerate(others):
        alphabet[value] = chr(256 + shift)
    return alphabet


# --- what goes to the library ---------------------------------------------------------------------


def _parts(text: str) -> dict[str, Any]:
    """Return the JSON of a tokenizer that is built; TextError names what is not."""
    try:
        parts: dict[str, Any] = json.loads(text)
        _check(parts)
    except TextError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise TextError(f"its tokenizer is not sound: {error!r:.200}") from None
    parts["post_processor"] = None  # what it adds is not asked for: bos is the client's to put
    return parts


def _check(parts: dict[str, Any]) -> None:
    for name in ("truncation", "padding"):
        if parts.get(name) is not None:
            raise TextError(f"a tokenizer with {name} is not built")
    decoder = _steps(parts["decoder"], "decoders")
    names = [step["type"] for step in decoder]
    if names not in DECODERS:
        what = ", ".join(map(str, names)) or None
        built = " or ".join(", ".join(known) for known in DECODERS)
        raise TextError(f"a tokenizer with decoder {what!s:.64} is not built; built is {built}")
    for step in decoder:
        _known(step, "decoder", DECODER_STEPS)
    _check_model(parts["model"])
    for step in _steps(parts.get("normalizer"), "normalizers"):
        _known(step, "normalizer", NORMALIZERS)
    for step in _steps(parts.get("pre_tokenizer"), "pretokenizers"):
        _known(step, "pre-tokenizer", PRE_TOKENIZERS)
    for token in parts.get("added_tokens", []):
        if token["single_word"]:
            raise TextError(f"added token {token['content']!r:.64} of single words is not built")


def _check_model(model: Mapping[str, Any]) -> None:
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise TextError(f"a tokenizer of model {kind!r:.64} is not built; built is BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise TextError(f"a BPE tokenizer with {option} {model[option]!r:.64} is not built")
    unknown = model.get("unk_token")
    if unknown is not None and unknown not in model["vocab"]:  # the library would see it in texts
        raise TextError(f"its tokenizer is not sound: unk_token {unknown!r:.64} is not in it")


def _steps(part: Mapping[str, Any] | None, inner: str) -> Sequence[Mapping[str, Any]]:
    """Return the steps of a sequence, or the one step that there is."""
    if not part:
        return []
    steps: Sequence[Mapping[str, Any]] = part[inner] if part["type"] == "Sequence" else [part]
    if len(steps) > MAX_STEPS:
        raise TextError(
            f"a tokenizer with {len(steps)} {inner} is not built, up to {MAX_STEPS} are"
        )
    return steps


def _known(step: Mapping[str, Any], what: str, table: Mapping[str, Any]) -> None:
    options = {name: value for name, value in step.items() if name != "type"}
    check = table.get(step["type"])
    if check is None or not check(options):
        shown = json.dumps(step, ensure_ascii=False)
        raise TextError(f"a tokenizer with {what} {shown:.160} is not built")


def _is_split(options: dict[str, Any]) -> bool:
    """Return whether a Split is one of models in use; at spaces it finds none: they are U+2581."""
    if options["invert"] is not False:
        return False
    pattern = options["pattern"]
    if pattern == {"String": " "}:
        return bool(options["behavior"] == "MergedWithPrevious")
    regex = pattern["Regex"]
    known = regex in PATTERNS or LETTERS.fullmatch(regex) is not None
    return known and bool(options["behavior"] == "Isolated")


NORMALIZERS = {
    "NFC": lambda options: not options,
    "Prepend": lambda options: options == {"prepend": SPACE},
    "Replace": lambda options: options == {"pattern": {"String": " "}, "content": SPACE},
}
PRE_TOKENIZERS = {
    "ByteLevel": lambda options: options["add_prefix_space"] is False,
    "Digits": lambda options: options["individual_digits"] is True,
    "Split": _is_split,
}
DECODERS = [
    ["ByteLevel"],
    ["Replace", "ByteFallback", "Fuse"],
    ["Replace", "ByteFallback", "Fuse", "Strip"],
]
DECODER_STEPS = {
    "ByteLevel": lambda options: True,
    "Replace": lambda options: options == {"pattern": {"String": SPACE}, "content": " "},
    "ByteFallback": lambda options: not options,
    "Fuse": lambda options: not options,
    "Strip": lambda options: options == {"content": " ", "start": 1, "stop": 0},
}


def _without_prepend(parts: dict[str, Any]) -> bool:
    """Take a Prepend out of the normalizer; return whether there was one."""
    steps = _steps(parts.get("normalizer"), "normalizers")
    others = [step for step in steps if step["type"] != "Prepend"]
    parts["normalizer"] = {"type": "Sequence", "normalizers": others} if others else None
    return len(others) < len(steps)


def _library(parts: dict[str, Any]) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(parts, ensure_ascii=False))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise TextError(f"its tokenizer is not sound: {error!s:.200}") from None
