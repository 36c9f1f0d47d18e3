"""Every admitted request is accounted for exactly once: `usage`, the ledger and `/v1/usage` agree with what clients saw."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.acceptance.admin import admin
from tests.acceptance.misbehaving import misbehaving_upstream, routes
from tests.gateway_process import Gateway, gateway

REQUESTS = 500
PATIENCE = aiohttp.ClientTimeout(total=60)
INPUT_USD, OUTPUT_USD = Decimal("1.5") / 1_000_000, Decimal("60") / 1_000_000
PATIENT = "{connect_s: 10, first_byte_s: 30, idle_s: 30, total_s: 60}"  # nothing here is silent
CONFIG = """
models:
  - id: echo
    prices: {input: "1.5", output: "60"}
    backends: [{type: echo}]
  - id: slow
    prices: {input: "1.5", output: "60"}
    maxOutputTokens: 50
    backends: [{type: echo, delay_ms: 400}]
  - id: held
    backends: [{type: echo, delay_ms: 2000}]
  - id: trickle
    backends: [{type: echo, chunk_delay_ms: 100}]
"""


@dataclass
class Seen:
    """What the client of one request saw. `usage` None: there was none to see."""

    status: int
    request_id: str
    usage: dict[str, int] | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with misbehaving_upstream() as upstream, gateway(tmp_path_factory.mktemp("usage"), CONFIG + routes(upstream.url, PATIENT)) as made:
        yield made


def ledger(running: Gateway) -> list[dict[str, Any]]:
    return [json.loads(line) for line in running.cli("ledger", "export").splitlines()]


async def ask(http: aiohttp.ClientSession, key: str, path: str, body: dict[str, Any]) -> Seen:
    async with http.post(f"/v1/{path}", json=body, headers={"authorization": f"Bearer {key}"}) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        seen = Seen(answer.status, headers["x-request-id"], headers=headers)
        if not headers["content-type"].startswith("text/event-stream"):
            value = await answer.json()
            seen.usage, seen.code = value.get("usage"), (value.get("error") or {}).get("code")
            return seen
        async for line in answer.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                seen.usage = event.get("usage") or seen.usage
                seen.code = (event.get("error") or {}).get("code")
    return seen


def chat(model: str, words: int = 3, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": " ".join(["word"] * words)}]} | more


STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def mixed(rng: random.Random) -> tuple[str, dict[str, Any], bool]:
    """(path, body, is it admitted)."""
    words = rng.randint(1, 40)
    text = " ".join(["word"] * words)
    kinds: list[tuple[str, dict[str, Any], bool]] = [
        ("chat/completions", chat("echo", words), True),
        ("chat/completions", chat("echo", words, **STREAM), True),
        ("chat/completions", chat("echo", words, **STREAM, max_tokens=5), True),
        ("chat/completions", chat("up/good", words), True),
        ("chat/completions", chat("up/good", words, **STREAM), True),
        ("completions", {"model": "echo", "prompt": text}, True),
        ("completions", {"model": "echo", "prompt": text} | STREAM, True),
        ("embeddings", {"model": "echo", "input": [text, "two"]}, True),
        ("embeddings", {"model": "echo", "input": text, "encoding_format": "base64"}, True),
        ("chat/completions", chat("up/500"), True),
        ("chat/completions", chat("up/400"), True),
        ("chat/completions", chat("up/503"), True),
        ("chat/completions", chat("up/error-event", **STREAM), True),
        ("chat/completions", chat("nobody"), False),
        ("chat/completions", chat("echo", messages=[]), False),
        ("chat/completions", chat("echo", max_tokens="x"), False),
    ]
    return rng.choice(kinds)


def totals(rows: list[dict[str, Any]], by: str) -> dict[str, tuple[int, int, int]]:
    return {row[by]: (row["requests"], row["prompt_tokens"], row["completion_tokens"]) for row in rows}


async def test_usage_is_what_500_clients_saw(running: Gateway) -> None:
    with admin(running) as root:
        issued = [root.issue(f"k{n}", scopes=["inference", "usage"]) for n in range(3)]
    rng = random.Random(20)
    plan = [(rng.choice(issued), *mixed(rng)) for _ in range(REQUESTS)]
    expected: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    cost: dict[str, Decimal] = defaultdict(Decimal)
    by_id: dict[str, tuple[str, Seen]] = {}
    refused: set[str] = set()
    waiting = iter(plan)

    async def client(http: aiohttp.ClientSession) -> None:
        for key, path, body, admitted in waiting:
            seen = await ask(http, key["key"], path, body)
            if not admitted:
                assert seen.status in (400, 404)
                refused.add(seen.request_id)
                continue
            by_id[seen.request_id] = (key["id"], seen)
            used = seen.usage or {}
            tokens = used.get("prompt_tokens", 0), used.get("completion_tokens", 0)
            for at, value in enumerate((1, *tokens)):
                expected[key["id"]][at] += value
            if body["model"] == "echo":
                cost[key["id"]] += tokens[0] * INPUT_USD + tokens[1] * OUTPUT_USD

    async with aiohttp.ClientSession(running.url, timeout=PATIENCE) as http:
        await asyncio.gather(*(client(http) for _ in range(12)))
        told = await asyncio.to_thread(running.cli_json, "usage", "--by", "key")
        assert totals(told, "key_id") == {key_id: tuple(counts) for key_id, counts in expected.items()}
        assert {row["key_id"]: Decimal(row["cost"]) for row in told} == cost
        assert len(by_id) + len(refused) == REQUESTS
        assert len(refused) > 20

        rows = await asyncio.to_thread(ledger, running)
        assert Counter(row["request_id"] for row in rows) == Counter(by_id.keys())
        for row in rows:
            key_id, seen = by_id[row["request_id"]]
            assert (row["key_id"], row["status"]) == (key_id, seen.status)
            used = seen.usage or {}
            assert (row["prompt_tokens"], row["completion_tokens"]) == (used.get("prompt_tokens", 0), used.get("completion_tokens", 0))
            assert (row["ending"] == "success") == (seen.status == 200)
            assert (row["ttft_ms"] is not None) == seen.headers["content-type"].startswith("text/event-stream")
        assert {row["token_source"] for row in rows if row["ending"] == "success"} == {"backend"}
        assert {row["ending"] for row in rows} == {"success", "upstream_error", "rejected"}

        for key in issued:
            headers = {"authorization": f"Bearer {key['key']}"}
            async with http.get("/v1/usage", params={"by": "key"}, headers=headers) as answer:
                own = (await answer.json())["data"]
            assert [{name: row[name] for name in told[0]} for row in own] == [row for row in told if row["key_id"] == key["id"]]
    by_model = running.cli_json("usage", "--by", "model", "--since", "1h")
    assert sum(row["requests"] for row in by_model) == len(by_id)
    assert sum(row["prompt_tokens"] for row in by_model) == sum(counts[1] for counts in expected.values())


# limits, in one process


async def burst(running: Gateway, key: str, count: int, body: dict[str, Any]) -> list[Seen]:
    async with aiohttp.ClientSession(running.url, timeout=PATIENCE) as http:
        return list(await asyncio.gather(*(ask(http, key, "chat/completions", body) for _ in range(count))))


def split(seen: list[Seen], code: str = "rate_limit_exceeded") -> tuple[int, list[Seen]]:
    """How many were admitted, and the refusals."""
    refusals = [one for one in seen if one.status != 200]
    assert {(one.status, one.code) for one in refusals} == {(429, code)}
    return len(seen) - len(refusals), refusals


async def test_requests_per_minute(running: Gateway) -> None:
    key = running.key("rpm", "--rpm", "30")
    began = time.monotonic()
    admitted, refusals = split(await burst(running, key, 60, chat("echo")))
    assert 30 <= admitted <= 30 + (time.monotonic() - began) * 30 / 60
    for one in refusals:
        assert 1 <= int(one.headers["retry-after"]) <= 4
        assert one.headers["x-ratelimit-limit-requests"] == "30"
        assert one.headers["x-ratelimit-remaining-requests"] == "0"


async def test_tokens_per_minute(running: Gateway) -> None:
    """Each reserves its prompt and 80 tokens of answer; what is not used comes back when it ends."""
    key = running.key("tpm", "--tpm", "1000")
    admitted, _ = split(await burst(running, key, 30, chat("held", max_tokens=80)))
    assert 8 <= admitted <= 12
    again, _ = split(await burst(running, key, 30, chat("held", max_tokens=80)))
    assert 8 <= again <= 12
    (never,) = await burst(running, key, 1, chat("held", max_tokens=1001))
    assert (never.status, never.headers["x-should-retry"]) == (429, "false")


async def test_concurrent_requests(running: Gateway) -> None:
    key = running.key("concurrency", "--concurrency", "3")
    for _ in range(2):
        admitted, refusals = split(await burst(running, key, 12, chat("held")))
        assert admitted == 3
        assert all(int(one.headers["retry-after"]) >= 1 for one in refusals)


def price(usage: dict[str, int]) -> Decimal:
    return usage["prompt_tokens"] * INPUT_USD + usage["completion_tokens"] * OUTPUT_USD


async def test_budget(running: Gateway) -> None:
    """200 words in and out cost 0.0123 USD; the reserved bound is higher. What is spent never passes the budget."""
    issued = running.cli_json("keys", "create", "--name", "budget", "--budget", "0.1")
    body = chat("slow", 200, max_tokens=200)
    spent, rounds = Decimal(0), 0
    while True:
        seen = await burst(running, issued["key"], 12, body)
        rounds += 1
        spent += sum((price(one.usage) for one in seen if one.usage), Decimal(0))
        assert spent <= Decimal("0.1")
        admitted, refusals = split(seen, "insufficient_quota")
        assert refusals
        for one in refusals:
            assert one.headers["x-should-retry"] == "false"
            assert "retry-after" not in one.headers
        if not admitted:
            break
        assert rounds < 10
    assert spent > Decimal("0.08")
    (booked,) = [row for row in running.cli_json("usage") if row["key_id"] == issued["id"]]
    assert Decimal(booked["cost"]) == spent


async def test_a_budget_with_a_window_says_when_it_resets(running: Gateway) -> None:
    key = running.key("daily", "--budget", "0.000001/day")
    (one,) = await burst(running, key, 1, chat("echo"))
    assert (one.status, one.code, one.headers["x-should-retry"]) == (429, "insufficient_quota", "false")
    assert 1 <= int(one.headers["retry-after"]) <= 86_400


# restarts


async def test_nothing_is_lost_or_doubled_by_restarts(tmp_path: Path) -> None:
    with gateway(tmp_path, CONFIG) as running:
        key = running.cli_json("keys", "create", "--name", "k", "--scopes", "inference,usage")
        poor = running.cli_json("keys", "create", "--name", "poor", "--budget", "0.02")
        whole = await burst(running, key["key"], 40, chat("echo"))
        assert (await burst(running, poor["key"], 1, chat("echo", 200, max_tokens=200)))[0].status == 200
        assert running.stop(signal.SIGTERM) == 0
        rows = _once(running)
        assert {one.request_id for one in whole} < rows.keys()
        running.start()
        assert (await burst(running, poor["key"], 1, chat("echo", 200, max_tokens=200)))[0].code == "insufficient_quota"
        assert _once(running) == rows

        whole += await burst(running, key["key"], 40, chat("echo"))
        cut = await _killed_under_load(running, key["key"])
        rows = _once(running)
        for one in whole:
            assert rows[one.request_id]["ending"] == "success"
            assert (rows[one.request_id]["prompt_tokens"], rows[one.request_id]["completion_tokens"]) == (3, 3)
        assert {rows[request_id]["ending"] for request_id in cut} == {"interrupted"}
        assert len(rows) == len(whole) + len(cut) + 1

        running.start()
        assert _once(running) == rows
        (told,) = [row for row in running.cli_json("usage") if row["key_id"] == key["id"]]
        assert told["requests"] == len(whole) + len(cut)
        assert running.stop(signal.SIGTERM) == 0
        assert _once(running) == rows


def _once(running: Gateway) -> dict[str, dict[str, Any]]:
    """Ledger rows by request id; no id may be there twice."""
    rows = ledger(running)
    found = {row["request_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


async def _killed_under_load(running: Gateway, key: str, streams: int = 20) -> list[str]:
    """kill -9 of the whole gateway while `streams` answers run; their request ids."""
    ids: list[str] = []
    begun = asyncio.Event()

    async def stream(http: aiohttp.ClientSession) -> None:
        headers = {"authorization": f"Bearer {key}"}
        async with http.post("/v1/chat/completions", json=chat("trickle", 100, stream=True), headers=headers) as answer:
            ids.append(answer.headers["x-request-id"])
            if len(ids) == streams:
                begun.set()
            with pytest.raises(aiohttp.ClientError):
                await answer.read()

    async with aiohttp.ClientSession(running.url, timeout=PATIENCE) as http:
        tasks = [asyncio.create_task(stream(http)) for _ in range(streams)]
        await asyncio.wait_for(begun.wait(), 20)
        await asyncio.to_thread(running.kill)
        await asyncio.gather(*tasks)
    return ids
