"""Keys over the API: what admins and managers see and change, what people do with their own, where a key may be used from."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime

import httpx
import pytest

from auth.address import parse_networks
from auth.keys import mint
from auth.principal import Role
from gateway import changes
from gateway.api import create_api
from gateway.changes import Actor
from gateway.errors import NotFound
from gateway.store.users import User
from tests.unit.gateway.api.conftest import FAR, INIT, Plane

EXISTING = "sk-proj-Vq8Zr2mVx7Lw0Yc4Nh6Ks9Pd1Gt5Bf3Jx"
HEADERS = {"authorization": "Bearer {}", "x-api-key": "{}", "api-key": "{}"}


@pytest.fixture
async def member(plane: Plane) -> AsyncIterator[httpx.AsyncClient]:
    async with plane.client(plane.token(Role.MEMBER)) as client:
        yield client


async def made(client: httpx.AsyncClient, **body: object) -> dict[str, str]:
    answer = await client.post("/admin/keys", json={"name": "k"} | body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


class TestWhatIsKept:
    async def test_a_key_says_what_it_is_for_and_where_it_belongs(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        owner = plane.people[Role.MEMBER]
        team = (await admin.post("/admin/teams", json={"name": "Search"})).json()
        await changes.set_team(plane.control.db, plane.control.generation, INIT, owner.id, team["id"])
        body = {"description": " nightly\nindex ", "networks": ["10.0.0.0/8", "::1"], "owner": owner.email}
        key_id = (await made(admin, **body))["id"]
        key = (await admin.get(f"/admin/keys/{key_id}")).json()
        assert (key["description"], key["networks"], key["prefix"]) == ("nightly\nindex", ["10.0.0.0/8", "::1/128"], f"sk-gw-{key_id}")
        assert (key["owner"], key["owner_email"], key["team"]) == (owner.id, owner.email, team["id"])
        assert (key["created_by"], key["last_used_at"]) == (plane.people[Role.ADMIN].id, None)
        for query, found in {
            f"team={team['id']}": True,
            "team=team_none": False,
            "search=INDEX": True,
            f"search=sk-gw-{key_id}": True,
            "search=member@": True,
            "search=index&team=team_none": False,
            "search=%25": False,
            f"owner={owner.id}&search=nightly": True,
        }.items():
            listed = (await admin.get(f"/admin/keys?{query}")).json()["data"]
            assert ([key_id] if found else []) == [entry["id"] for entry in listed], query
        assert (await admin.get("/admin/keys?search=%00")).status_code == 400
        assert (await admin.get("/admin/keys/%00")).status_code == 400

    async def test_changes_are_in_force_and_audited(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        key = await made(admin)
        path = f"/admin/keys/{key['id']}"
        changed = (await admin.patch(path, json={"description": "new", "networks": ["192.0.2.0/24"]})).json()
        assert (changed["description"], changed["networks"]) == ("new", ["192.0.2.0/24"])
        async with plane.client(key["key"]) as client:
            assert (await client.get("/v1/models")).status_code == 403
            assert (await admin.patch(path, json={"networks": []})).json()["networks"] == []
            assert (await client.get("/v1/models")).status_code == 200
        entry = (await admin.get(f"/admin/audit?entity=key&entity_id={key['id']}&limit=1")).json()["data"][0]
        assert (entry["action"], entry["before"]["networks"], entry["after"]["networks"]) == ("update", ["192.0.2.0/24"], [])
        for networks in (["10.0.0.1/8"], ["somewhere"], [""], [" "], ["10.0.0.0/8"] * 101, [1], "10.0.0.0/8", None):
            assert (await admin.patch(path, json={"networks": networks})).status_code == 400, networks

    async def test_a_use_on_the_control_plane_is_noted_without_a_write(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        key = await made(admin)
        before_s = time.time()
        async with plane.client(key["key"]) as client:
            for _ in range(3):
                assert (await client.get("/v1/models")).status_code == 200
        assert (await admin.get(f"/admin/keys/{key['id']}")).json()["last_used_at"] is None
        assert await plane.control.uses.write(plane.control.db) == 1
        used = (await admin.get(f"/admin/keys/{key['id']}")).json()["last_used_at"]
        assert used is not None
        assert before_s - 1 <= _seconds(used) <= time.time()


class TestNetworks:
    @pytest.mark.parametrize("header", sorted(HEADERS))
    @pytest.mark.parametrize(
        ("peer", "status"),
        [("10.1.2.3", 200), ("::ffff:10.1.2.3", 200), ("2001:db8::1", 200), ("11.0.0.1", 403), ("2001:db9::1", 403), ("", 403)],
    )
    async def test_a_key_works_from_its_networks_alone(
        self, plane: Plane, admin: httpx.AsyncClient, header: str, peer: str, status: int
    ) -> None:
        key = await made(admin, networks=["10.0.0.0/8", "2001:db8::/32"])
        async with plane.client(peer=(peer, 1)) as client:
            answer = await client.get("/v1/models", headers={header: HEADERS[header].format(key["key"])})
        assert answer.status_code == status
        if status == 403:
            assert answer.json()["error"]["message"] == "This key may not be used from this address."

    async def test_what_a_client_says_of_its_address_counts_for_nothing(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        key = await made(admin, networks=["10.0.0.0/8"])
        async with plane.client(key["key"]) as client:
            for name, value in (("x-forwarded-for", "10.1.2.3"), ("forwarded", "for=10.1.2.3"), ("x-real-ip", "10.1.2.3")):
                assert (await client.get("/v1/models", headers={name: value})).status_code == 403

    async def test_a_trusted_proxy_says_whose_request_it_is(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        key = await made(admin, networks=["10.0.0.0/8"])
        behind = replace(plane, app=create_api(replace(plane.control, trusted_proxies=parse_networks([FAR[0]]))))
        async with behind.client(key["key"]) as client:
            for forwarded, status in (("10.1.2.3", 200), ("10.1.2.3, 11.0.0.1", 403), ("11.0.0.1, 10.1.2.3", 200), ("nonsense", 403)):
                answer = await client.get("/v1/models", headers={"x-forwarded-for": forwarded})
                assert answer.status_code == status, forwarded
            assert (await client.get("/v1/models")).status_code == 403, "the proxy itself is not in the key's networks"

    async def test_an_admin_key_is_held_to_them_too(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        key = await made(admin, scopes=["admin", "metrics"], networks=["10.0.0.0/8"])
        async with plane.client(key["key"]) as client:
            for path in ("/admin/users", "/metrics"):
                assert (await client.get(path)).status_code == 403


class TestImport:
    async def test_an_existing_key_goes_on_working_in_every_header(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        answer = await admin.post("/admin/keys/import", json={"name": "old", "key": EXISTING, "rpm": 7, "expires": "30d"})
        assert answer.status_code == 201
        assert EXISTING not in answer.text
        key = answer.json()
        assert (key["prefix"], key["rpm"], key["state"]) == ("sk-proj-", 7, "active")
        async with plane.client() as client:
            for header, form in HEADERS.items():
                assert (await client.get("/v1/models", headers={header: form.format(EXISTING)})).status_code == 200
        entry = (await admin.get(f"/admin/audit?entity=key&entity_id={key['id']}")).json()["data"][0]
        assert (entry["action"], entry["after"]["prefix"]) == ("import", "sk-proj-")
        assert EXISTING not in str(entry)
        again = await admin.post("/admin/keys/import", json={"name": "old", "key": EXISTING})
        assert (again.status_code, EXISTING in again.text) == (409, False)

        rotated = (await admin.post(f"/admin/keys/{key['id']}/rotate", json={"grace_s": 60})).json()
        assert (await admin.get(f"/admin/keys/{key['id']}")).json()["prefix"] == f"sk-gw-{key['id']}"
        for text in (EXISTING, rotated["key"]):
            async with plane.client(text) as client:
                assert (await client.get("/v1/models")).status_code == 200

    @pytest.mark.parametrize(
        "text", ["", "short", "your-api-key-here-your-api-key-here", "x" * 40, "eyJhbGciOi.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"]
    )
    async def test_weak_ones_are_refused_and_not_repeated(self, admin: httpx.AsyncClient, text: str) -> None:
        answer = await admin.post("/admin/keys/import", json={"name": "old", "key": text})
        assert answer.status_code == 400
        assert not text or text not in answer.text
        assert (await admin.get("/admin/keys?search=old")).json()["data"] == []

    async def test_a_key_of_another_installation_keeps_its_id(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        _, text = mint("abcdefghijkl")
        key = (await admin.post("/admin/keys/import", json={"name": "old", "key": text})).json()
        assert (key["id"], key["prefix"]) == ("abcdefghijkl", "sk-gw-abcdefghijkl")
        other = await admin.post("/admin/keys/import", json={"name": "old", "key": mint("abcdefghijkl")[1]})
        assert other.status_code == 409

    async def test_managers_do_not_import(self, plane: Plane) -> None:
        async with plane.client(plane.token(Role.MANAGER)) as client:
            assert (await client.post("/admin/keys/import", json={"name": "k", "key": EXISTING})).status_code == 403


class TestOwnKeys:
    async def test_a_member_sees_rotates_and_revokes_their_own(
        self, plane: Plane, admin: httpx.AsyncClient, member: httpx.AsyncClient
    ) -> None:
        owner = plane.people[Role.MEMBER].id
        first, second = await made(admin, owner=owner, rpm=3), await made(admin, owner=owner)
        other = await made(admin)
        listed = (await member.get("/auth/keys?limit=1")).json()
        assert [key["id"] for key in listed["data"]] == [first["id"]]
        rest = (await member.get(f"/auth/keys?after={listed['next']}")).json()
        assert [key["id"] for key in rest["data"]] == [second["id"]]
        assert (await member.get(f"/auth/keys?after={other['id']}")).status_code == 400
        rotated = (await member.post(f"/auth/keys/{first['id']}/rotate", json={"grace_s": 60})).json()
        async with plane.client(first["key"]) as old, plane.client(rotated["key"]) as new:
            assert [(await client.get("/v1/models")).status_code for client in (old, new)] == [200, 200]
            assert (await member.post(f"/auth/keys/{first['id']}/revoke")).json()["state"] == "revoked"
            assert [(await client.get("/v1/models")).status_code for client in (old, new)] == [401, 401]
        assert (await admin.get(f"/admin/keys/{first['id']}")).json()["rpm"] == 3
        for action in ("rotate", "revoke"):
            assert (await member.post(f"/auth/keys/{other['id']}/{action}")).status_code == 404
            assert (await admin.post(f"/auth/keys/{second['id']}/{action}")).status_code == 404, "an admin's own keys are the admin's alone"

    async def test_a_member_makes_no_key_and_changes_no_limit(
        self, plane: Plane, admin: httpx.AsyncClient, member: httpx.AsyncClient
    ) -> None:
        own = await made(admin, owner=plane.people[Role.MEMBER].id, rpm=3)
        assert (await member.post("/admin/keys", json={"name": "k"})).status_code == 403
        assert (await member.patch(f"/admin/keys/{own['id']}", json={"rpm": None})).status_code == 403
        assert (await member.get("/admin/keys")).status_code == 403
        assert (await admin.get(f"/admin/keys/{own['id']}")).json()["rpm"] == 3

    async def test_a_key_does_not_rotate_itself(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        own = await made(admin, owner=plane.people[Role.MEMBER].id, scopes=["inference", "usage"])
        async with plane.client(own["key"]) as client:
            for path in (f"/auth/keys/{own['id']}/rotate", f"/auth/keys/{own['id']}/revoke"):
                assert (await client.post(path)).status_code == 403
            assert (await client.get("/auth/keys")).status_code == 403


class TestManagers:
    """A manager of team A, a member of it, and a member of team B."""

    @pytest.fixture
    async def people(self, plane: Plane) -> dict[str, User]:
        db, generation = plane.control.db, plane.control.generation
        teams = {name: await changes.create_team(db, generation, INIT, name=name) for name in "AB"}
        found = {}
        for name, role, team in (
            ("manager", Role.MANAGER, "A"), ("mate", Role.MEMBER, "A"), ("peer", Role.MANAGER, "A"), ("boss", Role.ADMIN, "A"),
            ("stranger", Role.MEMBER, "B"),
        ):  # fmt: skip
            user = await changes.create_user(db, generation, INIT, email=f"{name}@team.example", role=role)
            found[name] = await changes.set_team(db, generation, INIT, user.id, teams[team].id)
        await plane.control.live.catch_up(db)
        return found

    @pytest.fixture
    async def manager(self, plane: Plane, people: dict[str, User]) -> AsyncIterator[httpx.AsyncClient]:
        plane.people[Role.MANAGER] = people["manager"]
        async with plane.client(plane.token(Role.MANAGER)) as client:
            yield client

    async def test_they_make_keys_for_their_members_and_themselves(self, people: dict[str, User], manager: httpx.AsyncClient) -> None:
        for name, status in (("mate", 201), ("manager", 201), ("peer", 403), ("boss", 403), ("stranger", 404)):
            for owner in (people[name].id, people[name].email):
                answer = await manager.post("/admin/keys", json={"name": "k", "owner": owner, "scopes": ["inference", "usage"]})
                assert answer.status_code == status, (owner, answer.text)
        nobody = await manager.post("/admin/keys", json={"name": "k", "owner": "nobody@team.example"})
        assert (nobody.status_code, nobody.json()) == (404, {"detail": "There is no such user."})
        for scope in ("metrics", "admin"):
            answer = await manager.post("/admin/keys", json={"name": "k", "owner": people["mate"].id, "scopes": [scope]})
            assert answer.status_code == 403

    async def test_they_see_their_team_alone(self, people: dict[str, User], admin: httpx.AsyncClient, manager: httpx.AsyncClient) -> None:
        ids = {name: (await made(admin, owner=user.id))["id"] for name, user in people.items()}
        listed = (await manager.get("/admin/keys")).json()["data"]
        assert {key["id"] for key in listed} == {ids[name] for name in ("manager", "mate", "peer", "boss")}
        for query in (f"team={people['stranger'].team_id}", f"owner={people['stranger'].id}", "search=stranger"):
            assert (await manager.get(f"/admin/keys?{query}")).json() == {"data": [], "next": None}, query
        assert (await manager.get(f"/admin/keys?after={ids['stranger']}")).status_code == 400
        assert (await manager.get(f"/admin/keys/{ids['mate']}")).status_code == 200
        assert (await manager.get(f"/admin/keys/{ids['stranger']}")).status_code == 404

    async def test_they_change_keys_of_members_and_nobody_elses(
        self, people: dict[str, User], admin: httpx.AsyncClient, manager: httpx.AsyncClient
    ) -> None:
        ids = {name: (await made(admin, owner=user.id))["id"] for name, user in people.items()}
        for name, status in (("mate", 200), ("manager", 200), ("peer", 403), ("boss", 403), ("stranger", 404)):
            path = f"/admin/keys/{ids[name]}"
            assert (await manager.patch(path, json={"rpm": 9})).status_code == status, name
            assert (await manager.post(f"{path}/rotate")).status_code == status, name
            assert (await manager.post(f"{path}/revoke")).status_code == status, name

    async def test_a_key_that_holds_more_than_they_do_is_not_theirs_to_rotate(
        self, plane: Plane, people: dict[str, User], admin: httpx.AsyncClient, manager: httpx.AsyncClient
    ) -> None:
        """It was made when its owner was an admin: whoever learns its text would be one, too, on the day the owner is one again."""
        db, generation = plane.control.db, plane.control.generation
        await changes.set_role(db, generation, INIT, people["mate"].id, Role.ADMIN)
        key = await made(admin, owner=people["mate"].id, scopes=["inference", "admin"])
        await changes.set_role(db, generation, INIT, people["mate"].id, Role.MEMBER)
        assert (await manager.post(f"/admin/keys/{key['id']}/rotate")).status_code == 403
        assert (await manager.post(f"/admin/keys/{key['id']}/revoke")).status_code == 200

    async def test_a_key_of_a_manager_manages_nothing(
        self, plane: Plane, people: dict[str, User], admin: httpx.AsyncClient, manager: httpx.AsyncClient
    ) -> None:
        theirs = await made(admin, owner=people["manager"].id, scopes=["inference", "usage"])
        mates = await made(admin, owner=people["mate"].id)
        async with plane.client(theirs["key"]) as client:
            assert (await client.get("/admin/keys")).status_code == 403
            assert (await client.post(f"/admin/keys/{mates['id']}/rotate")).status_code == 403
        actor = Actor(people["manager"].id, "api", None, frozenset({"inference", "usage"}), login=False)
        with pytest.raises(NotFound):
            await changes.rotate_key(plane.control.db, plane.control.generation, actor, mates["id"])


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
