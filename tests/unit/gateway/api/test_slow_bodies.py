"""A credential that ends while its request's body is still on the way decides nothing any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from auth.principal import Role
from gateway import changes
from tests.unit.gateway.api.conftest import INIT, Plane


async def test_a_key_that_is_revoked_while_its_request_comes_in(plane: Plane, admin: httpx.AsyncClient) -> None:
    issued = (await admin.post("/admin/keys", json={"name": "leaked", "scopes": ["admin"], "owner": plane.people[Role.ADMIN].id})).json()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"email": "intruder@example.com", '
        await changes.revoke_key(plane.control.db, plane.control.generation, INIT, issued["id"])
        async with asyncio.timeout(5):
            while plane.control.live.applied < plane.control.generation.change:
                await asyncio.sleep(0.005)
        yield b'"role": "admin"}'

    async with plane.client(issued["key"]) as client:
        answer = await client.post("/admin/users", content=body(), headers={"content-type": "application/json"})
    assert answer.status_code == 401, answer.text
    assert (await admin.get("/admin/users?search=intruder")).json()["data"] == []
