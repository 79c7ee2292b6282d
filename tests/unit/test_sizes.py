"""What is said of a model before it is loaded, and what the driver counts with torch."""

import pytest
import torch

from drivers import sizes
from drivers.models.weights import measure
from drivers.pool import DTYPES, PoolShape
from tests.helpers.tiny_model import CONFIGS


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_and_blocks_are_those_that_torch_makes(kind: str, dtype: str) -> None:
    """Counted from numbers alone, to the byte what accelerate counts on the modules."""
    config, kept = CONFIGS[kind], DTYPES[dtype]
    needs = sizes.needs(config, sizes.ITEMSIZES[dtype], 16, 300, False)
    assert needs.weights == measure(config, kept, 300, 1 << 40).weights_bytes
    layers, heads, dim = config.num_layers, config.num_kv_heads, config.head_dim
    assert needs.block == PoolShape(1, layers, 16, heads, dim, kept).block_bytes
    small = sizes.needs(config, sizes.ITEMSIZES[dtype], 16, 300, False, "int8")
    assert small.block == PoolShape(1, layers, 16, heads, dim, kept, True).block_bytes
    assert small.weights == needs.weights and small.work > needs.work


def test_dtypes_are_those_of_the_driver() -> None:
    assert {name: kind.itemsize for name, kind in DTYPES.items()} == sizes.ITEMSIZES
    assert torch.bfloat16.itemsize == 2


def test_room() -> None:
    assert sizes.Needs(100, 7, 50).room(170) == 20
    assert sizes.Needs(100, 7, 50).room(150) == sizes.Needs(100, 7, 50).room(0) == 0
    assert sizes.Needs(100, 7, 50).room(170, 15) == 5
    assert sizes.Needs(100, 7, 50).room(170, 25) == 0
