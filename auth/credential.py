"""Where a request's credential stands: the one resolver for every route, relayed or not.

`Authorization: Bearer`, `x-api-key` and `api-key` are equal. Two different credentials in one request are refused: otherwise one
component could judge the first and another use the second.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from auth.errors import CredentialInvalid, CredentialMissing

_NAMES: Final = frozenset((b"authorization", b"x-api-key", b"api-key"))


class Shown:
    """The API key that a connection showed last, and its digest: the next request on it mostly shows the same. Goes with the connection."""

    __slots__ = ("credential", "digest")

    def __init__(self) -> None:
        self.credential = b""
        self.digest = b""


def credential_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The bare credential from headers with lower-case names. Raises CredentialMissing, CredentialInvalid."""
    found: bytes | None = None
    for name, value in headers:
        if name not in _NAMES:
            continue
        if name == b"authorization":
            if value[:7].lower() != b"bearer ":
                raise CredentialInvalid("malformed")
            value = value[7:]
        value = value.strip()
        if found is None:
            found = value
        elif found != value:
            raise CredentialInvalid("conflicting")
    if not found:
        raise CredentialMissing
    return found


def looks_like_token(credential: bytes) -> bool:
    """A JWT: three parts between two dots, the first a JSON object in base64url. An API key never has a dot."""
    return credential.startswith(b"eyJ") and credential.count(b".") == 2
