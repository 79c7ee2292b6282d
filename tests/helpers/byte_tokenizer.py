"""A byte-level tokenizer that needs no model: each byte is an id."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from syscalls.text import byte_alphabet


def byte_tokenizer(words: int = 0) -> str:
    """Return its tokenizer.json: bytes, then `words` ids that are words, then two of markup."""
    vocab = {char: byte for byte, char in enumerate(byte_alphabet())}
    vocab |= {f"Ġw{number}": 256 + number for number in range(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)]
    )
    text: str = tokenizer.to_str()
    return text
