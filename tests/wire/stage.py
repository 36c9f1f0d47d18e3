"""One relay before one scripted backend (or several), and the ways in: the OpenAI SDK, and raw sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from tests.faults.client import Answer, Client
from tests.gateway_process import PLAIN
from tests.relay_server import RelayServer, relay_server, route, target
from tests.upstream import Script, Seen, Upstream, Wire

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "hi"}
EMBEDDING = {"model": "m", "input": "hi"}
ENDPOINTS = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION, "/v1/embeddings": EMBEDDING}


def frame(value: Any) -> bytes:
    """One event as OpenAI writes it."""
    return b"data: " + (value if isinstance(value, bytes) else orjson.dumps(value)) + b"\n\n"


def answers(value: Any, status: int = 200, content_type: str = "application/json", **headers: str) -> Script:
    """Every request gets this answer."""

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.answer(value, status, content_type, **headers)

    return script


def streams(*pieces: bytes, content_type: str = "text/event-stream") -> Script:
    """Every request gets this stream, a chunk per piece."""

    async def script(wire: Wire, seen: Seen) -> None:
        await wire.head(200, content_type, transfer_encoding="chunked")
        for piece in pieces:
            await wire.chunk(piece)
        await wire.end()

    return script


@dataclass
class Stage:
    server: RelayServer
    ups: list[Upstream]
    _clients: list[Client] = field(default_factory=list)

    @property
    def up(self) -> Upstream:
        return self.ups[0]

    @asynccontextmanager
    async def sdk(self, retries: int = 0, key: str | None = None) -> AsyncIterator[AsyncOpenAI]:
        url, http = f"{self.server.url}/v1", DefaultAsyncHttpxClient(verify=PLAIN)
        async with AsyncOpenAI(base_url=url, api_key=key or self.server.key, max_retries=retries, timeout=15, http_client=http) as client:
            yield client

    async def connect(self) -> Client:
        client = await Client.connect(self.server.port)
        self._clients.append(client)
        return client

    def head(
        self, path: str = "/v1/chat/completions", *more: str, key: str | None = None, method: str = "POST", version: str = "1.1"
    ) -> bytes:
        lines = [f"{method} {path} HTTP/{version}", "host: x", *more]
        if key != "":
            lines.append(f"authorization: Bearer {key or self.server.key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def request(self, body: Any = CHAT, path: str = "/v1/chat/completions", *more: str, **how: Any) -> bytes:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return self.head(path, "content-type: application/json", f"content-length: {len(data)}", *more, **how) + data

    async def post(self, body: Any = CHAT, path: str = "/v1/chat/completions", *more: str, **how: Any) -> Answer:
        """On a connection of its own."""
        return await self.exchange(self.request(body, path, *more, **how))

    async def exchange(self, data: bytes) -> Answer:
        client = await self.connect()
        client.send(data)
        answer = await client.answer()
        client.close()
        return answer

    def close(self) -> None:
        for client in self._clients:
            client.close()


@asynccontextmanager
async def stage(
    *scripts: Script, model: str = "m", fields: dict[str, Any] | None = None, routes: Iterable[str] = ("m",), **settings: Any
) -> AsyncIterator[Stage]:
    """Routes over one backend per script. `model`: the backends' name of it; `fields`: members of the route; `settings`: of the relay."""
    async with AsyncExitStack() as stack:
        ups = [await stack.enter_async_context(Upstream(script)) for script in scripts]
        targets = [target(up.url, id=f"b{number}", model=model) for number, up in enumerate(ups, 1)]
        made = [route(targets, id=name, **(fields or {})) for name in routes]
        server = await stack.enter_async_context(relay_server(*made, **settings))
        found = Stage(server, ups)
        try:
            yield found
        finally:
            found.close()
            await asyncio.sleep(0)
