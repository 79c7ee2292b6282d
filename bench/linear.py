"""The yardstick: all linear layers of a model and nothing else, as plain torch does them.

`Linears` holds a set of random matrices as large as the model's, because small shapes measured in a
loop stay in the caches. A pass has M rows, and the head for some of them: for decode every row
needs logits, for prefill only the last. It gets the threads and the malloc that the driver gets.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from bench.record import Result
from drivers.cpu import machine

SIZES = (8, 32, 64, 512)
CHUNK = 512
REPEATS = 7


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
    """The matrices of a model; an engine of `bench.pairs`."""

    def __init__(self, geometry: Geometry | None = None, dtype: str = "bfloat16") -> None:
        machine.set_threads(0, False)
        machine.keep_freed_memory()
        self._geometry = geometry or Geometry()
        self._dtype: torch.dtype = getattr(torch, dtype)
        shapes = self._geometry.shapes * self._geometry.layers
        self._layers = [torch.randn(shape).to(self._dtype) for shape in shapes]
        self._head = torch.randn(self._geometry.vocab, self._geometry.hidden).to(self._dtype)

    def prefill(self, prompt: int) -> float:
        """Return the seconds of the chunks of a prompt."""
        return sum(self.seconds(min(CHUNK, prompt - start), 1) for start in range(0, prompt, CHUNK))

    def decode(self, batch: int, steps: int) -> float:
        """Return the seconds of a step."""
        return sum(self.seconds(batch, batch) for _ in range(steps)) / steps

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


def run() -> Iterator[Result]:
    """Measure passes of several sizes, with the head for all rows."""
    linears = Linears()
    for rows in SIZES:
        linears.seconds(rows, rows)
        best = min(linears.seconds(rows, rows) for _ in range(REPEATS))
        yield Result("linear", f"M={rows}", rows / best, "tokens/s")
