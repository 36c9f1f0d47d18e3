"""What the gateway sends, and where: no client chooses a host, no client's credential leaves, no redirect and no proxy leads elsewhere."""

from __future__ import annotations

import ast
from pathlib import Path

import httpx
import pytest

from auth.address import forbidden_address
from tests.relay_server import relay_server, route, target
from tests.upstream import Seen, Upstream, Wire

ROOT = Path(__file__).parents[2]
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ALLOWED = {
    "host",
    "authorization",
    "content-type",
    "content-length",
    "accept",
    "accept-encoding",
    "user-agent",
    "connection",
    "traceparent",
    "tracestate",
    "openai-beta",
    "anthropic-version",
    "anthropic-beta",
    "accept-language",
    "x-request-id",  # our own
}
HOSTILE = {
    "cookie": "session=client-secret-1",
    "proxy-authorization": "Bearer client-secret-2",
    "x-forwarded-for": "203.0.113.9",
    "x-forwarded-host": "evil.example",
    "x-real-ip": "203.0.113.9",
    "forwarded": "for=203.0.113.9",
    "x-goog-api-key": "client-secret-3",
    "x-amz-security-token": "client-secret-4",
    "openai-organization": "client-secret-5",
    "x-custom-secret": "client-secret-6",
    "x-portkey-custom-host": "http://127.0.0.1:1",
    "x-http-method-override": "DELETE",
    "te": "trailers",
    "via": "1.1 x",
    "x-request-id": "client-secret-7",
}


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_of_the_clients_headers_reaches_a_backend_but_what_is_allowed(header: str, stream: bool) -> None:
    async with Upstream() as upstream, relay_server(route([target(upstream.url)])) as server, httpx.AsyncClient(trust_env=False) as http:
        form = "Bearer {}" if header == "authorization" else "{}"
        headers = HOSTILE | {header: form.format(server.key)}
        answer = await http.post(f"{server.url}/v1/chat/completions", json=BODY | {"stream": stream}, headers=headers)
        assert answer.status_code == 200
        seen = upstream.seen[0]
        assert set(seen.headers) <= ALLOWED
        assert seen.headers["authorization"] == "Bearer upstream-secret"
        assert server.key not in str(seen)
        assert "client-secret" not in str(seen)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    """The credential that was meant for one host would go to another."""
    async with Upstream() as elsewhere:

        async def redirect(wire: Wire, seen: Seen) -> None:
            await wire.answer({}, status, location=f"{elsewhere.url}/chat/completions")

        async with (
            Upstream(redirect) as upstream,
            relay_server(route([target(upstream.url)])) as server,
            httpx.AsyncClient(trust_env=False) as http,
        ):
            headers = {"authorization": f"Bearer {server.key}"}
            answer = await http.post(f"{server.url}/v1/chat/completions", json=BODY, headers=headers)
            assert answer.status_code == 502
            assert "location" not in answer.headers
            assert str(elsewhere.port) not in answer.text
        assert elsewhere.seen == []


async def test_a_client_chooses_no_host() -> None:
    async with Upstream() as elsewhere, Upstream() as upstream, relay_server(route([target(upstream.url)])) as server:
        async with httpx.AsyncClient(trust_env=False) as http:
            choice = {"api_base": elsewhere.url, "base_url": elsewhere.url, "baseURL": elsewhere.url, "custom_host": elsewhere.url}
            headers = {"authorization": f"Bearer {server.key}", "host": f"127.0.0.1:{elsewhere.port}"}
            answer = await http.post(f"{server.url}/v1/chat/completions", json=BODY | choice, headers=headers, params=choice)
            assert answer.status_code == 200
        assert elsewhere.seen == []
        assert upstream.seen[0].headers["host"] == f"127.0.0.1:{upstream.port}"
        assert upstream.seen[0].path == "/v1/chat/completions"


async def test_no_picture_and_no_file_is_fetched_for_a_client() -> None:
    async with Upstream() as elsewhere, Upstream() as upstream, relay_server(route([target(upstream.url)])) as server:
        async with httpx.AsyncClient(trust_env=False) as http:
            parts = [{"type": "image_url", "image_url": {"url": f"{elsewhere.url}/picture.png"}}]
            body = {"model": "m", "messages": [{"role": "user", "content": parts}]}
            headers = {"authorization": f"Bearer {server.key}"}
            assert (await http.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)).status_code == 200
        assert elsewhere.seen == []


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "::ffff:169.254.169.254",
    ],
)
def test_metadata_and_link_local_addresses_are_forbidden_however_they_are_written(address: str) -> None:
    assert forbidden_address(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.5", "192.168.1.1", "203.0.113.7", "::1", "2001:db8::1"])
def test_addresses_where_models_stand_are_not(address: str) -> None:
    assert forbidden_address(address) is None


def test_every_http_client_keeps_to_itself() -> None:
    """No proxy from the environment, no redirects: said where each client of httpx is made, and nobody uses its short forms."""
    made = 0
    for folder in ("gateway", "auth", "backends"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "httpx"):
                    continue
                place, name = f"{file.relative_to(ROOT)}:{node.lineno}", node.func.attr
                assert name not in ("get", "post", "put", "request", "stream", "head", "delete", "patch"), place
                if name not in ("AsyncClient", "Client"):
                    continue
                made += 1
                chosen = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                assert chosen.get("trust_env") is False, place
                assert chosen.get("follow_redirects", False) is False, place
    assert made
