"""Hashes that decide: the same in every process and on every host, whatever the order of the targets.

A text is hashed once to 64 bits; each candidate has a seed of its own, and mixing the two gives as many independent numbers as there are
candidates for little more than the price of one. The mixing is the finalizer of SplitMix64.
"""

from __future__ import annotations

import math
from hashlib import blake2b

_MASK = (1 << 64) - 1
_UNIT = 2.0**-53


def digest(value: bytes) -> int:
    """64 bits of it."""
    return int.from_bytes(blake2b(value, digest_size=8).digest(), "big")


def salted(salt: str, value: bytes) -> int:
    """64 bits that tell nothing of those under another salt."""
    return digest(salt.encode() + b"\0" + value)


def fraction(hashed: int) -> float:
    """Uniform in [0, 1)."""
    return (hashed >> 11) * _UNIT


def clock(hashed: int, seed: int, weight: int) -> float:
    """When this candidate's exponential clock rings for this hash (weighted rendezvous hashing): the first one to ring is the choice.

    Each rings first for its share of all hashes. A candidate that leaves hands on only its own; one whose weight grows only gains.
    """
    z = hashed ^ seed
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    z ^= z >> 31
    return -math.log(((z >> 11) + 1) * _UNIT) / weight
