"""ModelError: something is wrong with a model's file, name or source."""


class ModelError(Exception):
    """What is wrong and why, with the number and the limit; `hint` says what to do next.

    `code` is an errno name: ECORRUPT (not a sound file), ENOTSUP (sound, but of a kind that is not
    built), EINVAL (a builtin's options), ENOENT, ENOSPC, EIO, EBUSY.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.hint = hint
