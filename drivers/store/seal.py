"""Seal: AES-256-GCM with random nonces of 96 bits (NIST SP 800-38D).

What is sealed is bound to associated data: the facts that must be the same when it is opened. They
are packed as one msgpack array, so no two lists of facts pack alike.
"""

import os
from typing import Any

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from drivers.store.files import Buffer

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
OVERHEAD = NONCE_BYTES + TAG_BYTES
"""Bytes that a sealed text is longer than a plain one."""


class NotAuthentic(Exception):
    """These bytes were not sealed under this key with this associated data."""


def new_key() -> bytes:
    """Return a random key."""
    return os.urandom(KEY_BYTES)


def bind(*facts: int | str | bytes | tuple[int, ...]) -> bytes:
    """Return facts as associated data."""
    raw: bytes = msgpack.packb(facts, use_bin_type=True)
    return raw


class Seal:
    """One key. Its owner draws a new one long before the nonces could repeat (2**32 uses)."""

    def __init__(self, key: bytes) -> None:
        self._gcm = AESGCM(key)

    def close(self, plain: Buffer, bound: bytes) -> bytes:
        """Return nonce, ciphertext and tag."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._gcm.encrypt(nonce, plain, bound)

    def open(self, sealed: Buffer, bound: bytes) -> bytes:
        """Return what was sealed; NotAuthentic."""
        view = memoryview(sealed)
        if len(view) < OVERHEAD:
            raise NotAuthentic
        try:
            return self._gcm.decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], bound)
        except InvalidTag:
            raise NotAuthentic from None

    def close_into(self, plain: Buffer, bound: bytes, sealed: memoryview) -> None:
        """Write nonce, ciphertext and tag, OVERHEAD bytes more than `plain`, into a buffer."""
        sealed[:NONCE_BYTES] = nonce = os.urandom(NONCE_BYTES)
        self._gcm.encrypt_into(nonce, plain, bound, sealed[NONCE_BYTES:])

    def open_into(self, sealed: memoryview, bound: bytes, plain: memoryview) -> None:
        """Write what was sealed into a buffer; NotAuthentic, and then it holds rubbish."""
        try:
            self._gcm.decrypt_into(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound, plain)
        except InvalidTag:
            raise NotAuthentic from None


class Scratch:
    """Two buffers for blocks, kept: new memory for each of them would cost as much as sealing."""

    def __init__(self) -> None:
        self._sealed = memoryview(bytearray())
        self._plain = memoryview(bytearray())

    def take(self, plain_bytes: int) -> tuple[memoryview, memoryview]:
        """Return buffers for a sealed block and for a plain one; those taken before are void."""
        if len(self._plain) < plain_bytes:
            self._sealed = memoryview(bytearray(plain_bytes + OVERHEAD))
            self._plain = memoryview(bytearray(plain_bytes))
        return self._sealed[: plain_bytes + OVERHEAD], self._plain[:plain_bytes]


def seal_rows(magic: bytes, key: bytes, rows: Any) -> bytes:
    """Return a small table as a sealed file that begins with `magic`."""
    return magic + Seal(key).close(msgpack.packb(rows, use_bin_type=True), bind(magic))


def open_rows(magic: bytes, key: bytes, raw: bytes) -> Any:
    """Return the table of such a file; NotAuthentic, also if it begins with something else."""
    if not raw.startswith(magic):
        raise NotAuthentic
    plain = Seal(key).open(memoryview(raw)[len(magic) :], bind(magic))
    return msgpack.unpackb(plain, use_list=False, strict_map_key=True)
