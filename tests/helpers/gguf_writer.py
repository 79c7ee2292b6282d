"""GGUF files of a few hundred bytes, byte for byte as a test wants them, sound or not.

Nothing here checks anything: a number that lies is what tests are after.
"""

from collections.abc import Sequence
from struct import pack
from typing import NamedTuple

from syscalls.text import byte_alphabet

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
TYPE_F32, TYPE_Q4_1 = 0, 3

Entry = tuple[str, bytes]
"""A key, and its value with the type before it."""


class Tensor(NamedTuple):
    """One row of the tensor table. `dims` are in the file's order (fastest first)."""

    name: str
    dims: tuple[int, ...] = (8, 2)
    kind: int = TYPE_F32
    offset: int = 0


def string(text: str | bytes, size: int | None = None) -> bytes:
    """Return a string; `size` is the length that it claims."""
    raw = text.encode() if isinstance(text, str) else text
    return pack("<Q", len(raw) if size is None else size) + raw


def u32(key: str, value: int) -> Entry:
    return key, pack("<II", U32, value)


def f32(key: str, value: float) -> Entry:
    return key, pack("<If", F32, value)


def text(key: str, value: str) -> Entry:
    return key, pack("<I", STRING) + string(value)


def array(key: str, kind: int, count: int, raw: bytes) -> Entry:
    return key, pack("<IIQ", ARRAY, kind, count) + raw


def strings(key: str, values: Sequence[str]) -> Entry:
    return array(key, STRING, len(values), b"".join(map(string, values)))


def gguf(
    entries: Sequence[Entry] = (),
    tensors: Sequence[Tensor] = (),
    data: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_keys: int | None = None,
) -> bytes:
    """Return a file; the counts are true unless they are given."""
    head = magic + pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(entries) if num_keys is None else num_keys,
    )
    head += b"".join(string(key) + value for key, value in entries)
    head += b"".join(
        string(name) + pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        for name, dims, kind, offset in tensors
    )
    return head + bytes(-len(head) % 32) + data if tensors else head


def llama(num_tokens: int = 260) -> dict[str, bytes]:
    """Return the metadata of a small model with a tokenizer; change keys to break it."""
    tokens = ["<|im_start|>", "<|im_end|>", *byte_alphabet(), "he", "ll"]
    return dict(
        [
            text("general.architecture", "llama"),
            u32("llama.block_count", 2),
            u32("llama.context_length", 64),
            u32("llama.embedding_length", 8),
            u32("llama.feed_forward_length", 16),
            u32("llama.attention.head_count", 2),
            f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
            text("tokenizer.ggml.model", "gpt2"),
            text("tokenizer.ggml.pre", "smollm"),
            strings("tokenizer.ggml.tokens", tokens[:num_tokens]),
            array("tokenizer.ggml.token_type", U32, 260, pack("<260I", 3, 3, *[1] * 258)),
            strings("tokenizer.ggml.merges", ["h e", "l l"]),
            u32("tokenizer.ggml.eos_token_id", 1),
            text("tokenizer.chat_template", "{{ messages[0]['content'] }}"),
        ]
    )


def llama_file(entries: dict[str, bytes] | None = None, rows: int = 260) -> bytes:
    """Return a file with `llama()`, or the metadata given, and its embedding."""
    embedding = Tensor("token_embd.weight", (8, rows))
    return gguf(list((entries or llama()).items()), [embedding], bytes(8 * rows * 4))
