"""Hugging Face folders with text, and the refusal of those that are not sound."""

import json
from pathlib import Path
from typing import Any

import pytest

from drivers.models.checkpoint import describe_checkpoint
from drivers.models.errors import ModelError

TOKENS = {f"t{id}": id for id in range(300)}
"""Of the tokenizer; its added token <s> is the next one."""


def with_text(folder: Path, **changes: Any) -> Path:
    """Add a tokenizer to a folder, with some of its parts changed."""
    added = [{"id": 300, "content": "<s>", "special": True}]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "model": {"type": "BPE", "vocab": TOKENS, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | changes))
    return folder


def refused(folder: Path, *said: str, code: str = "ECORRUPT") -> None:
    """Assert that a folder is refused, in one line that helps."""
    with pytest.raises(ModelError) as caught:
        describe_checkpoint(folder)
    message = caught.value.message
    assert caught.value.code == code and caught.value.hint, caught.value
    assert "\n" not in message and len(message) < 500
    for part in said:
        assert part in message, message
