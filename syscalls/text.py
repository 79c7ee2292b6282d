"""Text: between people's text and token ids, on the client's side of the kernel.

A TextModel is made of what the kernel hands out about a model: tokenizer, chat template, config.
The libraries behind it (tokenizers, jinja2) are imported when the first one is made.

User text can never inject markup: templates are rendered with placeholders where contents go, and
only what the template itself says is parsed for special tokens; roles are plain words. A template
that does not leave the placeholders whole is refused. What a template may do says template.py.
"""

import codecs
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from syscalls.template import ChatTemplate

Message = Mapping[str, str]
"""`role` and `content`."""

MAX_MESSAGES = 10_000
MAX_IDS = 1 << 32
NOT_BUILT = ("normalizer", "truncation", "padding")
"""Parts of a tokenizer that change or cut the text; some of them can stop the whole process."""
ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


class TextError(ValueError):
    """The model cannot do this with text: no template, an unknown kind of tokenizer."""


class StreamDecoder:
    """Ids to text, one at a time: a character that spans ids comes with its last one."""

    def __init__(self, model: "TextModel") -> None:
        self._model = model
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Return the text that is complete with this id."""
        return self._utf8.decode(self._model.id_bytes(id))

    def flush(self) -> str:
        """Return what is left of an unfinished character, as U+FFFD."""
        return self._utf8.decode(b"", final=True)


class TextModel:
    """Tokenizer and chat template of one model."""

    def __init__(
        self, tokenizer_json: str, chat_template: str | None, config: Mapping[str, Any]
    ) -> None:
        self.config = config
        self._tokenizer = _tokenizer(tokenizer_json)
        self._lock = Lock()  # the tokenizer holds a setting that every encode changes
        self._added = {
            id: token.content.encode()
            for id, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        self._bytes = {char: value for value, char in enumerate(byte_alphabet())}
        self._template = _compile(chat_template) if chat_template else None

    # --- plain text ---------------------------------------------------------------------------

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of text; special tokens spelled in it are parsed only if `special`.

        Bytes that the vocabulary has no token for are left out, as llama.cpp leaves them out.
        """
        if not text.isascii():
            _check_utf8(text)
        with self._lock:
            self._tokenizer.encode_special_tokens = not special
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return b"".join(map(self.id_bytes, ids)).decode("utf-8", "replace")

    def id_bytes(self, id: int) -> bytes:
        """Return the bytes that an id stands for; none for an id without a token."""
        added = self._added.get(id)
        if added is not None:
            return added
        token = self._tokenizer.id_to_token(id) if 0 <= id < MAX_IDS else None
        if not token:
            return b""
        if all(char in self._bytes for char in token):
            return bytes(self._bytes[char] for char in token)
        return token.encode()  # no byte-level spelling: it stands for itself

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder for one stream of ids."""
        return StreamDecoder(self)

    # --- chats --------------------------------------------------------------------------------

    @property
    def has_template(self) -> bool:
        """Whether the model knows turns; one that does not completes text."""
        return self._template is not None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> list[int]:
        """Return the ids of a whole chat."""
        marks = _Marks(len(messages))
        return self._encode(self._rendered(messages, marks, add_generation_prompt), messages, marks)

    def turn_ids(
        self,
        history: Sequence[Message],
        new: Sequence[Message],
        add_generation_prompt: bool = False,
    ) -> list[int]:
        """Return the ids that continue a context holding the rendering of `history`.

        An answer at the end of `history` was generated: its content is there, what the template
        says after it is not, and comes first.
        """
        messages = [*history, *new]
        marks = _Marks(len(messages))
        whole = self._rendered(messages, marks, add_generation_prompt)
        if not history:
            return self._encode(whole, messages, marks)
        if history[-1]["role"] == "assistant":
            last = marks[len(history) - 1]
            rest = whole[whole.index(last) + len(last) :]
        else:
            before = self._rendered(history, marks, False)
            if not whole.startswith(before):
                raise TextError("the chat template changes earlier turns when one is added")
            rest = whole[len(before) :]
        return self._encode(rest, messages, marks)

    def _rendered(self, messages: Sequence[Message], marks: "_Marks", prompt: bool) -> str:
        if self._template is None:
            raise TextError("the model has no chat template: append text instead of turns")
        if len(messages) > MAX_MESSAGES:
            raise TextError(f"{len(messages)} messages, the limit is {MAX_MESSAGES}")
        shown = [
            {"role": _role(message), "content": marks[index]}
            for index, message in enumerate(messages)
        ]
        try:
            rendered = self._template.render(shown, prompt)
        except ValueError as error:
            raise TextError(f"the model's chat template: {error}") from None
        lost = set(range(len(shown))) - {index for _, index in marks.split(rendered)}
        if lost:
            role = shown[min(lost)]["role"]
            raise TextError(f"the model's chat template leaves out a message of role {role}")
        return rendered

    def _encode(self, rendered: str, messages: Sequence[Message], marks: "_Marks") -> list[int]:
        """Tokenize markup with special tokens, contents without."""
        ids: list[int] = []
        for part, index in marks.split(rendered):
            if part:
                ids += self.encode(part, special=True)
            if index is not None:
                ids += self.encode(messages[index]["content"])
        return ids


class _Marks:
    """Placeholders for contents: unguessable, so no text can look like one."""

    def __init__(self, count: int) -> None:
        self._nonce = secrets.token_hex(8)
        self._count = count

    def __getitem__(self, index: int) -> str:
        return f"\ue000{self._nonce}:{index}\ue001"

    def split(self, rendered: str) -> list[tuple[str, int | None]]:
        """Return (markup, index of the content after it or None) in order."""
        head, *rest = rendered.split(f"\ue000{self._nonce}:")
        parts: list[tuple[str, int | None]] = []
        markup = head
        for piece in rest:
            number, end, after = piece.partition("\ue001")
            if not end or not number.isdecimal() or int(number) >= self._count:
                raise TextError("the model's chat template cuts or changes contents")
            parts.append((markup, int(number)))
            markup = after
        parts.append((markup, None))
        if any(mark in part for part, _ in parts for mark in "\ue000\ue001"):
            raise TextError("the model's chat template cuts or changes contents")
        return parts


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


def _tokenizer(text: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        parts = json.loads(text)
        kind = (parts["decoder"] or {}).get("type")
        others = [name for name in NOT_BUILT if parts.get(name) is not None]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise TextError(f"its tokenizer is not sound: {error!r:.200}") from None
    if kind != "ByteLevel":
        raise TextError(f"a tokenizer with decoder {kind!r:.64} is not built; built is ByteLevel")
    if others:
        raise TextError(f"a tokenizer with {' and '.join(others)} is not built")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise TextError(f"its tokenizer is not sound: {error!s:.200}") from None


def _compile(source: str) -> "ChatTemplate":
    from syscalls.template import ChatTemplate

    try:
        return ChatTemplate(source)
    except ValueError as error:
        raise TextError(f"the model's chat template: {error}") from None


def _role(message: Message) -> str:
    role = message["role"]
    if not ROLE.fullmatch(role):
        raise TextError(f"a role is a word of up to 32 letters, digits, _ and -, not {role!r:.40}")
    return role


def _check_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"a lone surrogate at character {error.start}"
        raise TextError(f"the text has {where}, which no UTF-8 has") from None
