"""deploy/nginx.conf before a real gateway, and the image's health check against one."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.gateway_process import PASSWORD, Gateway, free_port, gateway

DEPLOY = Path(__file__).parents[2] / "deploy"
CHUNK_S = 0.15
CONFIG = f"""
models:
  - {{id: slow, backends: [{{type: echo, chunk_delay_ms: {CHUNK_S * 1000:.0f}}}]}}
  - {{id: stuck, backends: [{{type: echo, delay_ms: 60000}}]}}
"""


def tool(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        reason = f"{name} is not installed (Debian: apt-get install {name})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("behind"), CONFIG, GATEWAY_TRUSTED_PROXIES="127.0.0.1") as running:
        yield running


@pytest.fixture(scope="module")
def front(server: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of nginx with deploy/nginx.conf: ports and certificate paths replaced, nothing else."""
    nginx, folder = tool("nginx"), tmp_path_factory.mktemp("nginx")
    plain, tls = free_port(), free_port()
    _certificate(folder)
    site = (DEPLOY / "nginx.conf").read_text()
    for old, new in (
        ("127.0.0.1:8000", f"127.0.0.1:{server.port}"),
        ("/etc/nginx/tls/", f"{folder}/"),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("listen 443 ", f"listen 127.0.0.1:{tls} "),
    ):
        assert old in site
        site = site.replace(old, new)
    site = re.sub(r"^\s*listen \[::\].*\n", "", site, flags=re.M)
    (folder / "site.conf").write_text(site)
    paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    main = f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
    (folder / "nginx.conf").write_text(f"{main}http {{ access_log off; {paths} include {folder}/site.conf; }}\n")
    command = [nginx, "-c", f"{folder}/nginx.conf", "-p", str(folder)]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    trust = ssl.create_default_context(cafile=f"{folder}/gateway.crt")
    try:
        fresh = httpx.Limits(max_keepalive_connections=0)  # a connection that nginx closes between two tests must not meet a request
        with httpx.Client(base_url=f"https://127.0.0.1:{tls}", verify=trust, timeout=20, trust_env=False, limits=fresh) as client:
            _until_up(client)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def _certificate(folder: Path) -> None:
    """A certificate for the name in the file and for this machine, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway.example.com")])
    names = x509.SubjectAlternativeName([x509.DNSName("gateway.example.com"), x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now - timedelta(hours=1), now + timedelta(days=1)
        )
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "gateway.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "gateway.key").write_bytes(private)


def _until_up(client: httpx.Client) -> None:
    deadline_s = time.monotonic() + 10
    while True:
        try:
            client.get("/healthz")
            return
        except httpx.ConnectError:
            assert time.monotonic() < deadline_s, "nginx does not answer"
            time.sleep(0.05)


def test_streams_go_through_event_by_event(front: httpx.Client, server: Gateway) -> None:
    body = {
        "model": "slow",
        "stream": True,
        "messages": [{"role": "user", "content": "one two three four five six seven eight nine ten eleven twelve"}],
    }
    headers = {"authorization": f"Bearer {server.key()}", "accept-encoding": "gzip"}
    arrived_s = []
    with front.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        assert "content-encoding" not in answer.headers
        text = ""
        for piece in answer.iter_text():
            text += piece
            arrived_s.append(time.monotonic())
    assert text.endswith("data: [DONE]\n\n")
    assert len(arrived_s) >= 6
    assert arrived_s[-1] - arrived_s[0] > 4 * CHUNK_S


def test_the_backend_stops_when_a_client_of_the_proxy_leaves(front: httpx.Client, server: Gateway) -> None:
    headers = {"authorization": f"Bearer {server.key('leaver')}"}
    with pytest.raises(httpx.ReadTimeout):
        body = {"model": "stuck", "messages": [{"role": "user", "content": "x"}]}
        front.post("/v1/chat/completions", json=body, headers=headers, timeout=httpx.Timeout(20, read=1.5))
    deadline_s = time.monotonic() + 5
    while True:
        rows = [json.loads(line) for line in server.cli("ledger", "export").splitlines()]
        if left := [row for row in rows if row["model"] == "stuck"]:
            assert [row["ending"] for row in left] == ["client_gone"]
            return
        assert time.monotonic() < deadline_s


def test_metrics_are_not_for_the_outside(front: httpx.Client, server: Gateway) -> None:
    assert front.get("/metrics").status_code == 404
    assert httpx.get(f"{server.url}/metrics", trust_env=False).status_code == 200
    seen_through_a_proxy = httpx.get(f"{server.url}/metrics", headers={"x-forwarded-for": "203.0.113.7"}, trust_env=False)
    assert seen_through_a_proxy.status_code == 401


def test_refusals_are_the_gateways_own(front: httpx.Client) -> None:
    answer = front.post("/v1/chat/completions", json={"model": "slow"}, headers={"authorization": "Bearer no"})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["x-request-id"]


def test_the_gateway_knows_who_asked_and_what_clients_write_does_not_count(front: httpx.Client, server: Gateway) -> None:
    token = front.post("/auth/login", json={"email": "admin@localhost", "password": PASSWORD}).json()["access_token"]
    mine = {"authorization": f"Bearer {token}", "x-forwarded-for": "203.0.113.7", "forwarded": "for=203.0.113.8"}
    elsewhere = httpx.HTTPTransport(verify=False, local_address="127.5.5.5", trust_env=False)  # another client, on this machine too
    with httpx.Client(base_url=front.base_url, transport=elsewhere, headers=mine) as client:
        made = client.post("/admin/keys", json={"name": "through nginx"})
    assert made.status_code == 201
    assert made.headers.get_list("strict-transport-security") == ["max-age=31536000"]
    direct = httpx.post(f"{server.url}/admin/keys", json={"name": "direct"}, headers=mine, trust_env=False)
    assert direct.status_code == 201
    assert "strict-transport-security" not in direct.headers
    found = front.get("/admin/audit", headers=mine).json()["data"]
    addresses = {entry["entity_id"]: entry["address"] for entry in found if entry["entity"] == "key"}
    assert addresses[made.json()["id"]] == "127.5.5.5"  # as nginx says, whatever the client wrote
    assert addresses[direct.json()["id"]] is None  # from the proxy's own address, in two headers that disagree: nobody's


def test_a_login_cookie_is_for_tls_alone_and_guesses_are_slowed(front: httpx.Client) -> None:
    body = {"email": "admin@localhost", "password": PASSWORD, "cookie": True}
    answer = front.post("/auth/login", json=body)
    assert answer.status_code == 200
    assert "secure" in answer.headers["set-cookie"].lower()
    statuses = [front.post("/auth/login", json={"email": "nobody@localhost", "password": "x" * 10}).status_code for _ in range(25)]
    assert statuses[0] == 401
    assert 429 in statuses


def test_the_image_knows_whether_it_is_well(server: Gateway) -> None:
    check = next(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.strip().startswith("CMD") and "readyz" in line)
    _, option, program = json.loads(check.partition("CMD")[2])

    def health(port: int) -> int:
        command = [sys.executable, option, program]
        return subprocess.run(command, env={"PORT": str(port), "http_proxy": "http://127.0.0.1:9"}, capture_output=True).returncode

    assert health(server.port) == 0
    assert health(free_port()) != 0
