"""Users, keys, revisions, backends, secrets, audit, usage: what an admin does all day, over the API."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from auth.principal import Role
from backends.local.state import ModelState, write_state
from gateway.changes import apply_revision
from gateway.store import booking, users
from tests.unit.gateway.api.conftest import INIT, PASSWORD, Plane

ECHO = {"type": "echo"}


def document(*ids: str, **backend: Any) -> dict[str, Any]:
    return {"models": [{"id": name, "backends": [ECHO | backend]} for name in ids]}


async def apply(admin: httpx.AsyncClient, body: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = await admin.post("/admin/revisions", json={"document": body} | more)
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


class TestUsers:
    async def test_create_change_and_log_in(self, admin: httpx.AsyncClient, anyone: httpx.AsyncClient) -> None:
        response = await admin.post("/admin/users", json={"email": " Dana@Example.com ", "role": "viewer", "password": PASSWORD})
        assert response.status_code == 201
        user = response.json()
        assert (user["email"], user["role"], user["disabled"]) == ("dana@example.com", "viewer", False)
        assert "password" not in response.text
        login = {"email": "dana@example.com", "password": PASSWORD}
        assert (await anyone.post("/auth/login", json=login)).status_code == 200
        assert (await admin.patch(f"/admin/users/{user['id']}", json={"role": "manager", "disabled": True})).json()["role"] == "manager"
        assert (await anyone.post("/auth/login", json=login)).status_code == 401
        assert (await admin.get(f"/admin/users/{user['id']}")).json()["disabled_at"] is not None

    async def test_a_password_is_made_where_none_is_given(self, plane: Plane, admin: httpx.AsyncClient, anyone: httpx.AsyncClient) -> None:
        path = f"/admin/users/{plane.people[Role.MEMBER].id}/password"
        made = (await admin.post(path)).json()["password"]
        assert (await anyone.post("/auth/login", json={"email": "member@example.com", "password": made})).status_code == 200
        assert (await admin.post(path, json={"password": "chosen by the admin"})).json() == {"password": None}
        assert (await admin.post(path, json={"password": "short"})).status_code == 400

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"email": "admin@example.com"}, 409),
            ({"email": "no address"}, 400),
            ({"email": "a@b", "role": "root"}, 400),
            ({"email": "a@b", "password": "short"}, 400),
            ({"email": "a@b", "scopes": ["admin"]}, 400),
        ],
    )
    async def test_refusals(self, admin: httpx.AsyncClient, body: dict[str, Any], status: int) -> None:
        response = await admin.post("/admin/users", json=body)
        assert response.status_code == status
        assert list(response.json()) == ["detail"]

    async def test_the_last_admin_stays(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        path = f"/admin/users/{plane.people[Role.ADMIN].id}"
        assert (await admin.patch(path, json={"role": "member"})).status_code == 409
        assert (await admin.patch(path, json={"disabled": True})).status_code == 409
        assert (await admin.patch("/admin/users/usr_none", json={"role": "member"})).status_code == 404

    async def test_pages_and_search(self, admin: httpx.AsyncClient) -> None:
        for number in range(5):
            await admin.post("/admin/users", json={"email": f"u{number}_%@pages.org"})
        seen: list[str] = []
        after: str | None = ""
        while after is not None:
            page = (await admin.get("/admin/users", params={"search": "@PAGES", "limit": 2, "after": after})).json()
            assert len(page["data"]) <= 2
            seen += [user["email"] for user in page["data"]]
            after = page["next"]
        assert seen == [f"u{number}_%@pages.org" for number in range(5)]
        assert len((await admin.get("/admin/users", params={"search": "%"})).json()["data"]) == 5  # no wildcard
        assert (await admin.get("/admin/users?after=usr_none")).status_code == 400
        assert (await admin.get("/admin/users?limit=501")).status_code == 400


class TestKeys:
    async def test_the_text_is_shown_once_and_works(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        body = {"name": "search", "owner": "member@example.com", "scopes": ["inference", "usage"], "models": ["chat", "team-*"]}
        response = await admin.post(
            "/admin/keys", json=body | {"rpm": 60, "tpm": 9, "concurrency": 2, "budget": "25/month", "expires": "30d"}
        )
        assert response.status_code == 201
        issued = response.json()
        assert set(issued) == {"id", "key", "name", "scopes", "expires_at"}
        assert issued["key"].startswith(f"sk-gw-{issued['id']}-")
        ends = datetime.fromisoformat(issued["expires_at"])
        assert ends.tzinfo == UTC
        assert abs(ends.timestamp() - time.time() - 30 * 86_400) < 60
        async with plane.client(issued["key"]) as client:
            assert (await client.get("/v1/models")).status_code == 200
        shown = await admin.get(f"/admin/keys/{issued['id']}")
        assert issued["key"] not in shown.text
        key = shown.json()
        assert (key["rpm"], key["tpm"], key["concurrency"], key["budget"]) == (60, 9, 2, "25/month")
        assert (key["owner"], key["state"], key["models"]) == (plane.people[Role.MEMBER].id, "active", ["chat", "team-*"])

    async def test_change_in_place(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        made = (await admin.post("/admin/keys", json={"name": "k", "rpm": 5, "budget": "1", "expires": "1h"})).json()
        path = f"/admin/keys/{made['id']}"
        changed = (await admin.patch(path, json={"rpm": 7, "budget": None, "expires": None, "models": ["x"]})).json()
        assert (changed["rpm"], changed["budget"], changed["expires_at"], changed["models"], changed["name"]) == (7, None, None, ["x"], "k")
        record = next(r for r in plane.control.live.records() if r.key_id == made["id"])
        assert (record.principal.limits.rpm, record.principal.limits.budget, record.expires_at) == (7, None, None)
        faulty: list[dict[str, Any]] = [
            {"rpm": 0},
            {"name": ""},
            {"name": None},
            {"scopes": []},
            {"expires": "2001-01-01T00:00:00Z"},
            {"owner": "x"},
            {"models": None},
        ]
        for bad in faulty:
            assert (await admin.patch(path, json=bad)).status_code == 400, bad
        assert (await admin.patch("/admin/keys/none", json={"rpm": 1})).status_code == 404
        entry = (await admin.get(f"/admin/audit?entity=key&entity_id={made['id']}&limit=1")).json()["data"][0]
        assert (entry["action"], entry["before"]["rpm"], entry["after"]["rpm"]) == ("update", 5, 7)

    async def test_rotate_and_revoke(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        old = (await admin.post("/admin/keys", json={"name": "k"})).json()
        new = (await admin.post(f"/admin/keys/{old['id']}/rotate", json={"grace_s": 60})).json()
        newest = (await admin.post(f"/admin/keys/{old['id']}/rotate")).json()
        assert old["id"] == new["id"] == newest["id"]
        codes = []
        for key in (old, new, newest):
            async with plane.client(key["key"]) as client:
                codes.append((await client.get("/v1/models")).status_code)
        assert codes == [401, 401, 200]  # a rotation without grace ends the grace before it
        revoked = (await admin.post(f"/admin/keys/{old['id']}/revoke")).json()
        assert revoked["state"] == "revoked"
        assert (await admin.post(f"/admin/keys/{old['id']}/rotate")).status_code == 409
        assert (await admin.patch(f"/admin/keys/{old['id']}", json={"rpm": 1})).status_code == 409
        assert (await admin.post("/admin/keys/none/revoke")).status_code == 404
        assert (await admin.post(f"/admin/keys/{old['id']}/rotate", json={"grace_s": -1})).status_code == 400

    async def test_the_list(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        member = plane.people[Role.MEMBER]
        ids = [(await admin.post("/admin/keys", json={"name": f"k_{n}", "owner": member.id})).json()["id"] for n in range(3)]
        await admin.post(f"/admin/keys/{ids[1]}/revoke")
        first = (await admin.get(f"/admin/keys?owner={member.id}&limit=1")).json()
        rest = (await admin.get(f"/admin/keys?owner={member.id}&after={first['next']}")).json()
        assert [key["id"] for key in first["data"] + rest["data"]] == [ids[0], ids[2]]
        assert len((await admin.get(f"/admin/keys?owner={member.id}&revoked=true")).json()["data"]) == 3
        assert [key["id"] for key in (await admin.get("/admin/keys?search=k_2")).json()["data"]] == [ids[2]]

    async def test_nobody_grants_what_the_owner_does_not_hold(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        body = {"name": "k", "owner": "member@example.com"}
        assert (await admin.post("/admin/keys", json=body | {"scopes": ["admin"]})).status_code == 400
        made = (await admin.post("/admin/keys", json=body)).json()
        assert (await admin.patch(f"/admin/keys/{made['id']}", json={"scopes": ["admin"]})).status_code == 400
        assert (await admin.post("/admin/keys", json={"name": "k", "owner": "nobody@example.com"})).status_code == 404

    async def test_the_change_itself_looks_again_at_who_may(self, plane: Plane) -> None:
        """A process that has not heard yet that its caller is no admin any more changes nothing."""
        key = await plane.key("temporary", plane.people[Role.ADMIN], scopes=["admin"])
        async with plane.control.db.write() as conn:  # behind the change log's back
            await users.set_role(conn, plane.people[Role.ADMIN].id, Role.MEMBER)
        async with plane.client(key) as client:
            assert (await client.get("/admin/users")).status_code == 200
            assert (await client.post("/admin/users", json={"email": "x@example.com"})).status_code == 403
            assert (await client.post("/admin/revisions", json={"document": {"models": []}})).status_code == 403


class TestRevisions:
    async def test_apply_is_in_force_when_answered(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        first = await apply(admin, document("chat"), note="the first")
        assert (first["live"], first["parent"], first["author"]) == (True, None, plane.people[Role.ADMIN].id)
        assert plane.control.relay.table.revision == first["id"]
        second = await apply(admin, document("chat", "embed"), expected=first["id"])
        assert set(plane.control.relay.table.routes) == {"chat", "embed"}
        assert (await admin.get("/admin/revisions/live")).json()["id"] == second["id"]

        back = await admin.post("/admin/revisions/rollback")
        assert back.json()["id"] == first["id"]
        assert set(plane.control.relay.table.routes) == {"chat"}
        forth = await admin.post("/admin/revisions/rollback", json={"revision": second["id"]})
        assert forth.json()["id"] == second["id"]
        assert (await admin.post("/admin/revisions/rollback", json={"revision": 99})).status_code == 404
        listed = (await admin.get("/admin/revisions")).json()["data"]
        assert [(entry["id"], entry["live"]) for entry in listed] == [(second["id"], True), (first["id"], False)]
        assert (await admin.get(f"/admin/revisions?after={second['id']}")).json()["data"][0]["note"] == "the first"
        assert (await admin.get(f"/admin/revisions/{first['id']}")).json()["document"]["models"][0]["id"] == "chat"

    async def test_of_two_who_edit_the_same_revision_one_is_told(self, admin: httpx.AsyncClient) -> None:
        first = await apply(admin, document("chat"))
        await apply(admin, document("chat", "embed"), expected=first["id"])
        response = await admin.post("/admin/revisions", json={"document": document("x"), "expected": first["id"]})
        assert response.status_code == 409

    async def test_before_the_first(self, admin: httpx.AsyncClient) -> None:
        assert (await admin.get("/admin/revisions/live")).status_code == 404
        assert (await admin.post("/admin/revisions/rollback")).status_code == 409

    async def test_every_fault_with_its_place(self, admin: httpx.AsyncClient) -> None:
        bad = {"models": [{"id": "a", "backends": [{"type": "custom", "baseURL": "ftp://x", "wieght": 1}]}, {"id": "a", "backends": []}]}
        response = await admin.post("/admin/revisions", json={"document": bad})
        assert response.status_code == 400
        faults = {fault["path"]: fault["message"] for fault in response.json()["detail"]}
        assert "http://" in faults["models[0].backends[0].base_url"]
        assert "weight" in faults["models[0].backends[0].wieght"]
        assert "models[1].backends" in faults
        assert "models[1].id" in faults
        checked = (await admin.post("/admin/revisions/check", json={"document": bad})).json()
        assert not checked["valid"]
        assert {fault["path"] for fault in checked["faults"]} == set(faults)
        assert (await admin.post("/admin/revisions/check", json={"document": document("fine")})).json() == {"valid": True, "faults": []}
        assert (await admin.get("/admin/revisions")).json()["data"] == []

    async def test_keys_given_as_text_move_to_the_secrets(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        backend = {"type": "custom", "baseURL": "http://10.0.0.5/v1", "apiKey": "upstream-key-in-clear"}
        made = await admin.post("/admin/revisions", json={"document": {"models": [{"id": "chat", "backends": [backend]}]}})
        assert made.status_code == 201
        assert "upstream-key-in-clear" not in made.text
        assert made.json()["document"]["models"][0]["backends"][0]["api_key"] == {"secret": "chat/custom-1"}
        for path in ("/admin/revisions/live", "/admin/secrets", "/admin/audit", "/admin/backends"):
            assert "upstream-key-in-clear" not in (await admin.get(path)).text
        missing = {"type": "custom", "base_url": "http://10.0.0.5/v1", "api_key": {"secret": "none"}}
        response = await admin.post("/admin/revisions", json={"document": {"models": [{"id": "chat", "backends": [missing]}]}})
        assert response.status_code == 400

    async def test_the_environment_is_not_looked_at(self, admin: httpx.AsyncClient) -> None:
        backend = {"type": "custom", "base_url": "http://10.0.0.5/v1", "authorization": "${PATH}"}
        await apply(admin, {"models": [{"id": "chat", "backends": [backend]}]})

    async def test_absolute_paths_come_from_files_only(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        def local(path: str, weight: int = 1) -> dict[str, Any]:
            return {"models": [{"id": "m", "backends": [{"type": "local", "path": path, "weight": weight}]}]}

        response = await admin.post("/admin/revisions", json={"document": local("/etc")})
        assert response.status_code == 400
        assert response.json()["detail"][0]["path"] == "models[0].backends[0].path"
        stored = local("/srv/models/m")
        stored["models"][0]["policy"] = "weighted"
        await apply_revision(plane.control.db, plane.control.generation, INIT, stored)
        await apply(admin, local("/srv/models/m", weight=5))  # what is live from a file may stay
        response = await admin.post("/admin/revisions", json={"document": local("/etc")})
        assert response.status_code == 400
        assert response.json()["detail"][0]["path"] == "models[0].backends[0].path"
        assert (await admin.post("/admin/revisions", json={"document": local("../up")})).status_code == 400


class TestBackends:
    async def test_the_state_of_every_target(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        backends = [{"type": "echo", "weight": 0}, {"type": "local", "path": "demo-chat", "model": "inner"}]
        await apply(admin, {"models": [{"id": "chat", "backends": backends}]})
        state = plane.control.local_state
        write_state(state._file, {"demo-chat": ModelState("loading", 1.0, port=4000, token="worker-token")})
        state.reload()
        target = plane.control.relay.table.routes["chat"].targets[1]
        plane.control.relay.load.enter(target)
        response = await admin.get("/admin/backends")
        assert "worker-token" not in response.text
        echo, local = response.json()["data"]
        assert (echo["backend"], echo["weight"], echo["ready"], echo["in_flight"], echo["local"]) == ("echo-1", 0, True, 0, None)
        assert echo["priority"] == 0
        assert (local["backend"], local["upstream_model"], local["ready"], local["in_flight"]) == ("local-1", "inner", False, 1)
        assert local["local"]["state"] == "loading"
        for path in ("/", "/health"):  # a model is counted while a backend of it can serve
            assert (await admin.get(path)).json()["models_loaded"] == 0

    async def test_the_health_of_every_target(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        await apply(admin, {"models": [{"id": "chat", "backends": [ECHO, ECHO | {"delay_ms": 1}, ECHO | {"delay_ms": 2}]}]})
        _, failing, resting = (target.health for target in plane.control.relay.table.routes["chat"].targets)
        now_s, wall_s = time.monotonic(), time.time()
        for _ in range(5):
            failing.failed("refused", now_s - 2, 0)
        failing.probed(False, now_s - 1, 30, "503")
        resting.probed(True, now_s - 100, 30)
        resting.rest(now_s + 60, now_s, 0)
        shown = [target["health"] for target in (await admin.get("/admin/backends")).json()["data"]]
        assert shown[0] == {
            "state": "closed", "since": None, "consecutive_failures": 0, "back_at": None, "last_failure": None, "probe": None,
        }  # fmt: skip
        assert (shown[1]["state"], shown[1]["consecutive_failures"], shown[1]["last_failure"]["reason"]) == ("open", 5, "refused")
        assert (shown[1]["probe"]["state"], shown[1]["probe"]["reason"]) == ("dead", "503")
        assert (shown[2]["state"], shown[2]["probe"]["state"], shown[2]["last_failure"]) == ("resting", "unknown", None)
        for text, at_s in (
            (shown[1]["since"], -2),
            (shown[1]["last_failure"]["at"], -2),
            (shown[1]["probe"]["since"], -1),
            (shown[1]["back_at"], 29),
            (shown[2]["since"], 0),
            (shown[2]["back_at"], 60),
        ):
            assert datetime.fromisoformat(text).timestamp() - wall_s == pytest.approx(at_s, abs=0.5)


class TestSecrets:
    async def test_in_and_never_out(self, admin: httpx.AsyncClient) -> None:
        assert (await admin.put("/admin/secrets/team/upstream", json={"value": "s3cret"})).json() == {
            "name": "team/upstream",
            "changed": True,
        }
        assert not (await admin.put("/admin/secrets/team%2Fupstream", json={"value": "s3cret"})).json()["changed"]
        backend = {"type": "custom", "base_url": "http://10.0.0.5/v1", "api_key": {"secret": "team/upstream"}}
        await apply(admin, {"models": [{"id": "chat", "backends": [backend]}]})
        listed = await admin.get("/admin/secrets")
        assert [(entry["name"], entry["used"]) for entry in listed.json()["data"]] == [("team/upstream", True)]
        assert "s3cret" not in listed.text + (await admin.get("/admin/audit")).text
        assert (await admin.delete("/admin/secrets/team/upstream")).status_code == 409
        await apply(admin, document("chat"))
        assert (await admin.delete("/admin/secrets/team/upstream")).status_code == 204
        assert (await admin.delete("/admin/secrets/team/upstream")).status_code == 404

    @pytest.mark.parametrize(("name", "value"), [("x", ""), ("x", "two\nlines"), ("x y", "v"), ("x", 5)])
    async def test_refusals(self, admin: httpx.AsyncClient, name: str, value: object) -> None:
        response = await admin.put(f"/admin/secrets/{name}", json={"value": value})
        assert response.status_code == 400
        assert "lines" not in response.text.replace("One line", "")


class TestUsage:
    async def rows(self, plane: Plane) -> tuple[str, str]:
        """Two users, three keys, two models, now and three days ago."""
        member, viewer = plane.people[Role.MEMBER].id, plane.people[Role.VIEWER].id
        key_text = await plane.key("own", plane.people[Role.MEMBER], scopes=["usage"])
        key_id = key_text.split("-")[2]
        now_s = time.time()

        def row(number: int, user: str, key: str | None, model: str, ago_s: float = 0) -> dict[str, Any]:
            fixed = {"backend": "echo-1", "operation": "chat", "attempts": 1, "status": 200, "ending": "success", "token_source": "backend"}
            counts = {"prompt_tokens": 10, "completion_tokens": number, "cost_pusd": 1_500_000 * number, "revision": 1}
            return (
                {"request_id": f"r{number}", "started_at": now_s - ago_s, "user_id": user, "key_id": key, "model": model} | fixed | counts
            )

        batch = [
            row(1, member, key_id, "chat"),
            row(2, member, "another", "chat"),
            row(4, member, None, "embed"),
            row(8, member, key_id, "embed", 3 * 86_400),
            row(16, viewer, "third", "chat"),
        ]
        async with plane.control.db.write() as conn:
            await booking.insert_usage(conn, batch, "segment", 1)
        return key_text, key_id

    async def test_a_key_sees_its_own_a_login_the_users(self, plane: Plane) -> None:
        key_text, key_id = await self.rows(plane)
        none_of_these = {"cached_tokens": 0, "reasoning_tokens": 0}
        async with plane.client(key_text) as client:
            report = (await client.get("/v1/usage?by=model")).json()
            assert report["object"] == "list"
            assert {entry["model"]: entry["completion_tokens"] for entry in report["data"]} == {"chat": 1, "embed": 8}
            assert (await client.get("/v1/usage?by=model&since=1d")).json()["data"] == [
                {"model": "chat", "requests": 1, "prompt_tokens": 10, "completion_tokens": 1, "cost": "0.0000015"} | none_of_these
            ]
            assert (await client.get("/v1/usage?by=user")).status_code == 400
            assert (await client.get("/admin/usage")).status_code == 403
        async with plane.client(plane.token(Role.MEMBER)) as client:
            report = (await client.get("/v1/usage?by=key")).json()
            assert {entry["key_id"]: entry["completion_tokens"] for entry in report["data"]} == {None: 4, "another": 2, key_id: 9}
            days = (await client.get("/v1/usage?by=day")).json()["data"]
            assert [entry["requests"] for entry in days] == [1, 3]

    async def test_an_admin_sees_all(self, plane: Plane, admin: httpx.AsyncClient) -> None:
        _, key_id = await self.rows(plane)
        member, viewer = plane.people[Role.MEMBER].id, plane.people[Role.VIEWER].id

        async def by(query: str) -> dict[str, int]:
            report = (await admin.get(f"/admin/usage?{query}")).json()
            return {next(iter(entry.values())): entry["completion_tokens"] for entry in report["data"]}

        assert await by("by=user") == {member: 15, viewer: 16}
        assert await by(f"by=model&user={member}") == {"chat": 3, "embed": 12}
        assert await by(f"by=model&key={key_id}") == {"chat": 1, "embed": 8}
        assert await by(f"by=user&until=1d&since={datetime.fromtimestamp(time.time() - 5 * 86_400, UTC):%Y-%m-%d}") == {member: 8}
        assert (await admin.get("/admin/usage?by=arm")).json()["data"] == []
        in_arm = {"request_id": "r32", "started_at": time.time(), "user_id": member, "key_id": key_id, "experiment": "summer", "arm": "b"}
        fixed = {"operation": "chat", "attempts": 1, "status": 200, "ending": "success", "token_source": "backend", "model": "chat"}
        counts = {"prompt_tokens": 10, "completion_tokens": 32, "cost_pusd": 0, "revision": 1}
        async with plane.control.db.write() as conn:
            await booking.insert_usage(conn, [in_arm | fixed | counts], "segment", 2)
        expected = {"experiment": "summer", "arm": "b", "requests": 1, "prompt_tokens": 10, "completion_tokens": 32, "cached_tokens": 0}
        expected |= {"reasoning_tokens": 0, "cost": "0"}
        assert (await admin.get(f"/admin/usage?by=arm&user={member}")).json()["data"] == [expected]
        assert (await admin.get(f"/admin/usage?by=arm&user={viewer}")).json()["data"] == []
        for bad in ("since=yesterday", "until=2d&since=1d", "by=moon", "since=12", "after=1"):
            assert (await admin.get(f"/admin/usage?{bad}")).status_code == 400, bad
        for odd in ("since=0001-01-01", "since=99999w", "until=9999-12-31T23:59:59%2B00:00"):
            assert (await admin.get(f"/admin/usage?{odd}")).status_code == 200, odd


async def test_the_audit_trail_tells_who_and_from_where(plane: Plane, admin: httpx.AsyncClient) -> None:
    await admin.post("/admin/users", json={"email": "new@example.com"})
    entries = (await admin.get(f"/admin/audit?actor={plane.people[Role.ADMIN].id}")).json()["data"]
    assert [(e["via"], e["address"], e["action"], e["entity"], e["before"]) for e in entries] == [
        ("api", "203.0.113.7", "create", "user", None)
    ]
    assert entries[0]["after"]["email"] == "new@example.com"
    first = (await admin.get("/admin/audit?limit=1")).json()
    second = (await admin.get(f"/admin/audit?limit=1&after={first['next']}")).json()
    assert second["data"][0]["id"] == first["data"][0]["id"] - 1
