"""One URL that is told of events: JSON by POST, signed where there is a secret. Any 2xx has taken it.

Header `x-gateway-signature: t=UNIX_SECONDS,v1=HEX`: HMAC-SHA256 with the secret over the seconds, a dot, and the body as it was sent. Who
receives it compares it, and refuses what is more than some minutes old. `x-gateway-event`: an id that is the same in every attempt.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from auth.outbound import UNANSWERED, Pinned, failure
from backends.custom import verifying

TIMEOUT_S = 10.0


class Webhook:
    """Connects anew for each event, to an address that was looked at (auth.outbound); follows no redirects. `clock`: Unix seconds."""

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        ca_file: Path | None = None,
        allow_link_local: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        verify: ssl.SSLContext | bool = verifying(ca_file) if urlsplit(url).scheme == "https" else False
        inner = httpx.AsyncHTTPTransport(verify=verify, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
        pinned = Pinned(inner, allow_link_local=allow_link_local)
        self._http = httpx.AsyncClient(transport=pinned, trust_env=False, follow_redirects=False, timeout=TIMEOUT_S)
        self._url = url
        self._secret = secret.encode()
        self._clock = clock

    async def send(self, event_id: str, body: str) -> str:
        """ "" if it was taken, else one word for why not."""
        content = body.encode()
        headers = {"content-type": "application/json", "user-agent": "model-gateway", "x-gateway-event": event_id}
        if self._secret:
            headers["x-gateway-signature"] = signature(self._secret, int(self._clock()), content)
        try:
            async with (
                asyncio.timeout(2 * TIMEOUT_S),  # each step has its own limit; who trickles is cut off here
                self._http.stream("POST", self._url, content=content, headers=headers) as answer,
            ):
                return "" if answer.is_success else str(answer.status_code)  # the body is nobody's: its length does not matter
        except UNANSWERED as error:
            return failure(error)

    async def close(self) -> None:
        await self._http.aclose()


def signature(secret: bytes, at_s: int, body: bytes) -> str:
    """The value of the header."""
    return f"t={at_s},v1={hmac.new(secret, f'{at_s}.'.encode() + body, hashlib.sha256).hexdigest()}"
