"""The relay on a real socket, in this process, composed of real parts: for tests that must see its inside (ledger, load) too.

What is simpler here than in `gateway.app` is simpler through the front door: credentials come from a dict, routes from arguments, and the
ledger keeps its records in memory.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route as AsgiRoute
from uvicorn.server import ServerState

from auth.authenticator import Authenticator
from auth.keys import digest, mint
from auth.ports import KeyRecord, UserRecord
from auth.principal import Limited, Limits, Principal, Role
from auth.tokens import AccessTokens
from backends.base import Backend
from backends.custom import CustomBackend
from gateway.metering.log import RequestLog
from gateway.metering.meter import Meter
from gateway.metering.names import make_metrics
from gateway.metering.progress import Progress
from gateway.metering.record import UsageRecord
from gateway.relay.edge import Edge, edge_class, tick
from gateway.routing.policies import POLICIES
from gateway.routing.table import Prices, Route, RouteTable, Target, Timeouts
from gateway.runtime import Relay
from gateway.wire.tokens import Tokenizer
from tests.levels import own_limiter


class Keys:
    """A credential store of a few keys."""

    def __init__(self) -> None:
        self._records: dict[bytes, KeyRecord] = {}
        self.applied = 0

    def change(self, text: str, **members: Any) -> None:
        """Of this key's principal; none: the key is revoked."""
        self.applied += 1
        record = self._records.pop(digest(text))
        if members:
            self._records[record.digest] = replace(record, principal=replace(record.principal, **members))

    def expire(self, text: str, at: float) -> None:
        """From then on (Unix seconds) this key is over, without a change."""
        record = self._records[digest(text)]
        self._records[record.digest] = replace(record, expires_at=at)

    def issue(
        self,
        limits: Limits = Limits(),  # noqa: B008  # frozen
        models: tuple[str, ...] = ("*",),
        scopes: frozenset[str] = frozenset({"inference"}),
        others: tuple[Limited, ...] = (),
    ) -> str:
        """`others`: what the key is counted under beside itself."""
        key_id, text = mint()
        pattern = Principal.compile_globs(models)
        callers = ((Limited(key_id, limits),) if limits.limited else ()) + others
        principal = Principal("u1", Role.MEMBER, scopes, key_id, models, limits, key_id, pattern, callers=callers)
        self._records[digest(text)] = KeyRecord(key_id, digest(text), principal)
        return text

    def key_by_digest(self, digest: bytes) -> KeyRecord | None:
        return self._records.get(digest)

    away = behind = False

    def key_refusal(self, digest: bytes) -> str:
        return "unknown"

    def user_by_id(self, user_id: str) -> UserRecord | None:
        return None


class MemoryLedger:
    """Keeps copies of what was written, in order."""

    def __init__(self) -> None:
        self.begun: list[UsageRecord] = []
        self.ended: list[UsageRecord] = []
        self.progress = Progress()
        self._changed = asyncio.Condition()

    def begin(self, record: UsageRecord, reserved_tokens: int, reserved_pusd: int, prompt_tokens: int) -> int:
        self.begun.append(replace(record))
        return self.progress.take(record.request_id)

    def end(self, record: UsageRecord, slot: int) -> None:
        self.progress.give_back(slot)
        self.ended.append(replace(record))
        asyncio.get_running_loop().call_soon(self._notify)

    def _notify(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.get_running_loop().create_task(notify())
        self._task = task

    async def wait(self, count: int) -> list[UsageRecord]:
        """The ended records once there are `count` of them."""
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: len(self.ended) >= count), 10)
        return self.ended


@dataclass
class NoTokenizers:
    known: dict[str, Tokenizer] = field(default_factory=dict)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def of(self, route_id: str) -> Tokenizer | None:
        return self.known.get(route_id)


def target(backend: Backend | str, *, id: str = "custom-1", weight: int = 1, model: str = "up") -> Target:
    """A target; a string is the base URL of a custom backend."""
    live = CustomBackend(backend, "Bearer upstream-secret") if isinstance(backend, str) else backend
    return Target(id, "custom", model, weight, live)


def route(
    targets: Sequence[Target],
    *,
    id: str = "m",
    timeouts: Timeouts = Timeouts(2, 5, 5, 30),  # noqa: B008  # frozen
    prices: Prices | None = None,
    **more: Any,
) -> Route:
    found = tuple(targets)
    fields: dict[str, Any] = {"parameters": {}, "max_output_tokens": 1024, "tokenizer": None, "policy": "weighted"} | more
    fields["policy"] = POLICIES[fields["policy"]](found)
    return Route(
        id=id, name=id, created=1, targets=found, timeouts=timeouts, prices=prices, revision=1, live=any(t.weight for t in found), **fields
    )


@dataclass
class RelayServer:
    """A running relay."""

    relay: Relay
    keys: Keys
    ledger: MemoryLedger
    port: int
    key: str
    edges: set[Edge]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set_routes(self, *routes: Route) -> None:
        self.relay.table = RouteTable(self.relay.table.revision + 1, {r.id: r for r in routes})

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def relay_server(*routes: Route, **settings: Any) -> AsyncIterator[RelayServer]:
    """Serve these routes until the block ends. `settings` are members of `Relay`."""
    keys, ledger = Keys(), MemoryLedger()
    fields: dict[str, Any] = {
        "authenticator": Authenticator(keys, AccessTokens(b"k" * 32)),
        "known": keys,
        "limiter": own_limiter(),
        "ledger": ledger,
        "meter": Meter(make_metrics(CollectorRegistry())),
        "log": RequestLog(fd=-1),
        "tokenizers": NoTokenizers(),
        "table": RouteTable(1, {r.id: r for r in routes}),
        "max_body_bytes": 1_000_000,
        "max_answer_bytes": 2_000_000,
        "cors_origins": frozenset((b"*",)),
        "rng": random.Random(7),
    }
    relay = Relay(**(fields | settings))
    app = Starlette(routes=[AsgiRoute("/asgi", _asgi, methods=["GET", "POST"])])
    config = uvicorn.Config(app, http=edge_class(relay), ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    edges = cast("set[Edge]", state.connections)
    loop = asyncio.get_running_loop()
    # uvicorn's own serving loop looks for its end ten times a second: too slow for a server per test
    listener = await loop.create_server(lambda: config.http_protocol_class(config, state, {}, loop), "127.0.0.1", 0)  # type: ignore[call-arg, arg-type]
    ticking = asyncio.create_task(tick(relay, edges))
    try:
        yield RelayServer(relay, keys, ledger, listener.sockets[0].getsockname()[1], keys.issue(), edges)
    finally:
        listener.close()
        for edge in list(edges):
            edge.end_now()
        ticking.cancel()
        while edges or state.tasks:
            await asyncio.sleep(0)


async def _asgi(request: Any) -> PlainTextResponse:
    return PlainTextResponse(f"{request.method} {len(await request.body())}")
