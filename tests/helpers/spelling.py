"""A text layer without a tokenizer: each id spells some bytes, chats look as in a play.

    <system>You are brief.</><user>Hi</><assistant>Hello.</>

It has the methods of `syscalls.text.TextModel` that the client uses. Without a spelling, id n
spells the byte n.
"""

import codecs
from collections.abc import Mapping, Sequence

Message = Mapping[str, str]


class Spelling:
    """See the module."""

    def __init__(self, spelling: Mapping[int, bytes] | None = None) -> None:
        self._spelling = spelling or {byte: bytes([byte]) for byte in range(256)}

    def encode(self, text: str, special: bool = False, begins: bool = True) -> list[int]:
        return list(text.encode())

    def placed(self, ids: list[int], length: int) -> list[int]:
        return ids

    def stream_decoder(self, begins: bool = False) -> "Decoder":
        return Decoder(self._spelling)

    def turn_ids(
        self,
        before: Sequence[Message],
        new: Sequence[Message],
        add_generation_prompt: bool = False,
    ) -> list[int]:
        closing = "</>" if before and before[-1]["role"] == "assistant" else ""
        turns = "".join(f"<{m['role']}>{m['content']}</>" for m in new)
        return self.encode(closing + turns + ("<assistant>" if add_generation_prompt else ""))


class Decoder:
    """Bytes to text, whole characters only."""

    def __init__(self, spelling: Mapping[int, bytes]) -> None:
        self._spelling = spelling
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        return self._decoder.decode(self._spelling[id])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)
