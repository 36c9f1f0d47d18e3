"""The control plane as it is served: behind the relay's protocol, on a real socket, with the command line beside it."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.gateway_process import PASSWORD, Gateway, gateway

CONFIG = """
models:
  - id: chat
    backends: [{type: echo}]
  - id: team/large
    backends: [{type: echo}]
"""
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
RELAY_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/tokenize", "/v1/detokenize", "/tokenize", "/detokenize")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("api"), CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def admin(served: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, trust_env=False, timeout=10) as client:
        answer = client.post("/auth/login", json={"email": "admin@localhost", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        client.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
        yield client


def test_a_new_key_works_at_once_and_a_revoked_one_no_more(admin: httpx.Client, served: Gateway) -> None:
    for _ in range(5):
        made = admin.post("/admin/keys", json={"name": "now"}).json()
        headers = {"authorization": f"Bearer {made['key']}"}
        with httpx.Client(base_url=served.url, trust_env=False) as client:
            assert client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200
            assert admin.post(f"/admin/keys/{made['id']}/revoke").status_code == 200
            assert client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 401


def test_the_sdk_lists_and_retrieves_models(admin: httpx.Client, served: Gateway) -> None:
    key = admin.post("/admin/keys", json={"name": "sdk", "models": ["team/*"]}).json()["key"]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as sdk:
        assert [model.id for model in sdk.models.list()] == ["team/large"]
        assert sdk.models.retrieve("team/large").owned_by == "gateway"
        with pytest.raises(openai.NotFoundError) as refused:
            sdk.models.retrieve("chat")
        assert refused.value.code == "model_not_found"
        assert refused.value.request_id
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0) as sdk,
        pytest.raises(openai.AuthenticationError) as wrong,
    ):
        sdk.models.list()
    assert wrong.value.code == "invalid_api_key"


def raw(served: Gateway, request: str) -> tuple[int, str]:
    """Status and whole answer of bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return int(answer.split(b" ", 2)[1]), answer.decode()


def test_slashes_in_model_ids_raw_and_escaped(admin: httpx.Client, served: Gateway) -> None:
    credential = admin.headers["authorization"]
    for path in ("/v1/models/team/large", "/v1/models/team%2Flarge", "/v1/models/team%2flarge"):
        status, answer = raw(served, f"GET {path} HTTP/1.1\nhost: x\nauthorization: {credential}\nconnection: close\n\n")
        assert status == 200
        assert '"id":"team/large"' in answer


