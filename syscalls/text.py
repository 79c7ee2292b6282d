"""Text: between people's text and token ids, on the client's side of the kernel.

A TextModel is made of what the kernel hands out about a model: tokenizer, chat template, config.
The libraries behind it (tokenizers, jinja2) are imported when the first one is made.

User text can never inject markup: templates are rendered with placeholders where contents go, and
only what the template itself says is parsed for special tokens; roles are plain words. A template
that does not leave the placeholders whole is refused. What a template may do says template.py.
"""

import codecs
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from syscalls.tokenizer import ModelTokenizer, Unspacing
from syscalls.tokenizer import TextError as TextError  # text's face, like the next
from syscalls.tokenizer import byte_alphabet as byte_alphabet

if TYPE_CHECKING:
    from syscalls.template import ChatTemplate

Message = Mapping[str, str]
"""`role` and `content`."""

MAX_MESSAGES = 10_000
ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


class StreamDecoder:
    """Ids to text, one at a time: a character that spans ids comes with its last one."""

    def __init__(self, tokenizer: ModelTokenizer, begins: bool) -> None:
        self._ids = Unspacing(tokenizer, begins)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Return the text that is complete with this id."""
        return self._utf8.decode(self._ids.bytes_of(id))

    def flush(self) -> str:
        """Return what is left of an unfinished character, as U+FFFD."""
        return self._utf8.decode(b"", final=True)


class TextModel:
    """Tokenizer and chat template of one model."""

    def __init__(
        self, tokenizer_json: str, chat_template: str | None, config: Mapping[str, Any]
    ) -> None:
        self.config = config
        self._tokenizer = ModelTokenizer(tokenizer_json)
        self._template = _compile(chat_template) if chat_template else None
        self._words = self._named_words()

    # --- plain text ---------------------------------------------------------------------------

    def encode(self, text: str, special: bool = False, begins: bool = True) -> list[int]:
        """Return the ids of text; special tokens spelled in it are parsed only if `special`.

        Some models write the first word of a text in another way than the same word further on:
        `begins` says which this is. Bytes that the vocabulary has no token for are left out, as
        llama.cpp leaves them out.
        """
        if not text.isascii():
            _check_utf8(text)
        return self._tokenizer.encode(text, special, begins)

    def placed(self, ids: list[int], length: int) -> list[int]:
        """Return the ids of text or chat as they go into a context that holds `length` ids.

        If the model wants bos before a text, it stands at the beginning of the context, once; a
        template may have written it there already, or where the context goes on.
        """
        if not ids or not self.config.get("add_bos"):
            return ids
        bos = self.config.get("bos_id")
        rest = ids[1:] if ids[0] == bos else ids
        return rest if length or bos is None else [bos, *rest]

    def decode(self, ids: Sequence[int], start: int = 0) -> str:
        """Return the text of ids, all of it, or that of those from `start` on."""
        whole = Unspacing(self._tokenizer, True)
        return b"".join([whole.bytes_of(id) for id in ids][start:]).decode("utf-8", "replace")

    def id_bytes(self, id: int) -> bytes:
        """Return the bytes that an id stands for inside a text; none for an id without a token."""
        return self._tokenizer.id_bytes(id)

    def stream_decoder(self, begins: bool = False) -> StreamDecoder:
        """Return a decoder for one stream of ids, which mostly goes on with a text."""
        return StreamDecoder(self._tokenizer, begins)

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
            before = whole[: whole.index(last) + len(last)]
        else:
            before = self._rendered(history, marks, False)
            if not whole.startswith(before):
                raise TextError("the chat template changes earlier turns when one is added")
        begins = self._tokenizer.ends_in_markup(before)
        return self._encode(whole[len(before) :], messages, marks, begins)

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
            rendered = self._template.render(shown, prompt, self._words)
        except ValueError as error:
            raise TextError(f"the model's chat template: {error}") from None
        lost = set(range(len(shown))) - {index for _, index in marks.split(rendered)}
        if lost:
            role = shown[min(lost)]["role"]
            raise TextError(f"the model's chat template leaves out a message of role {role}")
        return rendered

    def _encode(
        self, rendered: str, messages: Sequence[Message], marks: "_Marks", begins: bool = True
    ) -> list[int]:
        """Tokenize markup with special tokens, contents without.

        A space at the end of markup goes to the content behind it, as words have theirs in front.
        """
        ids: list[int] = []

        def add(text: str, special: bool) -> None:
            fresh = self._tokenizer.is_added(ids[-1]) if ids else begins
            ids.extend(self.encode(text, special, fresh) if text else [])

        for part, index in marks.split(rendered):
            space = " " if index is not None and part.endswith(" ") else ""
            add(part.removesuffix(space), special=True)
            if index is not None:
                add(space + messages[index]["content"], special=False)
        return ids

    def _named_words(self) -> dict[str, str]:
        """Return the markup that templates call by name."""
        ends = self.config.get("eos_ids") or [None]
        named = {"bos_token": self.config.get("bos_id"), "eos_token": ends[0]}
        words = {name: self._tokenizer.spelling(id) for name, id in named.items()}
        return {name: word for name, word in words.items() if word is not None}


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
