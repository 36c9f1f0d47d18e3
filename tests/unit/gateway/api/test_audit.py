"""`/admin/audit`: paging, searching, export."""

from __future__ import annotations

import json

import httpx
import pytest
from sqlalchemy import text

from auth.principal import Role
from gateway.changes import Actor, create_user
from gateway.cli.audit import verify_lines

from .conftest import PASSWORD, Plane


async def _people(plane: Plane, count: int) -> None:
    for n in range(count):
        await create_user(
            plane.control.db, plane.control.generation, Actor(None, "cli"), email=f"person{n}_100%@example.com", role=Role.VIEWER
        )


async def test_searching(plane: Plane, admin: httpx.AsyncClient) -> None:
    await admin.post("/admin/users", json={"email": "new@example.com"})

    async def found(query: str) -> list[str]:
        answer = await admin.get(f"/admin/audit?{query}")
        assert answer.status_code == 200, answer.text
        return [entry["after"]["email"] for entry in answer.json()["data"]]

    assert await found("q=NEW@example") == ["new@example.com"]
    assert await found(f"actor={Role.ADMIN}@example.com") == ["new@example.com"]
    assert await found("q=203.0.113.7&action=create") == ["new@example.com"]
    assert await found("action=revoke") == await found("q=%25%25%25") == await found("until=30d") == []
    assert "new@example.com" in await found("since=1h&entity=user")
    entry = (await admin.get("/admin/audit?q=new@example")).json()["data"][0]
    assert entry["actor_email"] == f"{Role.ADMIN}@example.com"
    assert len(entry["hash"]) == 64


@pytest.mark.parametrize("query", ["q=ab", "q=%20%20%20", "since=soon", "since=1d&until=2d", "q=a%00bc", "actor=%00", f"q={'x' * 101}"])
async def test_what_cannot_be_searched_for_is_refused(admin: httpx.AsyncClient, query: str) -> None:
    for path in ("/admin/audit", "/admin/audit/export"):
        answer = await admin.get(f"{path}?{query}")
        assert answer.status_code == 400, answer.text
        assert answer.json()["detail"]


async def test_the_export_is_whole_and_can_be_checked_without_the_gateway(plane: Plane, admin: httpx.AsyncClient) -> None:
    await _people(plane, 210)  # more than a page
    answer = await admin.get("/admin/audit/export")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = answer.text.splitlines()
    verdict = verify_lines(lines)
    assert (verdict.entries, verdict.faults) == (len(lines), ())
    async with plane.control.db.read() as conn:
        assert len(lines) == (await conn.execute(text("SELECT count(*) FROM audit"))).scalar_one() >= 210
    altered = [line.replace("person7_", "person8_") for line in lines]
    assert len(verify_lines(altered).faults) == 1
    assert verify_lines(lines[:50] + lines[51:]).faults
    only = (await admin.get("/admin/audit/export?q=person7_100%25")).text.splitlines()
    assert [json.loads(line)["after"]["email"] for line in only] == ["person7_100%@example.com"]


async def test_an_export_of_nothing_is_empty(admin: httpx.AsyncClient) -> None:
    answer = await admin.get("/admin/audit/export?action=nothing")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_only_admins_read_it(plane: Plane) -> None:
    for path in ("/admin/audit", "/admin/audit/export"):
        for role in (Role.MANAGER, Role.MEMBER, Role.VIEWER):
            async with plane.client(plane.token(role)) as client:
                assert (await client.get(path)).status_code == 403
        async with plane.client() as client:
            assert (await client.get(path)).status_code == 401


async def test_a_logout_is_there_once_with_its_address(plane: Plane, admin: httpx.AsyncClient, anyone: httpx.AsyncClient) -> None:
    login = {"email": plane.people[Role.MEMBER].email, "password": PASSWORD}
    token = (await anyone.post("/auth/login", json=login)).json()["refresh_token"]
    for sent in (token, token, "none-such"):
        assert (await anyone.post("/auth/logout", json={"refresh_token": sent})).status_code == 204
    found = (await admin.get("/admin/audit?action=logout")).json()["data"]
    assert [(entry["actor_user_id"], entry["address"]) for entry in found] == [(plane.people[Role.MEMBER].id, "203.0.113.7")]
    assert token not in str(found)


async def test_what_an_admin_has_set_is_shown(plane: Plane, admin: httpx.AsyncClient) -> None:
    member = plane.people[Role.MEMBER].id
    key = (await admin.post("/admin/keys", json={"name": "k", "owner": member, "rpm": 5})).json()["id"]
    assert (await admin.get(f"/admin/keys/{key}")).json()["held"] == ["rpm"]
    assert (await admin.patch(f"/admin/keys/{key}", json={"rpm": None, "tpm": 7})).json()["held"] == ["tpm"]
    assert (await admin.patch(f"/admin/users/{member}", json={"disabled": True, "rpm": 5})).json()["held"] == ["disabled", "rpm"]
