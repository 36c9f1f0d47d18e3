"""Teams, service accounts and managers over the API: whatever is of another team is not there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

import httpx
import pytest

from auth.passwords import Passwords
from auth.principal import Role
from gateway.api import create_api
from gateway.changes import create_service, create_team, create_user
from gateway.metering.record import UsageRecord
from gateway.store import booking
from gateway.store.users import User
from tests.unit.gateway.api.conftest import FAR, INIT, PASSWORD, Plane


@pytest.fixture
async def manager(plane: Plane) -> AsyncIterator[httpx.AsyncClient]:
    """Of the team of the plane."""
    async with plane.client(plane.token(Role.MANAGER)) as client:
        yield client


@pytest.fixture
async def stranger(plane: Plane) -> User:
    """A member of another team."""
    control = plane.control
    await create_team(control.db, control.generation, INIT, name="other")
    return await create_user(control.db, control.generation, INIT, email="stranger@example.com", role=Role.MEMBER, team="other")


async def emails(client: httpx.AsyncClient, **params: Any) -> list[str]:
    response = await client.get("/admin/users", params=params)
    assert response.status_code == 200, response.text
    return [user["email"] for user in response.json()["data"]]


class TestTeams:
    async def test_create_rename_count_delete(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        made = (await admin.post("/admin/teams", json={"name": " search "})).json()
        assert (made["name"], made["people"], made["services"]) == ("search", 0, 0)
        assert (await admin.post("/admin/teams", json={"name": "Search"})).status_code == 409
        path = f"/admin/teams/{made['id']}"
        assert (await admin.patch(path, json={"name": "finding"})).json()["name"] == "finding"
        await admin.post("/admin/service-accounts", json={"name": "indexer", "team": "finding"})
        assert (await admin.get(path)).json()["services"] == 1
        assert (await admin.delete(path)).status_code == 409
        user = (await admin.get("/admin/users?kind=service")).json()["data"][0]
        assert (user["team"], user["team_name"]) == (made["id"], "finding")
        assert (await admin.patch(f"/admin/users/{user['id']}", json={"team": None})).json()["team"] is None
        assert (await admin.delete(path)).status_code == 204
        assert [(await admin.request(method, path, json=body)).status_code for method, body in (("GET", None), ("DELETE", None))] == [
            404,
            404,
        ]
        actions = [entry["action"] for entry in (await admin.get("/admin/audit?entity=team&limit=3")).json()["data"]]
        assert actions == ["delete", "rename", "create"]

    async def test_pages(self, admin: httpx.AsyncClient) -> None:
        for number in range(3):
            await admin.post("/admin/teams", json={"name": f"t_{number}%"})
        first = (await admin.get("/admin/teams?search=T_&limit=2")).json()
        rest = (await admin.get(f"/admin/teams?search=T_&after={first['next']}")).json()
        assert [team["name"] for team in first["data"] + rest["data"]] == ["t_0%", "t_1%", "t_2%"]
        assert (await admin.get("/admin/teams?after=none")).status_code == 400
        assert (await admin.get("/admin/teams", params={"search": "a\x00"})).status_code == 400


class TestServices:
    async def test_it_holds_keys_and_cannot_log_in(self, plane: Plane, admin: httpx.AsyncClient, anyone: httpx.AsyncClient) -> None:
        response = await admin.post("/admin/service-accounts", json={"name": "Indexer"})
        assert response.status_code == 201
        service = response.json()
        assert (service["email"], service["kind"], service["role"]) == ("indexer@service", "service", "member")
        made = await admin.post("/admin/keys", json={"name": "k", "owner": "indexer@service"})
        async with plane.client(made.json()["key"]) as client:
            assert (await client.get("/v1/models")).status_code == 200
        for path in ("password", "password-link"):
            assert (await admin.post(f"/admin/users/{service['id']}/{path}")).status_code == 409
        login = await anyone.post("/auth/login", json={"email": "indexer@service", "password": PASSWORD})
        assert login.status_code == 401
        assert (await admin.patch(f"/admin/users/{service['id']}", json={"role": "manager"})).status_code == 400
        assert (await admin.post("/admin/users", json={"email": "x@service"})).status_code == 400


class TestUsers:
    async def test_a_change_is_whole(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        path = f"/admin/users/{plane.people[Role.VIEWER].id}"
        fields = {"name": "Vi", "role": "member", "team": "research", "rpm": 7, "budget": "2.5/day"}
        user = (await admin.patch(path, json=fields)).json()
        assert {name: user[name] for name in fields} == fields | {"team": plane.team_id}
        assert user["team_name"] == "research"
        faulty: list[dict[str, Any]] = [
            {"rpm": 8, "team": "none such"},
            {"rpm": 0},
            {"rpm": 8, "budget": "x"},
            {"role": None},
            {"team": "a\x00"},
        ]
        for bad in faulty:
            assert (await admin.patch(path, json=bad)).status_code in (400, 404), bad
        assert (await admin.get(path)).json() == user
        assert (await admin.patch(path, json={"name": None, "rpm": None, "budget": None})).json()["budget"] is None

    async def test_limits_are_those_of_login_tokens(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        member = plane.people[Role.MEMBER]
        assert (await admin.patch(f"/admin/users/{member.id}", json={"rpm": 3, "concurrency": 2})).status_code == 200
        record = plane.control.live.user_by_id(member.id)
        assert record is not None
        assert (record.principal.limits.rpm, record.principal.limits.concurrency) == (3, 2)

    async def test_who_is_raised_logs_in_again(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        async with plane.client(plane.token(Role.MEMBER)) as client:
            assert (await client.get("/auth/me")).status_code == 200
            assert (await admin.patch(f"/admin/users/{plane.people[Role.MEMBER].id}", json={"role": "admin"})).status_code == 200
            assert (await client.get("/auth/me")).status_code == 401


class CountedPasswords(Passwords):
    """How often a hash was asked for."""

    asked = 0

    async def hash(self, password: str, *, email: str = "") -> str:
        self.asked += 1
        return await super().hash(password, email=email)


async def test_who_may_give_no_password_has_none_hashed(plane: Plane) -> None:
    """A hash takes 20 ms of a core, and goes ahead of those who log in: only for whom it is of use."""
    passwords = CountedPasswords(memory_kib=64, rounds=1)
    app = create_api(replace(plane.control, passwords=passwords))
    admin, member = plane.people[Role.ADMIN], plane.people[Role.MEMBER].id
    service = await create_service(plane.control.db, plane.control.generation, INIT, name="robot")
    bound = await plane.key("bound", admin, scopes=["admin"], networks=[FAR[0]])
    new = {"email": "n@example.com", "password": PASSWORD}

    async def status(credential: str, path: str, body: dict[str, Any]) -> int:
        transport, headers = httpx.ASGITransport(app, client=FAR), {"authorization": f"Bearer {credential}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
            return (await client.post(path, json=body)).status_code

    for role in (Role.MANAGER, Role.MEMBER):
        assert await status(plane.token(role), "/admin/users", new) == 403
        assert await status(plane.token(role), f"/admin/users/{member}/password", {}) == 403
    assert await status(bound, "/admin/users", new) == 403
    assert await status(bound, f"/admin/users/{member}/password", {}) == 403
    assert await status(plane.token(Role.ADMIN), "/admin/users/usr_nobody/password", {}) == 404
    assert await status(plane.token(Role.ADMIN), f"/admin/users/{service.id}/password", {}) == 409
    assert passwords.asked == 0
    assert await status(plane.token(Role.ADMIN), "/admin/users", new) == 201
    assert await status(plane.keys["admin"], f"/admin/users/{member}/password", {}) == 200
    assert passwords.asked == 2
    passwords.close()


class TestManager:
    async def test_sees_the_own_team_only(self, plane: Plane, manager: httpx.AsyncClient, stranger: User) -> None:
        assert await emails(manager) == ["manager@example.com", "member@example.com"]
        assert await emails(manager, search="stranger") == []
        assert await emails(manager, team=stranger.team_id) == []
        assert await emails(manager, team=plane.team_id, search="member") == ["member@example.com"]
        assert [team["name"] for team in (await manager.get("/admin/teams")).json()["data"]] == ["research"]
        assert (await manager.get(f"/admin/teams/{plane.team_id}")).json()["people"] == 2

    async def test_what_is_of_others_is_as_if_it_were_not(self, plane: Plane, manager: httpx.AsyncClient, stranger: User) -> None:
        """The same answer, word for word, as for an id that nobody has."""
        for there, nowhere in (
            (f"/admin/users/{stranger.id}", "/admin/users/usr_none"),
            (f"/admin/users/{plane.people[Role.ADMIN].id}", "/admin/users/usr_none"),
            (f"/admin/teams/{stranger.team_id}", "/admin/teams/team_none"),
            (f"/admin/users?after={stranger.id}", "/admin/users?after=usr_none"),
            (f"/admin/teams?after={stranger.team_id}", "/admin/teams?after=team_none"),
        ):
            one, other = await manager.get(there), await manager.get(nowhere)
            assert (one.status_code, one.content) == (other.status_code, other.content)
            assert one.status_code in (400, 404)
        changes = [{"name": "x"}, {"role": "viewer"}, {"disabled": True}, {}]
        for body in changes:
            for user in (stranger, plane.people[Role.ADMIN]):
                assert (await manager.patch(f"/admin/users/{user.id}", json=body)).status_code == 404
        there, nowhere = [await manager.post("/admin/users", json={"email": "n@b.c", "team": team}) for team in ("other", "none such")]
        assert (there.status_code, there.content) == (nowhere.status_code, nowhere.content)
        assert there.status_code == 404

    async def test_manages_members_and_services(self, plane: Plane, manager: httpx.AsyncClient) -> None:
        made = await manager.post("/admin/users", json={"email": "new@example.com", "role": "viewer", "rpm": 5})
        assert (made.status_code, made.json()["team_name"]) == (201, "research")
        service = await manager.post("/admin/service-accounts", json={"name": "robot"})
        assert (service.status_code, service.json()["team"]) == (201, plane.team_id)
        for user in (made.json(), service.json()):
            changed = (await manager.patch(f"/admin/users/{user['id']}", json={"rpm": 9, "disabled": True})).json()
            assert (changed["rpm"], changed["disabled"]) == (9, True)
        assert (await manager.post(f"/admin/users/{plane.people[Role.MEMBER].id}/password-link")).status_code == 201

    async def test_raises_nobody_and_chooses_no_password(self, plane: Plane, manager: httpx.AsyncClient) -> None:
        member, own = plane.people[Role.MEMBER].id, plane.people[Role.MANAGER].id
        forbidden: list[tuple[str, str, dict[str, Any]]] = [
            ("PATCH", f"/admin/users/{member}", {"role": "manager"}),
            ("PATCH", f"/admin/users/{member}", {"role": "admin"}),
            ("PATCH", f"/admin/users/{member}", {"team": None}),
            ("PATCH", f"/admin/users/{own}", {"role": "admin"}),
            ("PATCH", f"/admin/users/{own}", {"rpm": None}),
            ("POST", "/admin/users", {"email": "n@b.c", "role": "admin"}),
            ("POST", "/admin/users", {"email": "n@b.c", "password": PASSWORD}),
            ("POST", f"/admin/users/{member}/password", {"password": PASSWORD}),
            ("POST", "/admin/service-accounts", {"name": "robot", "role": "admin"}),
            ("POST", "/admin/teams", {"name": "mine"}),
            ("PATCH", f"/admin/teams/{plane.team_id}", {"name": "mine"}),
        ]
        for method, path, body in forbidden:
            assert (await manager.request(method, path, json=body)).status_code == 403, (method, path, body)
        assert (await manager.delete(f"/admin/teams/{plane.team_id}")).status_code == 403

    async def test_sees_what_the_team_used(self, plane: Plane, manager: httpx.AsyncClient, stranger: User) -> None:
        people = (plane.people[Role.MEMBER], stranger, plane.people[Role.ADMIN])
        records = [UsageRecord(f"r{n}", time.time() - 60, "chat", None, user.id, "chat", 1, arm="a") for n, user in enumerate(people)]
        async with plane.control.db.write() as conn:
            rows = [asdict(record) | {"team_id": user.team_id} for record, user in zip(records, people, strict=True)]
            await booking.insert_usage(conn, rows, "segment", 1)
        for query in ("by=user", "by=model", "by=day", "by=arm", f"by=user&user={people[0].id}"):
            assert [line["requests"] for line in (await manager.get(f"/admin/usage?{query}")).json()["data"]] == [1], query
        assert (await manager.get("/admin/usage?by=user")).json()["data"][0]["user_id"] == people[0].id
        assert (await manager.get(f"/admin/usage?by=user&user={stranger.id}")).json()["data"] == []

    async def test_a_key_has_none_of_these_powers(self, plane: Plane) -> None:
        key = await plane.key("own", plane.people[Role.MANAGER], scopes=["inference", "usage"])
        async with plane.client(key) as client:
            for path in ("/admin/users", "/admin/teams", f"/admin/users/{plane.people[Role.MEMBER].id}"):
                assert (await client.get(path)).status_code == 403

    async def test_without_a_team_sees_nothing(self, plane: Plane, manager: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
        control, own = plane.control, plane.people[Role.MANAGER].id
        await create_service(control.db, control.generation, INIT, name="of-no-team")
        assert (await admin.patch(f"/admin/users/{own}", json={"team": None})).status_code == 200
        assert await emails(manager) == []
        assert await emails(manager, team="") == []
        assert (await manager.get("/admin/teams")).json()["data"] == []
        assert (await manager.get(f"/admin/users/{own}")).status_code == 404
        assert (await manager.post("/admin/users", json={"email": "n@b.c"})).status_code == 403

    async def test_loses_them_with_the_role(self, plane: Plane, manager: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
        assert (await admin.patch(f"/admin/users/{plane.people[Role.MANAGER].id}", json={"role": "member"})).status_code == 200
        assert (await manager.get("/admin/users")).status_code == 403
