"""Reports and lists are answered by a process of their own once it is there, and by the server processes where it is not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway_process import PASSWORD, Gateway, gateway

CONFIG = "models:\n  - id: echo\n    backends: [{type: echo}]\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("r"), CONFIG, GATEWAY_READER_AFTER_S="0") as made:
        yield made


@pytest.fixture(scope="module")
def admin(running: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, trust_env=False, timeout=30) as client:
        answer = client.post("/auth/login", json={"email": "admin@localhost", "password": PASSWORD})
        client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
        yield client


def reader_of(running: Gateway, other_than: int = 0) -> int:
    """Its process id, once it answers."""
    deadline_s = time.monotonic() + 30
    while True:
        found = running.children("gateway.cli.reader")
        if found and found[0] != other_than and (running.home / "run" / "reader.sock").exists():
            return found[0]
        assert time.monotonic() < deadline_s, running.log()
        time.sleep(0.02)


def who(answer: httpx.Response) -> str:
    """The part of a request id that names the process."""
    assert answer.status_code < 500, answer.text
    return answer.headers["x-request-id"][4:20]


def test_reports_are_read_in_a_process_of_their_own(running: Gateway, admin: httpx.Client) -> None:
    reader_of(running)
    server = who(admin.get("/healthz"))
    readings = {
        who(admin.get(path)) for path in ("/admin/usage", "/v1/usage?by=day", "/admin/keys", "/admin/users?limit=1", "/admin/audit")
    }
    assert len(readings) == 1
    assert server not in readings
    assert {who(admin.get("/admin/backends")), who(admin.get("/v1/models")), who(admin.head("/admin/keys"))} == {server}


def test_what_was_changed_a_moment_ago_is_read(running: Gateway, admin: httpx.Client) -> None:
    reader_of(running)
    for number in range(10):
        made = admin.post("/admin/keys", json={"name": f"fresh-{number}", "scopes": ["usage"]})
        assert made.status_code in (200, 201), made.text
        seen = admin.get(f"/admin/keys/{made.json()['id']}")
        assert (seen.status_code, seen.json()["name"]) == (200, f"fresh-{number}")
        own = httpx.get(f"{running.url}/v1/usage", headers={"authorization": f"Bearer {made.json()['key']}"}, trust_env=False, timeout=30)
        assert own.status_code == 200, own.text
        assert admin.post(f"/admin/keys/{made.json()['id']}/revoke").status_code == 200
        own = httpx.get(f"{running.url}/v1/usage", headers={"authorization": f"Bearer {made.json()['key']}"}, trust_env=False, timeout=30)
        assert own.status_code == 401, own.text


def test_who_asks_is_known_there_too(running: Gateway, admin: httpx.Client) -> None:
    """Where from, and with what: a key that may come from elsewhere only is refused, as are those that are none."""
    reader_of(running)
    elsewhere = running.key("elsewhere", "--scopes", "usage", "--networks", "203.0.113.0/24")
    here = running.key("here", "--scopes", "usage", "--networks", "127.0.0.0/8")
    told = {
        name: httpx.get(f"{running.url}/v1/usage", headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=30)
        for name, key in (("elsewhere", elsewhere), ("here", here), ("none", "sk-none"))
    }
    assert {name: answer.status_code for name, answer in told.items()} == {"elsewhere": 403, "here": 200, "none": 401}
    assert all(who(answer) == who(admin.get("/admin/usage")) for answer in told.values())


def test_a_killed_reader_is_not_missed(running: Gateway, admin: httpx.Client) -> None:
    killed = reader_of(running)
    os.kill(killed, signal.SIGKILL)
    server = who(admin.get("/healthz"))
    assert who(admin.get("/admin/usage")) == server  # nobody else is there
    reader_of(running, other_than=killed)
    deadline_s = time.monotonic() + 30
    while who(admin.get("/admin/usage")) == server:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_it_ends_with_the_servers_and_can_be_left_out(tmp_path: Path) -> None:
    with gateway(tmp_path, CONFIG, GATEWAY_READER_AFTER_S="0") as made:
        reader_of(made)
        assert made.stop() == 0
        assert not (made.home / "run" / "reader.sock").exists()
        assert "Traceback" not in made.log()
        made.environment["GATEWAY_READER_AFTER_S"] = "-1"
        made.start()
        assert made.children("gateway.cli.server")
        assert not made.children("gateway.cli.reader")
