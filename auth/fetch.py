"""JSON from servers whose addresses an operator configured, or that such a server named: an OpenID provider and its endpoints.

Each host name is resolved once per request, its addresses are judged, and the connection goes to the address that was judged: a name
that resolves differently a moment later changes nothing. No redirects, no proxy from the environment, no cookies, no connection kept,
bounded time and size.

Implements `Fetches` of auth.provider. `reason` of its `FetchFailed`: timeout, unreachable, forbidden, large, garbage, failed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from auth.outbound import UNANSWERED, Pinned, failure
from auth.provider import Answer, FetchFailed

MAX_BYTES = 1_000_000
STEP_S = 5.0  # for each of connecting, sending, waiting for bytes
WHOLE_S = 10.0


class Fetcher:
    """One per process. Used from one event loop."""

    def __init__(
        self, *, tls: ssl.SSLContext | None = None, allow_link_local: bool = False, step_s: float = STEP_S, whole_s: float = WHOLE_S
    ):
        """`tls`: for https; None: the authorities that the system trusts."""
        self._tls = tls
        self._allow_link_local = allow_link_local
        self._step_s = step_s
        self._whole_s = whole_s
        self._client: httpx.AsyncClient | None = None

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Raises `FetchFailed`."""
        return await self._ask("GET", url, headers or {}, None)

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Answer:
        """Raises `FetchFailed`."""
        return await self._ask("POST", url, headers or {}, dict(form))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _ask(self, method: str, url: str, headers: Mapping[str, str], form: dict[str, str] | None) -> Answer:
        common = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "model-gateway"}
        try:
            async with (
                asyncio.timeout(self._whole_s),
                self._opened().stream(method, url, headers=common | dict(headers), data=form) as response,
            ):
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise FetchFailed("garbage")  # unpacking could make anything of any size out of it
                body = b""
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > MAX_BYTES:
                        raise FetchFailed("large")
        except UNANSWERED as error:
            raise FetchFailed(failure(error)) from None
        return Answer(response.status_code, _json(body, response.status_code))

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            inner = httpx.AsyncHTTPTransport(
                verify=self._tls or ssl.create_default_context(),
                trust_env=False,
                # One connection for two names on one address would show the second the first one's certificate.
                limits=httpx.Limits(max_keepalive_connections=0),
            )
            self._client = httpx.AsyncClient(
                transport=Pinned(inner, allow_link_local=self._allow_link_local),
                trust_env=False,
                follow_redirects=False,
                timeout=self._step_s,
            )
        return self._client


def _json(body: bytes, status: int) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if status != 200:
            return None
        raise FetchFailed("garbage") from None
