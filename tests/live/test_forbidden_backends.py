"""A backend whose address nothing connects to, seen by a client: it is down, it gets no byte, and another one serves instead."""

from __future__ import annotations

import httpx

from auth.address import forbidden_address
from backends.custom import CustomBackend
from tests.relay_server import relay_server, route, target
from tests.upstream import Upstream

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
METADATA = "http://2852039166:9/v1"  # 169.254.169.254, as every resolver reads it


async def test_it_is_as_good_as_down() -> None:
    backend = CustomBackend(METADATA, "Bearer upstream-secret", forbidden=forbidden_address)
    async with relay_server(route([target(backend)])) as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        for stream in (False, True):
            answer = await http.post("/v1/chat/completions", json=CHAT | {"stream": stream}, headers={"x-api-key": server.key})
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == "upstream_error"
            assert "169.254" not in answer.text
            assert "2852039166" not in answer.text
        assert {record.status for record in await server.ledger.wait(2)} == {502}


async def test_another_one_serves_instead() -> None:
    backend = CustomBackend(METADATA, forbidden=forbidden_address)
    async with (
        Upstream() as up,
        relay_server(route([target(backend, id="bad", weight=1), target(up.url, id="good", weight=1)])) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False) as http,
    ):
        for _ in range(8):
            answer = await http.post("/v1/chat/completions", json=CHAT, headers={"x-api-key": server.key})
            assert answer.status_code == 200
        assert len(up.seen) == 8
