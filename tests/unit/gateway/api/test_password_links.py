"""One-time links: who may issue them, that they are good once, and what makes them void."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re

import httpx
import pytest

from auth.principal import Role
from gateway.changes import disable_user, enable_user, reset_password, set_role
from gateway.store import login_addresses, trail
from gateway.store.users import User
from tests.unit.gateway.api.conftest import INIT, PASSWORD, Plane

NEW = "a quite new one"
PATH = "/auth/password/reset"


async def issued(client: httpx.AsyncClient, user: User) -> str:
    response = await client.post(f"/admin/users/{user.id}/password-link")
    assert response.status_code == 201, response.text
    return str(response.json()["token"])


async def used(client: httpx.AsyncClient, token: str, password: str = NEW) -> int:
    return (await client.post(PATH, json={"token": token, "new_password": password})).status_code


async def test_a_link_sets_the_password_once(plane: Plane, admin: httpx.AsyncClient, anyone: httpx.AsyncClient) -> None:
    user = plane.people[Role.MEMBER]
    old = (await anyone.post("/auth/login", json={"email": user.email, "password": PASSWORD})).json()
    response = await admin.post(f"/admin/users/{user.id}/password-link")
    body = response.json()
    assert body["path"] == f"{PATH}#{body['token']}"
    assert response.headers["cache-control"] == "no-store"
    assert (await anyone.post("/auth/refresh", json={"refresh_token": old["refresh_token"]})).status_code == 200  # nothing has changed yet

    assert await used(anyone, body["token"]) == 204
    login = {"email": user.email, "password": NEW}
    assert (await anyone.post("/auth/login", json=login)).status_code == 200
    assert (await anyone.post("/auth/login", json=login | {"password": PASSWORD})).status_code == 401
    headers = {"authorization": f"Bearer {old['access_token']}"}
    assert (await anyone.get("/auth/me", headers=headers)).status_code == 401
    again = await anyone.post(PATH, json={"token": body["token"], "new_password": "once more, please"})
    assert again.status_code == 400
    assert "not valid any more" in again.json()["detail"]


async def test_of_many_at_once_one_succeeds(plane: Plane, admin: httpx.AsyncClient, anyone: httpx.AsyncClient) -> None:
    token = await issued(admin, plane.people[Role.MEMBER])
    codes = await asyncio.gather(*(used(anyone, token, f"{NEW} {i}") for i in range(5)))
    assert sorted(codes) == [204, 400, 400, 400, 400]


async def test_a_refused_password_leaves_the_link_good(plane: Plane, admin: httpx.AsyncClient, anyone: httpx.AsyncClient) -> None:
    token = await issued(admin, plane.people[Role.MEMBER])
    for bad in ("Password123", "member@example.com", "short"):
        assert await used(anyone, token, bad) == 400
    assert await used(anyone, token) == 204


@pytest.mark.parametrize("made", ["", "nonsense", ".", "usr_0000000000000000.abc", "ext_1.abc", "x" * 200])
async def test_what_is_no_link(plane: Plane, anyone: httpx.AsyncClient, made: str) -> None:
    assert await used(anyone, made) == 400
    user = plane.people[Role.MEMBER]
    assert await used(anyone, f"{user.id}.{made}"[:200]) == 400


async def test_another_users_link_is_not_mine(plane: Plane, admin: httpx.AsyncClient, anyone: httpx.AsyncClient) -> None:
    token = await issued(admin, plane.people[Role.MEMBER])
    secret = token.partition(".")[2]
    assert await used(anyone, f"{plane.people[Role.ADMIN].id}.{secret}") == 400


@pytest.mark.parametrize("what", ["another link", "another role", "a new password", "disabled", "disabled and enabled"])
async def test_what_makes_a_link_void(plane: Plane, admin: httpx.AsyncClient, anyone: httpx.AsyncClient, what: str) -> None:
    user, control = plane.people[Role.MEMBER], plane.control
    token = await issued(admin, user)
    if what == "another link":
        assert await issued(admin, user) != token
    elif what == "another role":
        await set_role(control.db, control.generation, INIT, user.id, Role.ADMIN)
    elif what == "a new password":
        await reset_password(control.db, control.generation, INIT, user.id, password_hash=await control.passwords.hash("the third one"))
    else:
        await disable_user(control.db, control.generation, INIT, user.id)
        if what == "disabled and enabled":
            await enable_user(control.db, control.generation, INIT, user.id)
    assert await used(anyone, token) == 400


async def test_a_link_runs_out(plane: Plane, admin: httpx.AsyncClient, anyone: httpx.AsyncClient) -> None:
    from sqlalchemy import update

    from gateway.store import password_links
    from gateway.store.tables import password_links as table

    token = await issued(admin, plane.people[Role.MEMBER])
    async with plane.control.db.write() as conn:
        await conn.execute(update(table).values(expires_at=1.0))
    assert await used(anyone, token) == 400
    async with plane.control.db.write() as conn:
        assert await password_links.purge(conn, 2.0) == 1


async def test_who_may_issue_one(plane: Plane) -> None:
    """Managers for the members of their team, which alone exist for them; members and viewers for nobody, not for themselves either."""
    expected = {
        Role.MANAGER: {Role.ADMIN: 404, Role.MANAGER: 403, Role.MEMBER: 201, Role.VIEWER: 404},
        Role.MEMBER: dict.fromkeys(Role, 403),
        Role.VIEWER: dict.fromkeys(Role, 403),
    }
    for role, answers in expected.items():
        async with plane.client(plane.token(role)) as client:
            got = {of: (await client.post(f"/admin/users/{user.id}/password-link")).status_code for of, user in plane.people.items()}
            assert got == answers


async def test_a_managers_link_is_void_once_the_member_is_an_admin(plane: Plane, anyone: httpx.AsyncClient) -> None:
    async with plane.client(plane.token(Role.MANAGER)) as manager:
        token = await issued(manager, plane.people[Role.MEMBER])
    await set_role(plane.control.db, plane.control.generation, INIT, plane.people[Role.MEMBER].id, Role.ADMIN)
    assert await used(anyone, token) == 400


async def test_a_disabled_user_gets_none(plane: Plane, admin: httpx.AsyncClient) -> None:
    user = plane.people[Role.MEMBER]
    await disable_user(plane.control.db, plane.control.generation, INIT, user.id)
    assert (await admin.post(f"/admin/users/{user.id}/password-link")).status_code == 409
    assert (await admin.post("/admin/users/usr_nobody/password-link")).status_code == 404


async def test_the_trail_and_the_address(plane: Plane, admin: httpx.AsyncClient) -> None:
    """Both ends are told, without the token; who used it is in ahead of strangers from then on."""
    user = plane.people[Role.MEMBER]
    token = await issued(admin, user)
    async with plane.client(peer=("192.0.2.77", 1)) as client:
        assert await used(client, token) == 204
    async with plane.control.db.read() as conn:
        entries = await trail.page(conn, entity_id=user.id)
        assert await login_addresses.has(conn, user.id, "192.0.2.77")
    told = [(entry.action, entry.actor_user_id, entry.address) for entry in entries[:2]]
    assert told == [("use_password_link", user.id, "192.0.2.77"), ("password_link", plane.people[Role.ADMIN].id, "203.0.113.7")]
    assert token.partition(".")[2] not in repr(entries)


async def test_the_page_runs_its_own_script_alone(anyone: httpx.AsyncClient) -> None:
    response = await anyone.get(PATH)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
