"""ModelError: something is wrong with a model's file, name or source."""

from reprlib import Repr

FETCH = "fetch the model again with llmos pull, or take the file from where it was made"
"""What to do about a file that is not sound."""


class ModelError(Exception):
    """What is wrong and why, with the number and the limit; `hint` says what to do next.

    `code` is an errno name: ECORRUPT (not a sound file), ENOTSUP (sound, but of a kind that is not
    built), EINVAL (a builtin's options), ENOENT, ENOSPC, EPERM, EIO, EBUSY.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.hint = hint


def short(value: object) -> str:
    """Spell a value from a file for a message: it may be a list of a million items."""
    form = Repr()
    form.maxlist, form.maxstring, form.maxlevel = 4, 64, 2
    return form.repr(value)
