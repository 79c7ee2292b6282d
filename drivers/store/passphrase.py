"""Passphrase: bytes in a JSON document that only who knows a passphrase can read.

    {"format": ..., "n": .., "r": .., "p": .., "salt": .., "sealed": ..}

The passphrase gives a key by scrypt (RFC 7914), which seals the bytes. Light to import;
cryptography is loaded when used.
"""

import base64
import hashlib
import json
import os
from typing import Any, NamedTuple

SALT_BYTES = 16
COST = (1 << 17, 8, 1)
"""scrypt's n, r and p: 128 MiB, about half a second."""
MOST = (1 << 20, 8, 4)
"""What a document may ask of this machine: 1 GiB."""


class NotSealed(Exception):
    """This is no document of that format."""


class WrongPassphrase(Exception):
    """The passphrase is another one, or the document is damaged."""


class Sealed(NamedTuple):
    """A document that has been read, and not yet opened."""

    form: str
    salt: bytes
    cost: tuple[int, int, int]
    sealed: bytes


def seal(form: str, plain: bytes, passphrase: str, cost: tuple[int, int, int] = COST) -> bytes:
    """Return a document of the format `form`."""
    from drivers.store.seal import Seal, bind

    salt = os.urandom(SALT_BYTES)
    head = {"format": form, "n": cost[0], "r": cost[1], "p": cost[2], "salt": salt.hex()}
    sealed = Seal(_stretched(passphrase, salt, cost)).close(plain, bind(form, salt, cost))
    raw = json.dumps(head | {"sealed": base64.b64encode(sealed).decode()}, indent=1) + "\n"
    return raw.encode()


def read(form: str, raw: bytes) -> Sealed:
    """Read a document, and check what it would cost to open it; NotSealed."""
    try:
        said: dict[str, Any] = json.loads(raw)
        cost = said["n"], said["r"], said["p"]
        if said["format"] != form or any(type(number) is not int for number in cost):
            raise NotSealed
        salt, sealed = bytes.fromhex(said["salt"]), base64.b64decode(said["sealed"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotSealed from None
    n, r, p = cost
    fits = all(1 <= number <= most for number, most in zip(cost, MOST, strict=True))
    if not fits or n < 2 or n & (n - 1) or len(salt) != SALT_BYTES:
        raise NotSealed
    return Sealed(form, salt, (n, r, p), sealed)


def unseal(document: Sealed, passphrase: str) -> bytes:
    """Return what was sealed; WrongPassphrase."""
    from drivers.store.seal import NotAuthentic, Seal, bind

    form, salt, cost, sealed = document
    try:
        return Seal(_stretched(passphrase, salt, cost)).open(sealed, bind(form, salt, cost))
    except NotAuthentic:
        raise WrongPassphrase from None


def _stretched(passphrase: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    most = 128 * r * (n + p + 2) + (1 << 16)  # what these numbers take, and a little
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=n, r=r, p=p, maxmem=most, dklen=32)
