"""What a model takes of memory on a CPU, from its numbers alone. Torch-free.

The driver refuses by this arithmetic what does not fit, and commands say by it beforehand whether a
model will. Sizes in bytes; `itemsize` is that of an element of the dtype that weights and KV have.
"""

from math import prod
from typing import TYPE_CHECKING, NamedTuple

from drivers.models.tensors import tensor_shapes
from drivers.slots import COUNT_BYTES

if TYPE_CHECKING:
    from drivers.models.config import ModelConfig

ITEMSIZES = {"bfloat16": 2, "float32": 4}
"""Of the dtypes that a CPU computes in."""
KV_DTYPES = ("int8",)
"""That it keeps KV in, besides the one that it computes in."""
SCALE_BYTES = 2
"""Of the scale behind each vector that is kept in 8 bit."""

# limits of one step
MAX_TOKENS = 2048
MAX_SEQS = 256
ROWS_AT_ONCE = 32  # a row takes some 20 bytes per id of the vocabulary while it is drawn

# how attention cuts its work
MAX_TILE = 128  # a power of two, as its halves are: tiles of other sizes are a fifth slower
MIN_TILE = 16
SCORES_BYTES = 16 << 20  # of a tile's scores
GATHER_BYTES = 8 << 20  # of a decode group's keys and values
ORDERED_TILE = 16
SPAN_BLOCKS = 4

SLICE_BYTES = 4 << 20
"""Of a tensor in float32, as it is read; rows are never cut."""


class Needs(NamedTuple):
    """Of one model: weights, one block of KV, and temporaries of loading or of a step.

    `host_bytes` of a host tier come on top: memory of the same machine.
    """

    weights: int
    block: int
    work: int

    def room(self, free: int, host_bytes: int = 0) -> int:
        """Return what is left for the pool of so much free memory, 0 if nothing is."""
        return max(free - host_bytes - self.weights - self.work, 0)


def needs(
    config: "ModelConfig",
    itemsize: int,
    block_size: int,
    max_ctx: int,
    deterministic: bool,
    kv_dtype: str = "",
) -> Needs:
    """Return what a model takes that is loaded like this."""
    int8 = kv_dtype == "int8"
    return Needs(
        weights_bytes(config, itemsize, max_ctx),
        block_size * kv_token_bytes(config, itemsize, int8),
        work_bytes(config, itemsize, block_size, max_ctx, deterministic, int8),
    )


def weights_bytes(config: "ModelConfig", itemsize: int, max_ctx: int) -> int:
    """Return what weights take, and the tables of positions, which may be as large."""
    elements = sum(prod(shape) for shape in tensor_shapes(config).values())
    if config.tied_embeddings:
        elements += config.vocab_size * config.hidden_size  # the head has a copy, packed
    spread = 0
    if config.qk_norm:  # kept for every head, in float32
        heads = config.num_heads + config.num_kv_heads
        spread = config.num_layers * config.head_dim * (4 * heads - 2 * itemsize)
    return elements * itemsize + spread + turn_bytes(config, max_ctx)


def turn_bytes(config: "ModelConfig", max_ctx: int) -> int:
    """Return what the tables of positions take."""
    return num_turn_tables(config) * max_ctx * config.head_dim * 4


def num_turn_tables(config: "ModelConfig") -> int:
    """Return how many rotary tables a model has, each of max_ctx * head_dim float32."""
    slides = any(config.slides(layer) for layer in range(config.num_layers))
    return 2 if slides and config.local_rope_theta else 1


def kv_token_bytes(config: "ModelConfig", itemsize: int, int8: bool = False) -> int:
    """Return what one position takes in all layers."""
    vector = config.head_dim + SCALE_BYTES if int8 else config.head_dim * itemsize
    return config.num_layers * 2 * config.num_kv_heads * vector


