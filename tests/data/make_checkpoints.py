"""Write reference_checkpoints.npz: the logits that transformers computes of random folders.

The folders are those of tests/helpers/checkpoints.py, written to a temporary place and opened by
transformers as anybody's model is; stored are the logits in float32 at some positions of a few
prompts. The largest of them and how far they spread are printed: a model whose logits do not
depend on the prompt would prove nothing.

Neither the project nor its tests depend on transformers: run this in an environment of its own with
torch==2.13.0, transformers==5.23.*, accelerate and numpy, from the repository's root:

    PYTHONPATH=. python tests/data/make_checkpoints.py
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.helpers.checkpoints import CASES, REFERENCE, ROWS, prompts, write


@torch.inference_mode()
def logits_of(folder: Path, images: bool) -> np.ndarray:
    """Return the logits of all rows that are stored, [rows, vocab]."""
    opener = AutoModelForImageTextToText if images else AutoModelForCausalLM
    model, loading = opener.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    missing = [name for name in loading["missing_keys"] if "vision" not in name]
    missing = [name for name in missing if "multi_modal_projector" not in name]
    if missing or loading["unexpected_keys"] or loading["mismatched_keys"]:
        sys.exit(f"{folder.name}: {loading}")
    rows = []
    for prompt, positions in zip(prompts(), ROWS, strict=True):
        logits = model.eval()(torch.tensor([prompt]), use_cache=False).logits[0]
        rows += [logits[position] for position in positions]
    return torch.stack(rows).numpy()


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, case in CASES.items():
            folder = write(Path(scratch) / name, name)
            found[name] = logits_of(folder, "text_config" in case.config)
            spread = np.abs(found[name] - found[name].mean(0)).mean()
            print(f"{name:14} largest {np.abs(found[name]).max():6.2f}, spread {spread:.2f}")
    np.savez(REFERENCE, **found)
    size = REFERENCE.stat().st_size
    print(f"{REFERENCE.name}: {size} bytes, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
