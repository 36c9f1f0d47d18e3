"""Weights, drains and revocations on a running gateway: what the command line changes is in force when it says so."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from tests.gateway_process import Gateway, gateway

IN_FORCE_S = 0.05
REQUESTS, CLIENTS = 4000, 50
CONFIG = """
models:
  - id: split
    backends:
      - {{type: echo, id: heavy, weight: {heavy}}}
      - {{type: echo, id: light, weight: {light}}}
  - id: streamed
    backends:
      - {{type: echo, id: heavy, weight: {heavy}, chunk_delay_ms: 15}}
      - {{type: echo, id: light, weight: {light}, chunk_delay_ms: 15}}
  - id: drained
    backends: [{{type: echo, weight: 0}}]
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("routing"), CONFIG.format(heavy=3, light=1)) as made:
        yield made


@pytest.fixture(scope="module")
def key(running: Gateway) -> str:
    return running.key("routing")


@pytest.fixture
async def client(running: Gateway, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0, timeout=30) as client:
        yield client


def ledger(running: Gateway, since: str = "1h") -> list[dict[str, Any]]:
    return [json.loads(line) for line in running.cli("ledger", "export", "--since", since).splitlines()]


def started_s(row: dict[str, Any]) -> float:
    return datetime.fromisoformat(row["started_at"]).timestamp()


def now() -> str:
    return datetime.now(UTC).isoformat()


async def test_4000_requests_split_by_weight(running: Gateway, key: str) -> None:
    """Three sigma is left once in 370 by a fair draw too: the second of two runs decides then."""
    since, sigma = now(), math.sqrt(REQUESTS * 0.75 * 0.25)
    seen = await split(running, key)
    every = Counter(seen)
    if abs(seen["echo-heavy"] - REQUESTS * 0.75) > 3 * sigma:
        seen = await split(running, key)
        every += seen
    assert seen.total() == REQUESTS
    assert abs(seen["echo-heavy"] - REQUESTS * 0.75) <= 3 * sigma, seen
    booked = Counter(f"echo-{row['backend']}" for row in ledger(running, since) if row["model"] == "split")
    assert booked == every


