"""The tokenizer made of a GGUF file gives the ids that llama.cpp gives."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from drivers.models.errors import ModelError
from drivers.models.gguf import GgufFile
from drivers.models.tokenizer import tokenizer_json
from syscalls.text import TextModel
from tests.helpers.gguf_writer import STRING, U32, array, llama, llama_file, strings, text

RECORDED = json.loads(
    (Path(__file__).parents[1] / "data/tokenizer_smollm2.json").read_text(encoding="utf-8")
)
TOKENS = "tokenizer.ggml.tokens"
MERGES = "tokenizer.ggml.merges"
TYPES = "tokenizer.ggml.token_type"


@pytest.fixture(scope="module")
def model(smollm2: Path) -> TextModel:
    (path,) = smollm2.glob("*.gguf")
    with GgufFile(path) as file:
        return TextModel(tokenizer_json(file), None, {})


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., str]:
    """Return a function that gives the tokenizer of a small file with other metadata."""

    def make(*changes: tuple[str, bytes], **shape: int) -> str:
        path = tmp_path / "m.gguf"
        path.write_bytes(llama_file(llama() | dict(changes), **shape))
        with GgufFile(path) as file:
            return tokenizer_json(file)

    return make


# --- the ids of llama.cpp -------------------------------------------------------------------------


def test_the_recording_is_of_this_model(smollm2: Path) -> None:
    manifest = json.loads((smollm2 / "manifest.json").read_text())
    assert RECORDED["model"]["sha256"] == manifest["sha256"]
    assert len(RECORDED["cases"]) >= 60


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: ascii(case["text"])[:24])
def test_a_nasty_string(model: TextModel, case: dict[str, Any]) -> None:
    assert model.encode(case["text"]) == case["plain"]
    assert model.encode(case["text"], special=True) == case["special"]


def test_every_character_of_most_scripts(model: TextModel) -> None:
    wrong = []
    for first, last, digest in RECORDED["sweep"]:
        chars = map(chr, range(first, last + 1))
        ids = model.encode("".join(f"x{char}'s {char} y{char}{char}\n" for char in chars))
        if hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16] != digest:
            wrong.append(f"U+{first:04X} to U+{last:04X}")
    assert wrong == []


def test_the_installed_tokenizer_is_the_one_made(model: TextModel, smollm2: Path) -> None:
    """A model that an older llmos installed may have another: `llmos pull` again after removal."""
    installed = TextModel((smollm2 / "tokenizer.json").read_text(encoding="utf-8"), None, {})
    for case in RECORDED["cases"]:
        assert installed.encode(case["text"]) == case["plain"]


def test_bytes_without_a_token(made: Callable[..., str]) -> None:
    """They give no id, and what stands around them is not merged over them."""
    from syscalls.text import byte_alphabet

    tokens = ["<|im_start|>", "<|im_end|>", *byte_alphabet(), "he", "ll"]
    tokens[2 + ord("-")] = "another"
    small = TextModel(made(strings(TOKENS, tokens)), None, {})
    assert small.encode("he") == [258]
    assert small.encode("h-e") == [2 + ord("h"), 2 + ord("e")]
    whole = TextModel(made(), None, {})
    assert whole.decode(whole.encode("h-e")) == "h-e"


# --- files that are refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (text("tokenizer.ggml.model", "llama"), "ENOTSUP", "'llama'"),
        (text("tokenizer.ggml.pre", "qwen2"), "ENOTSUP", "'qwen2'"),
        (text("tokenizer.ggml.pre", "smollm" * 10_000), "ENOTSUP", "..."),
        (array("tokenizer.ggml.pre", U32, 9, bytes(36)), "ENOTSUP", "[0, 0, 0, 0, ...]"),
        (array(TOKENS, U32, 1, bytes(4)), "ECORRUPT", f"{TOKENS} is no list of strings"),
        (text(TOKENS, "abc"), "ECORRUPT", "no list of strings"),
        (strings(TOKENS, []), "ECORRUPT", "0 tokens, but the embedding has 260 rows"),
        (strings(TOKENS, [str(n) for n in range(261)]), "ECORRUPT", "261 tokens"),
        (strings(TOKENS, ["a", "b", "a", "a"]), "ECORRUPT", "2 tokens are there twice"),
        (array(TYPES, U32, 3, pack("<3I", 1, 1, 1)), "ECORRUPT", "260 tokens, but 3 types"),
        (text(TYPES, "none"), "ECORRUPT", "260 tokens, but 'none' types"),
        (strings(MERGES, ["he"]), "ECORRUPT", "not a pair"),
        (strings(MERGES, ["h q"]), "ECORRUPT", "merges do not fit the tokens"),
        (array(MERGES, STRING, 0, b""), "", ""),
    ],
)
def test_a_tokenizer(
    made: Callable[..., str], change: tuple[str, bytes], code: str, said: str
) -> None:
    if not code:
        assert TextModel(made(change), None, {}).encode("he") == [2 + ord("h"), 2 + ord("e")]
        return
    with pytest.raises(ModelError) as caught:
        made(change)
    assert caught.value.code == code and caught.value.hint
    assert said in caught.value.message and len(caught.value.message) < 300


def test_a_vocabulary_larger_than_the_embedding(made: Callable[..., str]) -> None:
    with pytest.raises(ModelError, match="260 tokens, but the embedding has 259 rows"):
        made(rows=259)


@pytest.mark.parametrize("kind", [2, 3])
def test_special_tokens_are_tokens_only_where_asked_for(
    made: Callable[..., str], kind: int
) -> None:
    types = array(TYPES, U32, 260, pack("<260I", kind, kind, *[1] * 258))
    small = TextModel(made(types), None, {})
    assert small.encode("<|im_end|>he", special=True) == [1, 258]
    assert small.encode("<|im_end|>")[0] == 2 + ord("<")


def test_added_words_are_always_tokens(made: Callable[..., str]) -> None:
    types = array(TYPES, U32, 260, pack("<260I", 3, 4, *[1] * 258))
    assert TextModel(made(types), None, {}).encode("<|im_end|>") == [1]
