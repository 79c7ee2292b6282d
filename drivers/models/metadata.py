"""Metadata of a GGUF file as numbers that can be trusted: each in its range, with its key named.

What is wrong is ECORRUPT; what is right but would change what the model computes, in a way that is
not built, is ENOTSUP. Both name the file, the key and the value.
"""

from typing import Any

from drivers.models.errors import FETCH, ModelError, short
from drivers.models.gguf import GgufFile

CONTROL = 3
"""The token type of markup."""


class Metadata:
    """The keys of one file; `arch` is the prefix of those that describe the model."""

    def __init__(self, file: GgufFile, arch: str) -> None:
        self._file, self._arch = file, arch
        self.vocab_size = vocab_size(file)
        self.tied = "output.weight" not in file.tensors

    # --- of the model, keys without their prefix --------------------------------------------------

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        key = f"{self._arch}.{key}"
        value = self._file.metadata.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self._corrupt(key, value, f"a number from {low} to {high}")
        return value

    def real(self, key: str, default: float) -> float:
        key = f"{self._arch}.{key}"
        value = self._file.metadata.get(key, default)
        if type(value) is not float or not 0 < value < 1e12:
            raise self._corrupt(key, value, "a real number above 0")
        return value

    def value(self, key: str) -> Any:
        """Return what a key says, None if it is not there."""
        return self._file.metadata.get(f"{self._arch}.{key}")

    def settings(self) -> list[str]:
        """Return the keys that describe the model."""
        prefix = f"{self._arch}."
        return [key.removeprefix(prefix) for key in self._file.metadata if key.startswith(prefix)]

    def refuse(self, key: str, built: object) -> None:
        """Refuse a setting that would change what the model computes."""
        value = self.value(key)
        if value is not None and value != built:
            raise self.not_built(key, f"built is {built}")

    def not_built(self, key: str, hint: str) -> ModelError:
        what = f"{self._file.path.name}: {self._arch}.{key} {short(self.value(key))} is not built"
        return ModelError("ENOTSUP", what, hint)

    # --- of the tokenizer -------------------------------------------------------------------------

    def token(self, key: str) -> int | None:
        """Return an id that the tokenizer names."""
        key = f"tokenizer.ggml.{key}"
        value = self._file.metadata.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < self.vocab_size):
            raise self._corrupt(key, value, f"an id below {self.vocab_size}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a yes or no of the tokenizer."""
        key = f"tokenizer.ggml.{key}"
        value = self._file.metadata.get(key, default)
        if type(value) is not bool:
            raise self._corrupt(key, value, "true or false")
        return value

    def text(self, key: str) -> str | None:
        """Return a word of the tokenizer; what is no text is told by who needs it."""
        value = self._file.metadata.get(f"tokenizer.ggml.{key}")
        return value if isinstance(value, str) else None

    def spelled(self, wanted: tuple[str, ...]) -> list[int]:
        """Return the ids of markup with these spellings, where the vocabulary has it."""
        tokens = self._file.metadata.get("tokenizer.ggml.tokens")
        types = self._file.metadata.get("tokenizer.ggml.token_type")
        if not isinstance(tokens, list) or not isinstance(types, list):
            return []
        ids = [tokens.index(token) for token in wanted if token in tokens]
        return [id for id in ids if id < min(len(types), self.vocab_size) and types[id] == CONTROL]

    def _corrupt(self, key: str, value: Any, want: str) -> ModelError:
        name = self._file.path.name
        return ModelError("ECORRUPT", f"{name}: {key} is {short(value)}, not {want}", FETCH)


def vocab_size(file: GgufFile) -> int:
    """Return the rows of the embedding; ids are below it."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError("ECORRUPT", f"{file.path.name} has no tensor token_embd.weight", FETCH)
    return embedding.shape[0]
