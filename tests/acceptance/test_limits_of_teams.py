"""Limits of teams, users and models with two workers, as an administrator sets them; budgets that are rotated, set back, told of."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import aiohttp
import httpx
import pytest

from tests.gateway_process import PASSWORD, PLAIN, Gateway, gateway

pytestmark = pytest.mark.alone

PATIENCE = aiohttp.ClientTimeout(total=30)
SECRET = "secret of a webhook"
CONFIG = """
models:
  - id: m
    prices: {input: "1", output: "1"}
    maxOutputTokens: 8
    backends: [{type: echo}]
  - id: narrow
    limits: {rpm: 20}
    backends: [{type: echo}]
"""


class Hook(BaseHTTPRequestHandler):
    """Takes what it is told, but for the first attempt."""

    told: list[tuple[str, str, bytes]]
    first = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        refused, type(self).first = self.first, False
        if not refused:
            self.told.append((self.headers["x-gateway-event"], self.headers["x-gateway-signature"], body))
        self.send_response(503 if refused else 204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def hook() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    Hook.told = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/events", Hook.told
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, hook: tuple[str, list[Any]]) -> Iterator[Gateway]:
    more = {"GATEWAY_DRAIN_S": "1", "GATEWAY_WEBHOOK_URL": hook[0], "GATEWAY_WEBHOOK_SECRET": SECRET}
    with gateway(tmp_path_factory.mktemp("teams"), CONFIG, arguments=("--workers", "2"), **more) as made:
        yield made


@pytest.fixture(scope="module")
def admin(running: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, trust_env=False, verify=PLAIN, timeout=10) as client:
        login = client.post("/auth/login", json={"email": "admin@localhost", "password": PASSWORD})
        client.headers["authorization"] = f"Bearer {login.json()['access_token']}"
        yield client


def made(admin: httpx.Client, path: str, **body: Any) -> Any:
    answer = admin.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def member(admin: httpx.Client, name: str, **body: Any) -> str:
    return str(made(admin, "/admin/users", email=f"{name}@localhost", **body)["id"])


def key(admin: httpx.Client, owner: str, **body: Any) -> dict[str, str]:
    issued = made(admin, "/admin/keys", name="k", owner=owner, **body)
    return {"authorization": f"Bearer {issued['key']}", "id": issued["id"]}


async def many(running: Gateway, keys: list[dict[str, str]], count: int, model: str = "m") -> list[tuple[int, str, str]]:
    """(status, which process, what an error says), each on a connection of its own; the keys take turns."""

    async def ask(number: int) -> tuple[int, str, str]:
        headers = {"authorization": keys[number % len(keys)]["authorization"]}
        body = {"model": model, "messages": [{"role": "user", "content": "one two"}]}
        async with (
            aiohttp.ClientSession(running.url, headers=headers, timeout=PATIENCE) as http,
            http.post("/v1/chat/completions", json=body) as answer,
        ):
            said = (await answer.json()).get("error", {})
            return answer.status, answer.headers["x-request-id"][4:20], f"{said.get('code')}: {said.get('message')}"

    return list(await asyncio.gather(*(ask(number) for number in range(count))))


async def refusals_of(running: Gateway, keys: list[dict[str, str]], limit: int, whose: str, model: str = "m") -> None:
    """So many of a minute are admitted, whoever asks and whichever process they come to; the rest is refused because of `whose` limit."""
    began_s = time.monotonic()
    seen = await many(running, keys, 60, model)
    counted = Counter(status for status, _, _ in seen)
    assert limit <= counted[200] <= limit + (time.monotonic() - began_s) * limit / 60 + 1, counted
    assert counted[200] + counted[429] == 60
    assert {f"of this {whose} " in said for status, _, said in seen if status == 429} == {True}
    assert len({process for _, process, _ in seen}) == 2


async def test_a_teams_limit_is_shared_by_the_keys_of_its_users(running: Gateway, admin: httpx.Client) -> None:
    team = made(admin, "/admin/teams", name="shared", rpm=20)["id"]
    keys = [key(admin, member(admin, name, team=team)) for name in ("one", "two")]
    await refusals_of(running, keys, 20, "team")


async def test_a_limit_of_a_team_reaches_all_processes_within_50_ms(running: Gateway, admin: httpx.Client) -> None:
    """A budget of nothing: every request from then on is refused."""
    team = made(admin, "/admin/teams", name="stopped")["id"]
    keys = [key(admin, member(admin, "three", team=team))]
    assert {status for status, _, _ in await many(running, keys, 30)} == {200}
    assert admin.patch(f"/admin/teams/{team}", json={"budget": "0"}).status_code == 200
    await asyncio.sleep(0.05)
    seen = await many(running, keys, 30)
    assert {status for status, _, _ in seen} == {429}
    assert len({process for _, process, _ in seen}) == 2
    assert admin.patch(f"/admin/teams/{team}", json={"budget": None}).status_code == 200
    await asyncio.sleep(0.05)
    assert {status for status, _, _ in await many(running, keys, 30)} == {200}


async def test_a_users_limit_binds_two_of_their_keys_together(running: Gateway, admin: httpx.Client) -> None:
    owner = member(admin, "four", rpm=20)
    await refusals_of(running, [key(admin, owner), key(admin, owner)], 20, "user")


async def test_a_models_limit_binds_all(running: Gateway, admin: httpx.Client) -> None:
    keys = [key(admin, member(admin, name)) for name in ("five", "six")]
    await refusals_of(running, keys, 20, "model", "narrow")


async def test_a_spent_budget_outlives_rotation_and_restart_and_is_set_back_and_told_of(
    running: Gateway, admin: httpx.Client, hook: tuple[str, list[tuple[str, str, bytes]]]
) -> None:
    """A request reserves 0.00015 USD and costs 0.000004."""
    one = key(admin, member(admin, "seven"), budget="0.0002/month", soft=10)
    path = f"/admin/keys/{one['id']}"

    async def until_refused() -> None:
        for _ in range(40):
            if {status for status, _, _ in await many(running, [one], 2)} == {429}:
                return
        raise AssertionError("the budget is never spent")

    await until_refused()
    rotated = admin.post(f"{path}/rotate").json()
    one["authorization"] = f"Bearer {rotated['key']}"
    assert {status for status, _, _ in await many(running, [one], 4)} == {429}
    end_s = time.monotonic() + 20
    while len(events := [event for event in told(hook[1]) if event["id"] == one["id"]]) < 2:
        assert time.monotonic() < end_s, events
        await asyncio.sleep(0.1)
    assert {(event["type"], event["whose"], event["amount"], event["window"]) for event in events} == {
        ("budget.soft", "key", "0.0002", "month"),
        ("budget.spent", "key", "0.0002", "month"),
    }
    shown = admin.get(path).json()["spent"]["budget"]
    assert float(shown["spent"]) + float(shown["left"]) == pytest.approx(0.0002)
    assert float(shown["spent"]) > 0.00003
    await asyncio.to_thread(running.stop)
    await asyncio.to_thread(running.start)
    assert {status for status, _, _ in await many(running, [one], 4)} == {429}
    assert admin.post(f"{path}/budget/reset").json()["spent"]["budget"]["spent"] == "0"
    assert {status for status, _, _ in await many(running, [one], 1)} == {200}
    await asyncio.sleep(3)
    assert len([event for event in told(hook[1]) if event["id"] == one["id"]]) == 2, "a restart tells nothing again"
    await until_refused()
    await asyncio.to_thread(running.stop)
    await asyncio.to_thread(running.start)
    assert {status for status, _, _ in await many(running, [one], 4)} == {429}, "what came after the reset counts"


def told(sent: list[tuple[str, str, bytes]]) -> list[dict[str, Any]]:
    """What the webhook took, its signatures compared."""
    for _, signature, body in sent:
        at, digest = (part.partition("=")[2] for part in signature.split(","))
        assert digest == hmac.new(SECRET.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert len({event_id for event_id, _, _ in sent}) == len(sent)
    return [json.loads(body) for _, _, body in sent]
