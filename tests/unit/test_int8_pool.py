"""Vectors in 8 bit: rounded each by itself, at any size, and what is no number stays none."""

import math

import pytest
import torch

from drivers.int8_pool import Int8Pool
from drivers.pool import DTYPES, KvPool, PoolShape

L, BS, H, D = 3, 4, 2, 6
BOTH = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def pool_of(dtype: torch.dtype, int8: bool = True, num_blocks: int = 8) -> KvPool:
    shape = PoolShape(num_blocks, L, BS, H, D, dtype, int8)
    return Int8Pool(shape) if int8 else KvPool(shape)


def kept(pool: KvPool, layer: int, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Store vectors at the slots of blocks 1, 2, ...; return what is gathered, [2, T, H, D]."""
    count = len(keys)
    pool.store(layer, pool.key_slots(torch.arange(BS, BS + count)), keys, values)
    blocks = torch.arange(1, 1 + -(-count // BS))
    out = torch.full((2, len(blocks) * BS, H * D), math.nan, dtype=keys.dtype)
    pool.gather(layer, pool.key_spans(blocks), out)
    return out.view(2, -1, H, D)[:, :count]


@BOTH
def test_vectors_are_kept_to_half_a_step_whatever_their_size(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    sizes = 10.0 ** torch.arange(-30, 31, 5)
    vectors = (torch.randn(2, len(sizes), H, D) * sizes[:, None, None]).to(dtype)
    got = kept(pool_of(dtype), 1, *vectors.view(2, -1, H * D))
    exact, got = vectors.double(), got.double()
    largest = exact.abs().amax(-1, keepdim=True)
    rounding = 2.0**-8 if dtype is torch.bfloat16 else 0.0  # of the product
    assert ((got - exact).abs() <= largest * (0.503 / 127 + rounding)).all()
    assert (got.abs().amax(-1, keepdim=True) >= largest * 0.99).all(), "nothing is cut off"


@BOTH
def test_what_can_be_kept_exactly_is(dtype: torch.dtype) -> None:
    """Multiples of a power of two, and zero vectors beside them."""
    vectors = torch.tensor([127.0, -127, 64, 1, 0, -3]).repeat(2, 3, H, 1)
    vectors[:, 0] *= 2.0**-20
    vectors[:, 1, 0] = 0
    vectors[:, 2] *= 2.0**40
    got = kept(pool_of(dtype), 0, *vectors.to(dtype).view(2, -1, H * D))
    assert torch.equal(got, vectors.to(dtype))


@BOTH
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_spoils_its_own_vector_only(dtype: torch.dtype, wrong: float) -> None:
    vectors = torch.ones(2, 5, H, D, dtype=dtype)
    vectors[0, 2, 1, 3] = wrong
    got = kept(pool_of(dtype), 2, *vectors.view(2, -1, H * D))
    spoilt = ~got.isfinite().any(-1)
    assert spoilt.nonzero().tolist() == [[0, 2, 1]]
    assert got[0, 2, 1, 3].isnan()


def test_a_vector_does_not_depend_on_those_beside_it() -> None:
    torch.manual_seed(1)
    keys, values = torch.randn(2, 9, H * D)
    together, alone = pool_of(torch.float32), pool_of(torch.float32)
    kept(together, 0, keys, values)
    for token in range(9):
        slot = alone.key_slots(torch.tensor([BS + token]))
        alone.store(0, slot, keys[token : token + 1], values[token : token + 1])
    assert alone.checksum(range(1, 4)) == together.checksum(range(1, 4))


def test_layers_and_blocks_lie_where_they_would_otherwise() -> None:
    """The same stores as into a pool of floats, of numbers that both keep exactly."""
    torch.manual_seed(5)
    pools = [pool_of(torch.float32, int8) for int8 in (True, False)]
    out = [torch.empty(2, 8 * BS, H * D) for _ in pools]
    for layer in range(L):
        slots = torch.randperm(7 * BS)[:11] + BS
        vectors = torch.randint(-126, 127, (2, 11, H, D)).float()
        vectors[..., 0] = 127
        for pool in pools:
            pool.store(layer, pool.key_slots(slots), *vectors.view(2, 11, -1))
    blocks = torch.tensor([3, 1, 7, 7, 2, 0, 4, 5])
    for layer in range(L):
        for pool, target in zip(pools, out, strict=True):
            pool.gather(layer, pool.key_spans(blocks), target)
        assert torch.equal(*out)


def test_its_bytes() -> None:
    pool = pool_of(torch.bfloat16)
    assert pool.shape.block_bytes == L * 2 * BS * H * (D + 2)
    assert pool.pool_bytes == 8 * pool.shape.block_bytes == len(pool.memory.bytes(0, 8))
    assert pool.shape.gathered_bytes == 2 * BS * H * D * 2
