"""People on a running server: a team, its manager, a member and a service; what the command line changes is in force at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.gateway_process import PASSWORD, Gateway, gateway

CONFIG = "models:\n  - id: chat\n    backends: [{type: echo}]\n"
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
OWN = "a long phrase of my own 7"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(Path(tmp_path_factory.mktemp("people")), CONFIG) as running:
        for team in ("research", "other"):
            running.cli("teams", "create", team)
        running.cli(
            "users", "create", "--email", "boss@example.com", "--role", "manager", "--team", "research", "--password-stdin", stdin=OWN
        )
        running.cli("users", "create", "--email", "far@example.com", "--team", "other")
        yield running


@contextmanager
def logged_in(served: Gateway, email: str, password: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, trust_env=False, timeout=20) as client:
        answer = client.post("/auth/login", json={"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
        yield client


def test_a_manager_brings_a_member_in_who_then_works(served: Gateway) -> None:
    with logged_in(served, "boss@example.com", OWN) as boss:
        made = boss.post("/admin/users", json={"email": "new@example.com", "name": "New", "rpm": 2})
        assert made.status_code == 201, made.text
        link = boss.post(f"/admin/users/{made.json()['id']}/password-link").json()
        done = httpx.post(
            f"{served.url}/auth/password/reset", json={"token": link["token"], "new_password": PASSWORD}, trust_env=False, timeout=20
        )
        assert done.status_code in (200, 204), done.text
        with logged_in(served, "new@example.com", PASSWORD) as member:
            assert [member.post("/v1/chat/completions", json=CHAT).status_code for _ in range(3)] == [200, 200, 429]
            assert member.get("/admin/users").status_code == 403
            assert boss.patch(f"/admin/users/{made.json()['id']}", json={"rpm": None}).status_code == 200
            assert member.post("/v1/chat/completions", json=CHAT).status_code == 200
            seen = [user["email"] for user in boss.get("/admin/users").json()["data"]]
            assert seen == ["boss@example.com", "new@example.com"]
            assert boss.patch(f"/admin/users/{made.json()['id']}", json={"disabled": True}).status_code == 200
            assert member.post("/v1/chat/completions", json=CHAT).status_code == 401


def test_a_service_works_with_a_key_and_never_logs_in(served: Gateway) -> None:
    with logged_in(served, "boss@example.com", OWN) as boss, logged_in(served, "admin@localhost", PASSWORD) as admin:
        service = boss.post("/admin/service-accounts", json={"name": "indexer"}).json()
        made = admin.post("/admin/keys", json={"name": "index", "owner": service["id"]})
        assert made.status_code == 201, made.text
        headers = {"authorization": f"Bearer {made.json()['key']}"}
        assert admin.post(f"/admin/users/{service['id']}/password", json={"password": PASSWORD}).status_code == 409
        with httpx.Client(base_url=served.url, trust_env=False, headers=headers) as robot:
            assert robot.post("/v1/chat/completions", json=CHAT).status_code == 200
            assert robot.get("/admin/users").status_code == 403
            assert boss.patch(f"/admin/users/{service['id']}", json={"disabled": True}).status_code == 200
            assert robot.post("/v1/chat/completions", json=CHAT).status_code == 401


def test_what_the_command_line_takes_away_is_gone_at_once(served: Gateway) -> None:
    with logged_in(served, "boss@example.com", OWN) as boss:
        assert boss.get("/admin/teams").json()["data"][0]["name"] == "research"
        served.cli("users", "set-team", "boss@example.com", "--team", "other")
        assert [user["email"] for user in boss.get("/admin/users").json()["data"]] == ["boss@example.com", "far@example.com"]
        served.cli("users", "set-role", "boss@example.com", "--role", "member")
        assert boss.get("/admin/users").status_code == 403
        assert boss.get("/auth/me").status_code == 200
