"""One relay before scripted backends, and what must hold when everything is over: nothing reserved, nothing in flight, nothing leaked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from auth.principal import Budget, Limits
from backends.custom import CustomBackend
from backends.local import LocalBackend
from gateway.limits.shared import SharedLimiter
from gateway.metering.record import UsageRecord
from gateway.routing.table import Target, Timeouts
from tests.faults.client import Answer, Client
from tests.relay_server import RelayServer, relay_server, route, target
from tests.upstream import Script, Upstream

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
LIMITS = Limits(rpm=1000, tpm=1_000_000, concurrency=50, budget=Budget(10**12))


class InOrder:
    """Targets in the order of the route, so that a test knows which comes first."""

    def order(self, targets: tuple[Target, ...], context: Any, rng: Any) -> tuple[Target, ...]:
        return targets


@dataclass
class Scene:
    """`ups` are the backends in the order in which they are tried."""

    server: RelayServer
    ups: list[Upstream]
    key: str
    pools: list[CustomBackend]
    clients: list[Client] = field(default_factory=list)

    @property
    def up(self) -> Upstream:
        return self.ups[0]

    async def connect(self, receive_buffer: int | None = None) -> Client:
        client = await Client.connect(self.server.port, receive_buffer)
        self.clients.append(client)
        return client

    def request(self, body: Any, path: str = "/v1/chat/completions", more: Iterable[str] = (), key: str | None = None) -> bytes:
        """The bytes of one request."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        lines = [f"POST {path} HTTP/1.1", "host: x", f"authorization: Bearer {key or self.key}", f"content-length: {len(data)}", *more]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + data

    async def send(self, body: Any, path: str = "/v1/chat/completions", more: Iterable[str] = ()) -> Client:
        """On a fresh connection."""
        client = await self.connect()
        client.send(self.request(body, path, more))
        return client

    async def post(self, body: Any, path: str = "/v1/chat/completions", more: Iterable[str] = ()) -> Answer:
        client = await self.send(body, path, more)
        answer = await client.answer()
        client.close()
        return answer

    async def chat(self, stream: bool = False, **more: Any) -> Answer:
        return await self.post(CHAT | ({"stream": True} if stream else {}) | more)

    async def record(self, number: int = 1) -> UsageRecord:
        """The record of the n-th request that ended."""
        return (await self.server.ledger.wait(number))[number - 1]

    def gauge(self) -> int:
        return self.server.relay.meter.running()

    async def calm(self) -> None:
        """Wait until all is given back; fail where something is not."""
        faults: list[str] = []
        for _ in range(400):
            faults = list(self._faults())
            if not faults:
                return
            await asyncio.sleep(0.005)
        raise AssertionError(faults)

    def _faults(self) -> Iterable[str]:
        relay = self.server.relay
        if self.gauge():
            yield f"in flight: {self.gauge()}"
        assert isinstance(relay.limiter, SharedLimiter)
        for running, reserved_pusd in relay.limiter.running().values():
            yield f"account: {running} running, {reserved_pusd} reserved"
        if relay.load._running:
            yield "targets are still loaded"
        if relay.held_bytes:
            yield f"held bytes: {relay.held_bytes}"
        if relay.content_bytes:
            yield f"content bytes: {relay.content_bytes}"
        for pool in self.pools:
            if set(pool.idle) != pool.connections:
                yield f"pool: {len(pool.connections)} connections, {len(pool.idle)} idle"
        begun, ended = self.server.ledger.begun, self.server.ledger.ended
        if sorted(r.request_id for r in begun) != sorted(r.request_id for r in ended):
            yield f"ledger: {len(begun)} begun, {len(ended)} ended"


@asynccontextmanager
async def scene(
    *scripts: Script | str | LocalBackend | CustomBackend,
    timeouts: Timeouts = Timeouts(2, 5, 5, 30),  # noqa: B008  # frozen
    limits: Limits = LIMITS,
    model: str = "up",
    fields: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Scene]:
    """A route `m` over one backend per script, base URL or ready-made backend. `fields` are members of the route."""
    async with AsyncExitStack() as stack:
        ups, targets, pools = [], [], []
        for number, script in enumerate(scripts, 1):
            where: str | LocalBackend | CustomBackend
            if isinstance(script, str | LocalBackend | CustomBackend):
                where = script
            else:
                up = await stack.enter_async_context(Upstream(script))
                ups.append(up)
                where = up.url
            found = target(where, id=f"b{number}", model=model)
            targets.append(found)
            if isinstance(found.backend, CustomBackend):
                pools.append(found.backend)
        made = replace(route(targets, timeouts=timeouts, **(fields or {})), policy=InOrder())
        server = await stack.enter_async_context(relay_server(made, **settings))
        stage = Scene(server, ups, server.keys.issue(limits), pools)
        try:
            yield stage
        finally:
            for client in stage.clients:
                client.close()
        await stage.calm()