@pytest.mark.parametrize("path", RELAY_PATHS)
def test_relay_paths_with_other_methods(served: Gateway, admin: httpx.Client, path: str) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        answer = admin.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    preflight = admin.options(
        path,
        headers={
            "origin": "https://app.example.com",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        },
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-lang"
    answer = admin.post(path, json={}, headers={"origin": "https://app.example.com"})
    assert answer.headers["access-control-allow-origin"] == "*"


def test_a_connection_survives_refusals(served: Gateway) -> None:
    """A 401 before a body, a 404, a 413 and a 400 on one connection, which then still serves."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        for request, status in (
            ("POST /admin/keys HTTP/1.1\nhost: x\ncontent-length: 2\n\n{}", 401),
            ("GET /nothing HTTP/1.1\nhost: x\n\n", 404),
            ("POST /auth/login HTTP/1.1\nhost: x\ncontent-length: 2\n\n{}", 400),
            ("POST /auth/login HTTP/1.1\nhost: x\ncontent-length: 70000\n\n" + " " * 70_000, 413),
            ("GET /healthz HTTP/1.1\nhost: x\nconnection: close\n\n", 200),
        ):
            head, _, body = request.partition("\n\n")
            connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body.encode())
            assert _read(connection) == status


def _read(connection: socket.socket) -> int:
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "target", ["/v1/models?x=/healthz", "//healthz/../v1/models", "/v1/models#/healthz", "/v1/models;/healthz", "/admin/users?/docs"]
)
@pytest.mark.parametrize("host", ["x", "x/healthz?", "x@y", "x#", "[::1]:80/healthz?"])
def test_neither_host_nor_path_lets_anybody_in(served: Gateway, target: str, host: str) -> None:
    status, answer = raw(served, f"GET {target} HTTP/1.1\nhost: {host}\nconnection: close\n\n")
    assert status in (400, 401, 404)
    assert "owned_by" not in answer


def test_metrics_are_for_local_peers(served: Gateway, admin: httpx.Client) -> None:
    assert httpx.get(f"{served.url}/metrics", trust_env=False).status_code == 200
    assert httpx.get(f"{served.url}/metrics", headers={"x-forwarded-for": "127.0.0.1"}, trust_env=False).status_code == 401
    assert admin.get("/metrics", headers={"x-forwarded-for": "10.0.0.1"}).status_code == 200


def test_usage_is_what_the_requests_used(served: Gateway, admin: httpx.Client) -> None:
    made = admin.post("/admin/keys", json={"name": "counted", "scopes": ["inference", "usage"]}).json()
    spent = 0
    with httpx.Client(base_url=served.url, headers={"authorization": f"Bearer {made['key']}"}, trust_env=False) as client:
        for _ in range(5):
            spent += client.post("/v1/chat/completions", json=CHAT).json()["usage"]["total_tokens"]
        asyncio.run(_until(lambda: _total(client.get("/v1/usage").json()) == (5, spent)))
    row = next(entry for entry in admin.get("/admin/usage?by=key").json()["data"] if entry["key_id"] == made["id"])
    assert row["prompt_tokens"] + row["completion_tokens"] == spent


def _total(report: dict[str, Any]) -> tuple[int, int]:
    rows = report["data"]
    return sum(row["requests"] for row in rows), sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)


async def _until(done: Any, within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not done():
            await asyncio.sleep(0.1)


def test_change_a_weight_and_take_it_back(admin: httpx.Client) -> None:
    document = admin.get("/admin/revisions/live").json()["document"]
    document["models"][0]["backends"][0]["weight"] = 0
    assert admin.post("/admin/revisions", json={"document": document, "note": "drained"}).status_code == 201
    drained = admin.post("/v1/chat/completions", json=CHAT)
    assert (drained.status_code, drained.json()["error"]["code"]) == (503, "no_backend_available")
    assert admin.post("/admin/revisions/rollback").status_code == 200
    assert admin.post("/v1/chat/completions", json=CHAT).status_code == 200


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_docs_in_a_browser_send_a_chat(served: Gateway, admin: httpx.Client) -> None:
    """The page loads nothing from elsewhere, breaks no rule of its own policy, and "Try it out" reaches the relay."""
    from playwright.sync_api import sync_playwright

    key = admin.post("/admin/keys", json={"name": "browser"}).json()["key"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{served.url}/docs")
        page.click("button.authorize")
        page.fill("#auth-bearer-value", key)
        page.click(".auth-container:has(#auth-bearer-value) button.authorize")
        page.click("button.btn-done")
        page.click("#operations-inference-below_v1_chat_completions_post .opblock-summary-control")
        page.click("text=Try it out")
        page.fill("textarea.body-param__text", '{"model": "chat", "messages": [{"role": "user", "content": "from a browser"}]}')
        page.click("button.execute")
        page.wait_for_selector(".live-responses-table .response-col_status:has-text('200')", timeout=15_000)
        assert "chat.completion" in page.inner_text(".live-responses-table")
        browser.close()
    assert all(url.startswith((served.url, "data:", "blob:")) for url in asked), asked
    assert not [text for text in said if "Content Security Policy" in text or "rror" in text], said


def test_env_files_of_the_working_folder_do_not_reach_slowapi(tmp_path: Path) -> None:
    """A home next to a hostile .env: login limits stay on."""
    (tmp_path / ".env").write_text("RATELIMIT_ENABLED=false\n")
    with gateway(tmp_path, CONFIG) as running, httpx.Client(base_url=running.url, trust_env=False) as client:
        codes = [client.post("/auth/refresh", json={"refresh_token": "z"}).status_code for _ in range(61)]
        assert codes == [401] * 60 + [429]