async def split(running: Gateway, key: str) -> Counter[str]:
    """How 4,000 requests were spread, by what the answers say."""
    body = {"model": "split", "messages": [{"role": "user", "content": "hi"}]}
    seen: Counter[str] = Counter()
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(running.url, headers=headers, connector=aiohttp.TCPConnector(limit=16)) as http:

        async def some() -> None:
            for _ in range(REQUESTS // 16):
                async with http.post("/v1/chat/completions", json=body) as answer:
                    assert answer.status == 200
                    seen[(await answer.json())["system_fingerprint"]] += 1

        await asyncio.gather(*(some() for _ in range(16)))
    return seen


class Streams:
    """Clients that stream one answer after the other until they are told to stop."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client
        self._stopping = asyncio.Event()
        self.finished = 0
        self.failures: list[str] = []
        self._tasks = [asyncio.create_task(self._run()) for _ in range(CLIENTS)]

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                text = ""
                stream = await self._client.chat.completions.create(
                    model="streamed", messages=[{"role": "user", "content": "one two three four five six seven eight"}], stream=True
                )
                async for chunk in stream:
                    text += "".join(choice.delta.content or "" for choice in chunk.choices)
                assert text == "one two three four five six seven eight"
                self.finished += 1
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")

    async def until(self, finished: int) -> None:
        """Wait until this many more answers have come whole."""
        target, deadline_s = self.finished + finished, time.monotonic() + 30
        while self.finished < target:
            assert time.monotonic() < deadline_s
            assert not self.failures, self.failures[:3]
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.gather(*self._tasks)


@pytest.mark.alone
async def test_drain_under_load_and_rollback(running: Gateway, client: AsyncOpenAI) -> None:
    since = now()
    streams = Streams(client)
    await streams.until(CLIENTS)
    drained_file = running.home.parent / "drained.yaml"
    drained_file.write_text(CONFIG.format(heavy=0, light=1))
    before = json.loads(await asyncio.to_thread(running.cli, "revisions", "--json"))[0]["id"]
    await asyncio.to_thread(running.cli, "apply", "-f", str(drained_file))
    drained_at = time.time()
    await streams.until(4 * CLIENTS)
    still_drained_at = time.time()
    rolled_back = json.loads(await asyncio.to_thread(running.cli, "rollback", "--json"))
    back_at = time.time()
    await streams.until(4 * CLIENTS)
    await streams.stop()
    assert streams.failures == []
    assert rolled_back["id"] == before
    rows = [row for row in await asyncio.to_thread(ledger, running, since) if row["model"] == "streamed"]
    assert len(rows) == streams.finished
    assert {row["ending"] for row in rows} == {"success"}
    assert {row["attempts"] for row in rows} == {1}
    heavy = sorted(started_s(row) for row in rows if row["backend"] == "heavy")
    assert [at - drained_at for at in heavy if drained_at + IN_FORCE_S < at < still_drained_at] == []
    assert sum(drained_at < started_s(row) < still_drained_at for row in rows) >= 2 * CLIENTS
    assert any(at < drained_at for at in heavy)
    after = Counter(row["backend"] for row in rows if started_s(row) > back_at + IN_FORCE_S)
    assert after["heavy"] > after["light"] > 0


def test_no_weight_at_all_is_503(running: Gateway, key: str) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="drained", messages=[{"role": "user", "content": "hi"}])
        assert (caught.value.status_code, caught.value.code) == (503, "no_backend_available")
        assert "drained" in {model.id for model in client.models.list()}


@pytest.mark.alone
async def test_revocation_is_in_force_at_once(running: Gateway) -> None:
    """Refused 50 ms after the command returned; a stream that runs by then ends in peace."""
    issued = running.cli_json("keys", "create", "--name", "to be revoked")
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key=issued["key"], max_retries=0, timeout=30) as client:
        words = "w " * 150
        stream = await client.chat.completions.create(model="streamed", messages=[{"role": "user", "content": words}], stream=True)
        await anext(stream)
        await asyncio.to_thread(running.cli, "keys", "revoke", issued["id"])
        revoked_at = time.monotonic()
        while True:
            asked_at = time.monotonic()
            try:
                await client.chat.completions.create(model="split", messages=[{"role": "user", "content": "hi"}])
            except openai.AuthenticationError:
                break
            assert asked_at < revoked_at + IN_FORCE_S
        text = "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])
        assert text.split() == words.split()


@pytest.mark.alone
async def test_a_new_key_works_at_once(running: Gateway) -> None:
    key = await asyncio.to_thread(running.key, "fresh")
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as client:
        await asyncio.sleep(IN_FORCE_S)  # the promise is a time, so a time is what is waited
        await client.chat.completions.create(model="split", messages=[{"role": "user", "content": "hi"}])


@pytest.mark.alone
async def test_rotation_keeps_the_old_text_for_its_grace(running: Gateway) -> None:
    issued = running.cli_json("keys", "create", "--name", "to be rotated")
    renewed = await asyncio.to_thread(running.cli_json, "keys", "rotate", issued["id"], "--grace", "4s")
    rotated_at = time.monotonic()
    assert renewed["id"] == issued["id"]
    assert renewed["key"] != issued["key"]

    async def works(key: str) -> bool:
        async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0) as client:
            try:
                await client.models.list()
            except openai.AuthenticationError:
                return False
            return True

    await asyncio.sleep(IN_FORCE_S)
    assert await works(renewed["key"])
    assert await works(issued["key"])
    while await works(issued["key"]):
        assert time.monotonic() < rotated_at + 15
        await asyncio.sleep(0.05)
    assert await works(renewed["key"])
