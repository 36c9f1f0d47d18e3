"""What /readyz of our own server says, for the supervisor that waits for it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """`doing`: what is not ready yet, in words; empty where the answer names nothing."""

    ready: bool
    doing: str


async def readiness(host: str, port: int, tls: ssl.SSLContext | None) -> Readiness | None:
    """None: nobody answers, or not in time. A plain request: to load an HTTP client would cost more than all that the supervisor does."""
    try:
        async with asyncio.timeout(_WITHIN_S):
            return _read(await _answer(host, port, tls))
    except (OSError, TimeoutError, ValueError):
        return None


async def _answer(host: str, port: int, tls: ssl.SSLContext | None) -> bytes:
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        return await reader.read()  # to its end, which is the connection's
    finally:
        writer.close()


def _read(answer: bytes) -> Readiness:
    """Raises ValueError for what is no answer of ours."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, value = int(head[9:12]), json.loads(body)
    checks = value.get("checks") if isinstance(value, dict) else None
    parts = [str(part) for name, part in checks.items() if name != "revision"] if isinstance(checks, dict) else []
    return Readiness(status == 200, ", ".join(part for part in parts if part not in ("ready", "")))