def loading_bytes(config: "ModelConfig", itemsize: int) -> int:
    """Return what loading takes beside the weights: a matrix as it is read, and a slice.

    A matrix is there twice while it is packed. An embedding that is also the head stays as it is
    read, so that one is a weight already; queries and keys are copied once more to be in pairs.
    """
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    head = 0 if config.tied_embeddings else config.vocab_size
    rows = max(head, 2 * config.intermediate_size, 2 * (queries + 2 * keys))
    down = config.hidden_size * max(config.intermediate_size, queries)
    widest = max(config.hidden_size, config.intermediate_size, queries)
    # the library that dequantizes makes three copies of a slice
    slices = 4 * max(SLICE_BYTES, 4 * widest)
    return max(rows * config.hidden_size, down) * itemsize + slices


def work_bytes(
    config: "ModelConfig",
    itemsize: int,
    block_size: int,
    max_ctx: int,
    deterministic: bool,
    int8: bool = False,
) -> int:
    """Return the memory for temporaries, of loading or of a step, whichever needs more."""
    size, hidden, ffn = itemsize, config.hidden_size, config.intermediate_size
    loading = loading_bytes(config, size)
    angles = 2 * max_ctx * config.head_dim  # while a table of positions is made
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    # queries and keys are turned as complex numbers of float32, and before that they may be normed
    floats = 3 if config.qk_norm else 2
    before = (3 * hidden + queries + 2 * keys) * size + (queries + keys) * (floats * 4 + size)
    after = (4 * ffn + (4 if config.post_norms else 2) * hidden) * size
    # an adjusted row is drawn from a copy; what it is adjusted by is kept, per slot
    logits = (MAX_SEQS * size + ROWS_AT_ONCE * 36) * config.vocab_size
    counts = MAX_SEQS * min(max_ctx, config.vocab_size) * COUNT_BYTES
    attention = (ordered_bytes if deterministic else attention_bytes)(
        config, size, block_size, max_ctx, int8
    )
    if int8:  # keys and values of a step while they are rounded
        attention += MAX_TOKENS * 2 * keys * (size + 8 + 1)
    step = MAX_TOKENS * max(before, after) + logits + attention
    return (64 << 20) + angles + counts + max(loading, step)


def attention_bytes(
    config: "ModelConfig", itemsize: int, block_size: int, max_ctx: int, int8: bool = False
) -> int:
    """Return what attention takes in any step at most, of an arena and beside it."""
    length = -(-max_ctx // block_size) * block_size
    dim = config.num_kv_heads * config.head_dim
    gathered = max(length, GATHER_BYTES // (2 * dim * itemsize))
    scores = max(scores_numel(config.num_heads, length, itemsize), gathered * config.num_heads)
    wide = min(MAX_SEQS, gathered // block_size) * config.num_heads * dim
    tiles = MAX_TILE * config.num_heads * config.head_dim
    elements = 2 * (gathered + length) * dim + scores + 2 * (wide + tiles)
    return elements * itemsize + _packed_bytes(config, gathered, int8)


def _packed_bytes(config: "ModelConfig", length: int, int8: bool) -> int:
    """Return what so many positions take as they are kept, before attention has them."""
    return int8 * length * kv_token_bytes(config, 1, True) // config.num_layers


def ordered_bytes(
    config: "ModelConfig", itemsize: int, block_size: int, max_ctx: int, int8: bool = False
) -> int:
    """Return the same of attention in deterministic mode."""
    length = max_ctx + ORDERED_TILE + block_size * SPAN_BLOCKS
    dim = config.num_kv_heads * config.head_dim
    # matmuls may copy keys and values, which do not lie head by head
    work = length * (4 * dim + ORDERED_TILE * config.num_heads) * itemsize
    return work + _packed_bytes(config, length, int8)


def scores_numel(heads: int, kv_len: int, itemsize: int) -> int:
    """Return how many scores a tile of a prefill has at most."""
    return max(SCORES_BYTES // itemsize, MIN_TILE * heads * kv_len)
