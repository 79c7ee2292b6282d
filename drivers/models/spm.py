"""SentencePiece vocabularies, as BPE: what files of Llama 1 and 2, Mistral and Gemma hold.

Such a file has no merges. A piece is made of two shorter ones; which come first is a matter of
scores (the higher), and of places in the vocabulary among equals. Any way to cut a piece in two
that are in the vocabulary is a merge. Only ordinary pieces merge: what is markup, or stands for a
byte, can never come of text that merely spells it.

A space is written as U+2581. A text with that character in it therefore comes back with a space.
"""

from collections.abc import Sequence

NORMAL, UNUSED = 1, 5
BYTE = 6
SPACE = "▁"


def merges(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """Return the merges of a vocabulary, the first to be made first."""
    ranks = sorted((-scores[id], id) for id, kind in enumerate(types) if kind in (NORMAL, UNUSED))
    pieces = {tokens[id] for _, id in ranks}
    return [
        (token[:cut], token[cut:])
        for token in (tokens[id] for _, id in ranks)
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]


def byte_piece(value: int) -> str:
    """Return how the piece of a byte is spelled."""
    return f"<0x{value:02X}>"
