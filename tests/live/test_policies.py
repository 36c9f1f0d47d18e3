"""From a document to where requests go: what real requests say about themselves decides, as it does for `explain`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from backends.base import Backend
from backends.echo import EchoBackend
from gateway.cli.reasons import Asker, explained
from gateway.metering.record import UsageRecord
from gateway.routing.reading import parse_document
from gateway.routing.table import BackendSpec, Timeouts, build_table
from tests.relay_server import RelayServer, relay_server

BACKENDS = [{"type": "echo", "id": name} for name in "abcd"]


class Chats:
    """Requests one after another, and the record of each."""

    def __init__(self, server: RelayServer, http: httpx.AsyncClient) -> None:
        self.server = server
        self._http = http

    async def __call__(self, *, headers: dict[str, str] | None = None, **fields: Any) -> UsageRecord:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
        before = len(self.server.ledger.ended)
        answer = await self._http.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200
        return (await self.server.ledger.wait(before + 1))[-1]


@asynccontextmanager
async def chats(**model: Any) -> AsyncIterator[Chats]:
    def echo(spec: BackendSpec) -> Backend:
        del spec
        return EchoBackend()

    document = parse_document({"models": [{"id": "m", "backends": BACKENDS, **model}]})
    table = build_table(document, 1, 1, echo, Timeouts(2, 5, 5, 30), {})
    async with relay_server(*table.routes.values()) as server:
        headers = {"authorization": f"Bearer {server.key}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers) as http:
            yield Chats(server, http)


async def test_the_same_user_meets_the_same_backend_that_explain_names() -> None:
    async with chats(policy="sticky", sticky={"by": "user"}) as chat:
        served = {f"u{n}": {(await chat(user=f"u{n}")).backend for _ in range(3)} for n in range(12)}
        assert len(set().union(*served.values())) == 4
        document = parse_document({"models": [{"id": "m", "backends": BACKENDS, "policy": "sticky", "sticky": {"by": "user"}}]})
        for user, there in served.items():
            assert there == {explained(document, document.models[0], Asker(user=user), {}, {}).stages[0][0]}


async def test_a_header_in_any_case_and_without_one_the_key() -> None:
    async with chats(policy="sticky", sticky={"by": "header:X-Session-Id"}) as chat:
        by_session = {n: {(await chat(headers={name: f"s{n}"})).backend for name in ("X-Session-Id", "x-session-id")} for n in range(12)}
        assert {len(there) for there in by_session.values()} == {1}
        assert len(set().union(*by_session.values())) == 4
        assert len({(await chat(user=f"u{n}")).backend for n in range(12)}) == 1


async def test_conversations_with_the_same_beginning_share_a_backend() -> None:
    async with chats(policy="sticky", sticky={"by": "prefix", "prefixBytes": 24}) as chat:

        async def backend(system: str, user: str) -> str | None:
            return (await chat(messages=[{"role": "system", "content": system}, {"role": "user", "content": user}])).backend

        same = {await backend("You are a helpful and terse assistant.", f"question {n}") for n in range(8)}
        assert len(same) == 1
        assert len({await backend(f"{n} is your number, remember it.", "hi") for n in range(12)}) > 1


async def test_every_record_says_the_arm() -> None:
    arms = {"control": {"backends": ["a"]}, "candidate": {"backends": ["b", "c"]}}
    async with chats(policy="experiment", experiment={"name": "summer", "arms": arms}) as chat:
        records = [await chat(user=f"u{n % 8}") for n in range(24)]
    assert {record.experiment for record in records} == {"summer"}
    assert {record.arm for record in records} == set(arms)
    assert all(record.backend in arms[record.arm or ""]["backends"] for record in records)
    assert [record.arm for record in records[:8]] == [record.arm for record in records[8:16]] == [record.arm for record in records[16:]]


async def test_lower_priorities_serve_alone() -> None:
    backends = [{**backend, "priority": level} for backend, level in zip(BACKENDS, (1, 0, 0, 2), strict=True)]
    async with chats(backends=backends) as chat:
        assert {(await chat()).backend for _ in range(24)} == {"b", "c"}
