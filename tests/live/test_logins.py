"""Logins at a real server of two processes: they share the waits and the one turn; a link from the command line works at once."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway_process import PASSWORD, PLAIN, Gateway, gateway

ADMIN = {"email": "admin@localhost", "password": PASSWORD}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("logins"), arguments=("--workers", "2")) as running:
        yield running


def log_in(gw: Gateway, source: str, login: dict[str, str]) -> httpx.Response:
    """A connection of its own, which either of the two servers may get."""
    transport = httpx.HTTPTransport(local_address=source, verify=PLAIN)
    with httpx.Client(transport=transport, base_url=gw.url, trust_env=False, timeout=30) as client:
        return client.post("/auth/login", json=login)


def test_processes_share_the_waits_and_the_owner_is_in(running: Gateway) -> None:
    assert log_in(running, "127.0.0.1", ADMIN).status_code == 200
    guesses = Counter(log_in(running, "127.5.5.5", ADMIN | {"password": f"guess {i}"}).status_code for i in range(14))
    assert guesses[401] <= 7  # five free, and those whose wait was over; each process alone would let five through
    assert guesses.keys() == {401, 429}
    refused = log_in(running, "127.5.5.5", ADMIN)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 4
    assert log_in(running, "127.0.0.1", ADMIN).status_code == 200


def test_what_the_files_of_the_run_folder_hold(running: Gateway) -> None:
    for name in ("logins", "passwords.lock", "passwords.lock.behind"):
        file: Path = running.home / "run" / name
        assert file.stat().st_mode & 0o777 == 0o600
        assert b"admin" not in file.read_bytes()
    assert PASSWORD not in running.log()
    assert "guess" not in running.log()


def test_a_link_from_the_command_line(running: Gateway) -> None:
    running.cli("users", "create", "--email", "dana@example.com", "--role", "member")
    url = running.cli("users", "password-link", "dana@example.com").strip()
    token = url.partition("#")[2]
    page = httpx.get(f"{running.url}/auth/password/reset", trust_env=False)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    body = {"token": token, "new_password": "a quite new one"}
    assert httpx.post(f"{running.url}/auth/password/reset", json=body, trust_env=False).status_code == 204
    assert httpx.post(f"{running.url}/auth/password/reset", json=body, trust_env=False).status_code == 400
    assert log_in(running, "127.0.0.1", {"email": "dana@example.com", "password": "a quite new one"}).status_code == 200
    assert token.partition(".")[2] not in running.log()


def test_loopback_addresses_are_all_here() -> None:
    """What the tests above, and the benchmark, stand on."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), source_address=("127.5.5.5", 0)):
        accepted, address = server.accept()
        accepted.close()
        assert address[0] == "127.5.5.5"
