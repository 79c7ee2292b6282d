"""The yardstick: all linear layers of a model and nothing else, as plain torch does them.

`Linears` holds a set of random matrices as large as the model's, because small shapes measured in a
loop stay in the caches. `measure(M)` gives the tokens per second of one pass over the set with M
rows, the head included for `head_rows` of them: for decode every row needs logits, for prefill one.

    python -m bench.linear [--dtype bfloat16] [--threads 2]
"""

import argparse
import json
import time
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

SIZES = (8, 32, 64, 512)


@dataclass(frozen=True)
class Geometry:
    """Sizes of a Llama; the default is SmolLM2-135M."""

    layers: int = 30
    hidden: int = 576
    ffn: int = 1536
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    vocab: int = 49152

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Matrices of one layer as (outputs, inputs): q, k and v in one, gate and up in one."""
        queries = self.heads * self.head_dim
        return [
            (queries + 2 * self.kv_heads * self.head_dim, self.hidden),
            (self.hidden, queries),
            (2 * self.ffn, self.hidden),
            (self.hidden, self.ffn),
        ]


class Linears:
    """The matrices of a model."""

    def __init__(self, geometry: Geometry | None = None, dtype: str = "bfloat16") -> None:
        self._geometry = geometry or Geometry()
        self._dtype: torch.dtype = getattr(torch, dtype)
        shapes = self._geometry.shapes * self._geometry.layers
        self._layers = [torch.randn(shape).to(self._dtype) for shape in shapes]
        self._head = torch.randn(self._geometry.vocab, self._geometry.hidden).to(self._dtype)

    @torch.inference_mode()
    def seconds(self, rows: int, head_rows: int) -> float:
        """Return the time of one pass."""
        widths = {weight.shape[1] for weight in self._layers}
        inputs = {width: torch.randn(rows, width).to(self._dtype) for width in widths}
        last = torch.randn(head_rows, self._geometry.hidden).to(self._dtype)
        start = time.perf_counter()
        for weight in self._layers:
            linear(inputs[weight.shape[1]], weight)
        linear(last, self._head)
        return time.perf_counter() - start

    def measure(self, rows: int, head_rows: int | None = None, repeats: int = 7) -> float:
        """Return tokens per second, the best of `repeats` passes."""
        wanted = rows if head_rows is None else head_rows
        self.seconds(rows, wanted)
        return rows / min(self.seconds(rows, wanted) for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description="tokens per second of the bare linear layers")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    linears = Linears(dtype=options.dtype)
    for rows in SIZES:
        for head_rows in (rows, 1):
            rate = round(linears.measure(rows, head_rows), 1)
            line = {"bench": "linear", "dtype": options.dtype, "rows": rows}
            print(json.dumps({**line, "head_rows": head_rows, "tokens_s": rate}), flush=True)


if __name__ == "__main__":
    main()
