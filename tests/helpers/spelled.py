"""A tokenizer for the tiny model: id n stands for the byte n, but for the first, which are special.

So a test can say in bytes what a sequence of ids is, as with the null model.
"""

import json
from pathlib import Path

from syscalls.tokenizer import byte_alphabet
from tests.helpers import tiny_model


def install(folder: Path) -> str:
    """Write the tiny model and its tokenizer into a folder; return what Load.path names."""
    letters = byte_alphabet()
    special = [
        {"id": id, "content": f"<|{id}|>", "special": True, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
        for id in range(tiny_model.EOS + 1)
    ]  # fmt: skip
    vocab = {letters[value]: value for value in range(tiny_model.EOS + 1, tiny_model.VOCAB)}
    tokenizer = {
        "version": "1.0", "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"}, "post_processor": None,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return tiny_model.install(folder)
