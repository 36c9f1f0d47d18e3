"""What is taken away while the body of a request is on its way is taken away from that request too."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from auth.principal import Role
from tests.faults.client import Answer, Client
from tests.security.inside import Inside

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
HALF = len(BODY) // 2


async def begun(own: Inside, credential: str) -> Client:
    """A request whose body is half here. Its connection has been served before, so its head was read with what came before the change."""
    client = await Client.connect(own.port)
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", f"authorization: Bearer {credential}", f"content-length: {len(BODY)}"]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    client.send(head + BODY)
    assert (await client.answer()).status == 200
    client.send(head + BODY[:HALF])
    await own.held(HALF)
    return client


async def ended(own: Inside, client: Client) -> Answer:
    await own.caught_up()
    client.send(BODY[HALF:])
    answer = await client.answer()
    client.close()
    assert own.services.relay.held_bytes == 0
    return answer


async def changed(own: Inside, method: str, path: str, body: Any = None) -> None:
    async with own.client(await own.token(await own.person("boss", Role.ADMIN))) as http:
        answer = await http.request(method, path, json=body)
        assert answer.is_success, answer.text


@pytest.mark.parametrize(
    ("what", "body", "status"),
    [
        ("revoke", None, 401),
        ("", {"scopes": ["usage"]}, 403),
        ("", {"networks": ["192.0.2.0/24"]}, 403),
        ("", {"models": ["other"]}, 404),
        ("", {"tpm": 1}, 429),
    ],
    ids=["revoked", "scope", "network", "models", "limit"],
)
async def test_what_a_key_loses_meanwhile(own: Inside, what: str, body: Any, status: int) -> None:
    key = await own.key("k")
    key_id = next(record.key_id for record in own.services.live.records())
    client = await begun(own, key)
    if what:
        await changed(own, "POST", f"/admin/keys/{key_id}/{what}")
    else:
        await changed(own, "PATCH", f"/admin/keys/{key_id}", body)
    assert (await ended(own, client)).status == status


@pytest.mark.parametrize("kind", ["key", "login"])
async def test_a_user_who_is_disabled_meanwhile(own: Inside, kind: str) -> None:
    user = await own.person("worker", Role.MEMBER)
    client = await begun(own, await own.key("k", user) if kind == "key" else await own.token(user))
    await changed(own, "PATCH", f"/admin/users/{user.id}", {"disabled": True})
    answer = await ended(own, client)
    assert (answer.status, answer.code) == (401, "invalid_api_key")


async def test_a_login_that_is_ended_meanwhile(own: Inside) -> None:
    """A new epoch: the password is set anew."""
    user = await own.person("worker", Role.MEMBER)
    client = await begun(own, await own.token(user))
    await changed(own, "POST", f"/admin/users/{user.id}/password", {"password": "nine lanterns under the bridge 4"})
    assert (await ended(own, client)).status == 401


async def test_a_role_that_sinks_meanwhile(own: Inside) -> None:
    user = await own.person("worker", Role.MEMBER)
    client = await begun(own, await own.token(user))
    await changed(own, "PATCH", f"/admin/users/{user.id}", {"role": "viewer"})
    assert (await ended(own, client)).status == 403


async def test_a_key_that_expires_meanwhile(own: Inside) -> None:
    """No change is put in force then: the time that has gone by is reason enough."""
    expires_at = time.time() + 4
    client = await begun(own, await own.key("k", expires_at=expires_at))
    await asyncio.sleep(max(1.3, expires_at - time.time() + 0.2))  # after less than a second its credential is not looked at again
    assert (await ended(own, client)).status == 401


async def test_what_nobody_took_away_is_served(own: Inside) -> None:
    client = await begun(own, await own.key("k"))
    await own.key("another")
    assert (await ended(own, client)).status == 200
