"""What makes two requests belong together: the same key, end user, header value or beginning of the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.wire.prefix import prompt_prefix

if TYPE_CHECKING:
    from gateway.routing.policies.base import PolicyContext


@dataclass(frozen=True, slots=True)
class Affinity:
    """By what requests belong together. `header`: lower case, for "header" alone. `prefix_bytes`: for "prefix" alone."""

    kind: str  # "key" | "user" | "header" | "prefix"
    header: bytes = b""
    prefix_bytes: int = 1024

    def __str__(self) -> str:
        return f"header:{self.header.decode('latin-1')}" if self.kind == "header" else self.kind


BY_KEY = Affinity("key")


def affinity_of(text: str, prefix_bytes: int = 1024) -> Affinity:
    """The affinity that a document names: `key`, `user`, `prefix` or `header:NAME`."""
    if text.startswith("header:"):
        return Affinity("header", header=text[len("header:") :].lower().encode("latin-1"))
    return Affinity(text, prefix_bytes=prefix_bytes)


def value_of(by: Affinity, key_id: str, fields: Mapping[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """What a request says by this measure; None where it says nothing.

    `key_id`: id of the API key, or of the user where a login is the credential. `fields`: the parsed body. `headers`: names in lower case.
    """
    if by.kind == "key":
        return key_id.encode() or None
    if by.kind == "user":
        user = fields.get("user")
        return user.encode() if isinstance(user, str) and user else None
    if by.kind == "prefix":
        return prompt_prefix(fields, by.prefix_bytes)
    return next((value.strip() for name, value in headers if name == by.header and value.strip()), None)


def identity(context: PolicyContext, by: Affinity) -> bytes:
    """What a request says by this measure, or else its key: every request belongs somewhere."""
    value = context.affinity(by)
    if value is None:
        value = context.affinity(BY_KEY)
    return value if value is not None else b""
