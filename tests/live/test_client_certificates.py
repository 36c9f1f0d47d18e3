"""A whole gateway that asks its clients for certificates: who has none gets no connection, and its own processes still reach it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from gateway import own_client
from tests.wire.authority import Authority
from tests.wire.tls_parts import TlsGateway

CONFIG = json.dumps({"models": [{"id": "m", "backends": [{"type": "echo"}]}]})
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TlsGateway, Authority, Authority, Path]]:
    folder = tmp_path_factory.mktemp("mtls")
    authority, staff = Authority(folder), Authority(folder, "staff")
    cert, key = authority.issue("gateway")
    clients = folder / "clients.pem"
    shutil.copyfile(staff.file, clients)
    environment = {"GATEWAY_TLS_CERT_FILE": str(cert), "GATEWAY_TLS_KEY_FILE": str(key), "GATEWAY_TLS_CLIENT_CA_FILE": str(clients)}
    made = TlsGateway(folder / "home", CONFIG, environment, context=authority.client_context(staff.issue("dana")))
    try:
        made.start()
        yield made, authority, staff, clients
    finally:
        if made.process is not None and made.process.poll() is None:
            made.stop()
        made.kill()


def _asked(url: str, verify: object) -> int | None:
    try:
        return httpx.get(f"{url}/v1/models", verify=verify, trust_env=False, timeout=5).status_code  # type: ignore[arg-type]
    except httpx.TransportError:
        return None


def test_with_a_certificate_all_is_as_ever(served: tuple[TlsGateway, Authority, Authority, Path]) -> None:
    gateway = served[0]
    with gateway.http(headers={"authorization": f"Bearer {gateway.key()}"}) as http:
        for stream in (False, True):
            assert http.post("/v1/chat/completions", json=CHAT | {"stream": stream}).status_code == 200
    with gateway.http() as http:
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 401  # a certificate is no key


def test_without_one_there_is_no_connection(served: tuple[TlsGateway, Authority, Authority, Path]) -> None:
    gateway, authority, staff, _ = served
    assert _asked(gateway.url, authority.client_context()) is None
    assert _asked(gateway.url, authority.client_context(authority.issue("erin"))) is None
    assert _asked(gateway.url, authority.client_context(staff.issue("frank", expired=True))) is None
    assert _asked(gateway.url, gateway.context) == 401


def test_its_own_processes_have_one(served: tuple[TlsGateway, Authority, Authority, Path]) -> None:
    gateway = served[0]
    assert "Ready." in gateway.log()  # said by the supervisor, after it was answered
    run = gateway.home / "run"
    assert httpx.get(f"{gateway.url}/metrics", verify=own_client.context(run), trust_env=False).status_code == 200
    gateway.environment["PORT"] = str(gateway.port)
    found = {finding["check"]: finding for finding in json.loads(gateway.cli("doctor", "--json"))}
    assert "the gateway answers" in found["port"]["message"]
    assert "clients are checked against" in found["tls"]["message"]


def test_a_changed_authority_is_in_force_without_a_restart(served: tuple[TlsGateway, Authority, Authority, Path], tmp_path: Path) -> None:
    gateway, authority, staff, clients = served
    after = Authority(tmp_path, "after")
    erin = authority.client_context(after.issue("erin"))
    assert _asked(gateway.url, erin) is None
    shutil.copyfile(after.file, clients)
    _until(lambda: _asked(gateway.url, erin) == 401)
    assert _asked(gateway.url, gateway.context) is None
    assert httpx.get(f"{gateway.url}/healthz", verify=own_client.context(gateway.home / "run"), trust_env=False).status_code == 200
    shutil.copyfile(staff.file, clients)
    _until(lambda: _asked(gateway.url, gateway.context) == 401)


def _until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
