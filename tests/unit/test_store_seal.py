"""Sealing: nonces never repeat, both forms are one, nothing opens that differs in a bit."""

import pytest

from drivers.store.seal import (
    NONCE_BYTES,
    OVERHEAD,
    NotAuthentic,
    Scratch,
    Seal,
    bind,
    new_key,
    open_rows,
    seal_rows,
)

PLAIN = b"a plain text that is sealed"
BOUND = bind("format", 1, b"x", (2, 3))


@pytest.fixture
def seal() -> Seal:
    return Seal(new_key())


def closed_into(seal: Seal) -> bytes:
    sealed, _ = Scratch().take(len(PLAIN))
    seal.close_into(PLAIN, BOUND, sealed)
    return bytes(sealed)


def test_no_nonce_comes_twice(seal: Seal) -> None:
    sealed = [seal.close(PLAIN, BOUND) for _ in range(500)]
    sealed += [closed_into(seal) for _ in range(500)]
    assert len({raw[:NONCE_BYTES] for raw in sealed}) == 1000
    assert len({raw[NONCE_BYTES:] for raw in sealed}) == 1000
    assert {len(raw) for raw in sealed} == {len(PLAIN) + OVERHEAD}


def test_both_forms_are_one(seal: Seal) -> None:
    assert seal.open(closed_into(seal), BOUND) == PLAIN
    _, plain = Scratch().take(len(PLAIN))
    seal.open_into(memoryview(seal.close(PLAIN, BOUND)), BOUND, plain)
    assert plain == PLAIN


def test_every_bit_counts(seal: Seal) -> None:
    raw = seal.close(PLAIN, BOUND)
    _, plain = Scratch().take(len(PLAIN))
    for at in range(8 * len(raw)):
        bent = bytearray(raw)
        bent[at // 8] ^= 1 << at % 8
        with pytest.raises(NotAuthentic):
            seal.open(bent, BOUND)
        with pytest.raises(NotAuthentic):
            seal.open_into(memoryview(bent), BOUND, plain)
    for length in range(len(raw)):
        with pytest.raises(NotAuthentic):
            seal.open(raw[:length], BOUND)
    with pytest.raises(NotAuthentic):
        Seal(new_key()).open(raw, BOUND)
    assert seal.open(raw, BOUND) == PLAIN


def test_no_two_lists_of_facts_are_bound_alike() -> None:
    facts: list[tuple[int | str | bytes | tuple[int, ...], ...]] = [
        (), ("ab",), ("a", "b"), ("a", "b", ""), (b"ab",), (1, 2), (12,), ("1", 2), ((1, 2),),
        ((1,), 2), (b"",), ("",), (0,),
    ]  # fmt: skip
    assert len({bind(*one) for one in facts}) == len(facts)


def test_tables_are_of_their_magic() -> None:
    key = new_key()
    raw = seal_rows(b"magic 1\n", key, [1, "two"])
    assert open_rows(b"magic 1\n", key, raw) == (1, "two")
    for magic, other in ((b"magic 2\n", key), (b"magic 1\n", new_key()), (b"", key)):
        with pytest.raises(NotAuthentic):
            open_rows(magic, other, raw)
    with pytest.raises(NotAuthentic):
        open_rows(b"magic 2\n", key, raw.replace(b"magic 1\n", b"magic 2\n"))


def test_buffers_are_kept_and_grow() -> None:
    scratch = Scratch()
    sealed, plain = scratch.take(100)
    assert (len(sealed), len(plain)) == (100 + OVERHEAD, 100)
    sealed[:3] = plain[:3] = b"abc"
    again = scratch.take(50)
    assert (len(again[0]), len(again[1])) == (50 + OVERHEAD, 50)
    assert again[0][:3] == again[1][:3] == b"abc"
    assert [len(buffer) for buffer in scratch.take(1000)] == [1000 + OVERHEAD, 1000]
