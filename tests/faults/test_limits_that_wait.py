"""A request whose limiter takes its time: whatever happens meanwhile, its permit is used once or given back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from auth.principal import Limited
from gateway.errors import Unavailable
from gateway.limits.base import Pending, Permit, Refusal
from tests.faults.scripts import answers
from tests.relay_server import RelayServer, relay_server, route, target
from tests.upstream import Upstream, chat_answer

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Counted:
    """A permit that remembers how it was settled."""

    headers = b"x-ratelimit-limit-requests: 7\r\n"

    def __init__(self) -> None:
        self.settled: list[tuple[int, int]] = []

    def settle(self, tokens: int, cost_pusd: int) -> None:
        self.settled.append((tokens, cost_pusd))


class Slow:
    """Implements `Limiter`: it decides when it is told to."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Pending] = asyncio.Queue()

    def reserve(self, callers: tuple[Limited, ...], tokens: int, cost_pusd: int) -> Permit | Refusal | Pending:
        pending = Pending()
        self.asked.put_nowait(pending)
        return pending

    def headers(self, callers: tuple[Limited, ...]) -> bytes:
        return b""


@asynccontextmanager
async def waiting() -> AsyncIterator[tuple[RelayServer, Slow, Upstream, Pending, asyncio.Task[httpx.Response]]]:
    """A request that waits for its limiter."""
    limiter = Slow()
    async with Upstream(answers(chat_answer())) as up, relay_server(route([target(up.url)]), limiter=limiter) as server:
        async with httpx.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {server.key}"}) as client:
            request = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
            pending = await asyncio.wait_for(limiter.asked.get(), 5)
            yield server, limiter, up, pending, request
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        assert server.relay.slots.running == 0


async def test_goes_on_when_it_is_admitted() -> None:
    async with waiting() as (server, _, _, pending, request):
        assert not server.ledger.begun
        permit = Counted()
        pending.decide(permit)
        answer = await request
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "7"
        await server.ledger.wait(1)
        assert len(permit.settled) == 1


async def test_is_refused_as_any_other() -> None:
    async with waiting() as (server, _, up, pending, request):
        pending.decide(Refusal("requests", 2.5, headers=b"x-ratelimit-remaining-requests: 0\r\n", whose="team"))
        answer = await request
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert not server.ledger.begun
        assert not up.seen


async def test_nobody_can_decide() -> None:
    async with waiting() as (server, _, _, pending, request):
        pending.decide(Unavailable("not now", code="limits_unavailable", retry_after_s=1))
        answer = await request
        assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (503, "limits_unavailable", "1")
        assert not server.ledger.begun


async def test_the_client_leaves_and_the_permit_comes_late() -> None:
    async with waiting() as (server, _, up, pending, request):
        request.cancel()
        while server.relay.slots.running:
            await asyncio.sleep(0.005)
        permit = Counted()
        pending.decide(permit)
        assert permit.settled == [(0, 0)]
        assert not server.ledger.begun
        assert not up.seen


async def test_the_server_ends_meanwhile() -> None:
    async with waiting() as (server, _, up, pending, request):
        for edge in list(server.edges):
            edge.end_now()
        answer = await request
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        permit = Counted()
        pending.decide(permit)
        assert permit.settled == [(0, 0)]
        assert not up.seen


async def test_the_key_ends_meanwhile() -> None:
    async with waiting() as (server, _, up, pending, request):
        server.keys.expire(server.key, time.time() - 1)
        server.keys.applied += 1
        permit = Counted()
        pending.decide(permit)
        assert (await request).status_code == 401
        assert permit.settled == [(0, 0)]
        assert not server.ledger.begun
        assert not up.seen


async def test_the_model_is_gone_meanwhile() -> None:
    async with waiting() as (server, _, up, pending, request):
        server.set_routes()
        server.keys.applied += 1
        permit = Counted()
        pending.decide(permit)
        assert (await request).status_code == 404
        assert permit.settled == [(0, 0)]
        assert not up.seen


async def test_the_ledger_is_full_when_it_is_admitted() -> None:
    async with waiting() as (server, _, up, pending, request):

        def full(*_: object) -> int:
            raise Unavailable("full", code="ledger_full")

        server.relay.ledger = type("Full", (), {"begin": staticmethod(full), "progress": server.ledger.progress})()
        permit = Counted()
        pending.decide(permit)
        assert (await request).status_code == 503
        assert permit.settled == [(0, 0)]
        assert not up.seen
