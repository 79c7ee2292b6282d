"""What a context remembers of a chat: the messages, and where in the context each one ends.

    ids   | system turn | user turn | generation prompt + answer | user turn |
    marks               ^           ^                            ^           ^

A turn appends only the ids by which the chat's rendering grows, so the KV of what came before stays
valid. The prompt that makes a model answer is added by the next infer, and only if the context ends
in a turn that is not the assistant's: so turns can be added one by one, an answer that was cut
can go on, and raw ids appended after a turn are left alone.

Pure: it holds no ids, asks nobody and trusts the lengths that the kernel reports.
"""

from typing import TYPE_CHECKING, NamedTuple

from syscalls.errors import EINVAL

if TYPE_CHECKING:
    from syscalls.text import TextModel

ASSISTANT = "assistant"


def encode(model: "TextModel", text: str, length: int) -> list[int]:
    """Return the ids that add text as it is to `length` others; EINVAL if it is none."""
    from syscalls.text import TextError

    try:
        return model.placed(model.encode(text, begins=length == 0), length)
    except TextError as error:
        raise EINVAL(str(error)) from None


class Turn(NamedTuple):
    """One message, and the length of the context at its end."""

    role: str
    text: str
    length: int


class Conversation:
    """The turns of one context."""

    def __init__(self, turns: tuple[Turn, ...] = ()) -> None:
        self.turns = turns

    def copy(self) -> "Conversation":
        return Conversation(self.turns)

    def turn_ids(self, model: "TextModel", role: str, text: str, length: int) -> list[int]:
        """Return the ids that add one message to a context of `length` ids."""
        return model.placed(self._grow(model, [{"role": role, "content": text}], False), length)

    def prompt_ids(self, model: "TextModel", length: int) -> list[int]:
        """Return the ids that make the model answer, none if the context does not wait for it."""
        if not self.waits(length):
            return []
        return self._grow(model, [], True)

    def waits(self, length: int) -> bool:
        """Return whether a context of this length ends in a message to the assistant."""
        if not self.turns:
            return False
        last = self.turns[-1]
        return last.role != ASSISTANT and last.length == length

    def said(self, role: str, text: str, length: int) -> None:
        """Remember a message that the kernel has accepted."""
        self.turns += (Turn(role, text, length),)

    def answered(self, text: str, start: int, length: int) -> None:
        """Remember what was generated from `start` on; a chat that has not begun stays empty."""
        if not self.turns:
            return
        last = self.turns[-1]
        if last.role == ASSISTANT and last.length == start:
            self.turns = self.turns[:-1]
            text = last.text + text
        self.said(ASSISTANT, text, length)

    def trim(self, length: int) -> None:
        """Forget the messages that do not lie wholly within `length`."""
        self.turns = tuple(turn for turn in self.turns if turn.length <= length)

    def _grow(self, model: "TextModel", new: list[dict[str, str]], prompt: bool) -> list[int]:
        from syscalls.text import TextError

        history = [{"role": turn.role, "content": turn.text} for turn in self.turns]
        try:
            return model.turn_ids(history, new, prompt)
        except TextError as error:
            raise EINVAL(str(error)) from None
