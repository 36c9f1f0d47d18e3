"""API keys: `sk-gw-<public id>-<secret>`.

The public id is 12 characters of [a-z0-9] and names the key in lists, logs and records. The secret is 43 characters of [A-Za-z0-9]
drawn uniformly: 256 bits (43 * log2(62) = 256.03). It has no `-` and no `_`, so that the parts of a key are unambiguous.
Only the SHA-256 of the whole text is kept; with 256 random bits a slow hash would add nothing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from typing import Final

PREFIX: Final = "sk-gw-"
_ID_ALPHABET = string.ascii_lowercase + string.digits
_SECRET_ALPHABET = string.ascii_letters + string.digits
_ID_CHARS: Final = 12
_SECRET_CHARS: Final = 43
_SHAPE = re.compile(rb"sk-gw-[a-z0-9]{12}-[A-Za-z0-9]{43}\Z")


def mint(public_id: str | None = None) -> tuple[str, str]:
    """A new key: (public id, text). `public_id` is given where a key is rotated and keeps its id."""
    public_id = public_id or _draw(_ID_ALPHABET, _ID_CHARS)
    return public_id, f"{PREFIX}{public_id}-{_draw(_SECRET_ALPHABET, _SECRET_CHARS)}"


def digest(key: str | bytes) -> bytes:
    """SHA-256 of the whole text, 32 bytes."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


def looks_like_key(credential: bytes) -> bool:
    """Has `credential` the shape of a key that this gateway mints?"""
    return _SHAPE.match(credential) is not None


def _draw(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
