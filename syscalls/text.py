"""Text: between people's text and token ids, on the client's side of the kernel.

A TextModel is made of what the kernel hands out about a model: tokenizer, chat template, config.
The libraries behind it (tokenizers, jinja2) are imported when the first one is made.

User text can never inject markup: templates are rendered with placeholders where contents go, and
only what the template itself says is parsed for special tokens. A template is data from a model
file: it runs in jinja2's immutable sandbox, on limited input, and its output is limited.
"""

import codecs
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, str]
"""`role` and `content`."""

MAX_RENDERED = 4 << 20
MAX_MESSAGES = 10_000


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
        from tokenizers import Tokenizer

        kind = (json.loads(tokenizer_json).get("decoder") or {}).get("type")
        if kind != "ByteLevel":
            raise TextError(f"a tokenizer with decoder {kind} is not built; built is ByteLevel")
        self.config = config
        self._tokenizer: Tokenizer = Tokenizer.from_str(tokenizer_json)
        self._added = {
            id: token.content.encode()
            for id, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        self._bytes = {char: value for value, char in enumerate(byte_alphabet())}
        self._template = _compile(chat_template) if chat_template else None

    # --- plain text ---------------------------------------------------------------------------

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of text; special tokens spelled in it are parsed only if `special`."""
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
        token = self._tokenizer.id_to_token(id)
        return bytes(self._bytes[char] for char in token) if token else b""

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder for one stream of ids."""
        return StreamDecoder(self)

    # --- chats --------------------------------------------------------------------------------

    @property
    def has_template(self) -> bool:
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
            if last not in whole:
                raise TextError("the chat template leaves out the last answer")
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
            {"role": message["role"], "content": marks[index]}
            for index, message in enumerate(messages)
        ]
        pieces, size = [], 0
        for piece in self._template.generate(messages=shown, add_generation_prompt=prompt):
            size += len(piece)
            if size > MAX_RENDERED:
                raise TextError(f"the chat template wrote more than {MAX_RENDERED} characters")
            pieces.append(piece)
        return "".join(pieces)

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
            number, _, after = piece.partition("\ue001")
            parts.append((markup, int(number)))
            markup = after
        return [*parts, (markup, None)]


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


def _compile(source: str) -> "Template":
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message: str) -> None:
        raise TextError(f"the chat template refuses this chat: {message}")

    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise TextError(f"the model's chat template is not sound: {error}") from None
