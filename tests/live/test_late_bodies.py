"""Bodies that take their time, on a whole gateway: what was taken away meanwhile is no longer served, and none may take for ever."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from gateway.metering.ledger import read_lines
from tests.faults.client import Answer, Client
from tests.gateway_process import PASSWORD, Gateway, gateway
from tests.upstream import Upstream

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
HALF = len(BODY) // 2
IN_FORCE_S = 5.0  # 0.05 s on an idle machine
TRICKLE_S = 2.0


class Place:
    """A gateway with one server process, its upstream, and an admin who has logged in."""

    def __init__(self, running: Gateway, up: Upstream, admin: httpx.AsyncClient) -> None:
        self.running = running
        self.up = up
        self._admin = admin
        self._clients: list[Client] = []

    async def asked(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = await self._admin.request(method, path, json=body)
        assert answer.is_success, answer.text
        return dict(answer.json())

    async def counted(self, name: str) -> float:
        text = (await self._admin.get("/metrics")).text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

    async def key(self, **fields: Any) -> tuple[str, str]:
        """(id, text)"""
        made = await self.asked("POST", "/admin/keys", {"name": "k"} | fields)
        return made["id"], made["key"]

    async def send(self, key: str, body: bytes = BODY, length: int = len(BODY)) -> Client:
        """This much of a request, on a connection of its own."""
        client = await Client.connect(self.running.port)
        self._clients.append(client)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n"
        client.send(head.encode() + body)
        return client

    async def ask(self, key: str) -> Answer:
        return await (await self.send(key)).answer()

    async def close(self) -> None:
        for client in self._clients:
            client.close()
            with contextlib.suppress(ConnectionError):
                await client.writer.wait_closed()

    async def refused(self, key: str) -> None:
        """Until what was taken away is in force."""
        async with asyncio.timeout(IN_FORCE_S):
            while (await self.ask(key)).status == 200:
                await asyncio.sleep(0.01)

    def admitted(self) -> int:
        """Requests in the segments of the ledger; none has begun without an end."""
        begun: list[str] = []
        ended: list[str] = []
        for file in (self.running.home / "run" / "ledger").glob("*.seg"):
            for kind, fields in read_lines(file.read_bytes()):
                (begun if kind == "B" else ended).append(fields["request_id"])
        assert sorted(begun) == sorted(ended)
        return len(begun)


@contextlib.asynccontextmanager
async def place(folder: Path, timeout_body_s: float = 600.0) -> AsyncIterator[Place]:
    async with Upstream() as up:
        config = f"models: [{{id: m, backends: [{{type: custom, baseURL: '{up.url}'}}]}}]"
        with gateway(folder, config, GATEWAY_TIMEOUT_BODY_S=str(timeout_body_s)) as running:
            async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=10) as admin:
                answer = await admin.post("/auth/login", json={"email": "admin@localhost", "password": PASSWORD})
                admin.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
                made = Place(running, up, admin)
                yield made
                await made.close()


async def test_what_is_taken_away_while_a_body_is_on_its_way(tmp_path: Path) -> None:
    async with place(tmp_path) as at:
        worker = await at.asked("POST", "/admin/users", {"email": "worker@example.com", "role": "member"})
        keys = {
            "revoked": await at.key(),
            "of a user who is disabled": await at.key(owner=worker["id"]),
            "without the scope": await at.key(),
            "for elsewhere": await at.key(),
        }
        _, kept = await at.key()
        assert [(await at.ask(key)).status for _, key in keys.values()] == [200] * 4
        clients = {name: await at.send(key, BODY[:HALF]) for name, (_, key) in keys.items()}
        untouched = await at.send(kept, BODY[:HALF])
        await asyncio.sleep(0.1)  # the heads are read
        await at.asked("POST", f"/admin/keys/{keys['revoked'][0]}/revoke")
        await at.asked("PATCH", f"/admin/users/{worker['id']}", {"disabled": True})
        await at.asked("PATCH", f"/admin/keys/{keys['without the scope'][0]}", {"scopes": ["usage"]})
        await at.asked("PATCH", f"/admin/keys/{keys['for elsewhere'][0]}", {"networks": ["192.0.2.0/24"]})
        for _, key in keys.values():
            await at.refused(key)
        served = len(at.up.seen)
        answers = {}
        for name, client in clients.items():
            client.send(BODY[HALF:])
            answers[name] = await client.answer()
        assert {name: (answer.status, answer.code) for name, answer in answers.items()} == {
            "revoked": (401, "invalid_api_key"),
            "of a user who is disabled": (401, "invalid_api_key"),
            "without the scope": (403, "permission_denied"),
            "for elsewhere": (403, "permission_denied"),
        }
        assert len(at.up.seen) == served
        untouched.send(BODY[HALF:])
        assert (await untouched.answer()).status == 200
        assert at.admitted() == len(at.up.seen) == served + 1


async def test_a_body_that_trickles_is_told_so_and_let_go(tmp_path: Path) -> None:
    async with place(tmp_path, TRICKLE_S) as at:
        _, key = await at.key()
        client = await at.send(key, b"{", 100_000)
        began_s = time.monotonic()
        answer = asyncio.create_task(client.answer())
        while not answer.done():
            client.send(b" ")
            await asyncio.sleep(0.05)
        assert TRICKLE_S - 0.2 < time.monotonic() - began_s < TRICKLE_S + 2
        assert ((await answer).status, (await answer).code) == (408, "request_timeout")
        assert (await answer).headers["connection"] == "close"
        assert await client.rest() == b""
        assert await at.counted('gateway_refusals_total{code="request_timeout",operation="chat"}') == 1
        slow = await at.send(key, BODY[:HALF])
        await asyncio.sleep(TRICKLE_S / 2)
        slow.send(BODY[HALF:])
        assert (await slow.answer()).status == 200
        assert at.admitted() == len(at.up.seen) == 1
