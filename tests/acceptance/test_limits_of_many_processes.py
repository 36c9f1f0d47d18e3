"""Limits with `--workers 2`: counted together, free again when a process is killed, kept over a restart."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from tests.gateway_process import Gateway, gateway

PATIENCE = aiohttp.ClientTimeout(total=30)
CONFIG = """
models:
  - id: m
    prices: {input: "1", output: "1"}
    maxOutputTokens: 8
    backends: [{type: echo}]
  - id: slow
    backends: [{type: echo, chunk_delay_ms: 50}]
"""
BODY = {"model": "m", "messages": [{"role": "user", "content": "one two"}]}
SLOW = {"model": "slow", "messages": [{"role": "user", "content": "w " * 500}], "stream": True}


@pytest.fixture
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("limits"), CONFIG, arguments=("--workers", "2"), GATEWAY_DRAIN_S="1") as made:
        yield made


def key(running: Gateway, *limits: str) -> dict[str, str]:
    made = running.cli_json("keys", "create", "--name", "limited", *limits)
    return {"authorization": f"Bearer {made['key']}", "id": made["id"]}


async def ask(running: Gateway, headers: dict[str, str], body: dict[str, Any] = BODY) -> tuple[int, str]:
    """(status, which process), on a connection of its own. A key that was made a moment ago may be answered 503: try again."""
    async with aiohttp.ClientSession(running.url, headers=headers, timeout=PATIENCE) as http:
        for _ in range(50):
            async with http.post("/v1/chat/completions", json=body) as answer:
                await answer.read()
            if answer.status != 503:
                break
            await asyncio.sleep(0.02)
        return answer.status, answer.headers["x-request-id"][4:20]


async def many(running: Gateway, headers: dict[str, str], count: int) -> list[tuple[int, str]]:
    return list(await asyncio.gather(*(ask(running, headers) for _ in range(count))))


async def test_two_processes_let_through_what_one_would(running: Gateway) -> None:
    headers = await asyncio.to_thread(key, running, "--rpm", "60")
    began_s = time.monotonic()
    seen = await many(running, headers, 150)
    allowed = 60 + (time.monotonic() - began_s) + 1
    counted = Counter(status for status, _ in seen)
    assert 60 <= counted[200] <= allowed, counted
    assert counted[200] + counted[429] == 150
    assert len({process for _, process in seen}) == 2
    began_s = time.monotonic()
    await asyncio.to_thread(running.stop)
    await asyncio.to_thread(running.start)
    admitted = Counter(status for status, _ in await many(running, headers, 150))[200]
    assert admitted <= time.monotonic() - began_s + 3, "the level survives: the bucket is not full again"


async def test_a_budget_is_never_passed(running: Gateway) -> None:
    headers = await asyncio.to_thread(key, running, "--budget", "0.0005")  # a request reserves 0.00015, and costs 0.000004
    for _ in range(60):
        statuses = {status for status, _ in await many(running, headers, 8)}
        assert statuses <= {200, 429}
        if statuses == {429}:
            break
    rows = json.loads(await asyncio.to_thread(running.cli, "usage", "--by", "key", "--json"))
    (spent,) = [float(row["cost"]) for row in rows if row["key_id"] == headers["id"]]
    assert 0.0005 - 0.00016 < spent <= 0.0005, "within one reservation of it"


@pytest.mark.alone
async def test_what_a_killed_process_ran_is_free_within_a_second(running: Gateway) -> None:
    headers = await asyncio.to_thread(key, running, "--concurrency", "20")
    begun: dict[int, str] = {}
    open_streams: set[int] = set()

    async def stream(number: int, http: aiohttp.ClientSession) -> None:
        async with http.post("/v1/chat/completions", json=SLOW) as answer:
            if answer.status != 200:
                return
            begun[number] = answer.headers["x-request-id"][4:20]
            open_streams.add(number)
            try:
                await answer.read()
            except aiohttp.ClientError:
                pass
            open_streams.discard(number)

    async with aiohttp.ClientSession(
        running.url, headers=headers, timeout=PATIENCE, connector=aiohttp.TCPConnector(force_close=True, limit=0)
    ) as http:
        tasks: list[asyncio.Task[None]] = []
        for number in range(20):  # one after the other: of all at once, the process that is the faster may take every place
            tasks.append(asyncio.create_task(stream(number, http)))
            while number not in begun and not tasks[-1].done():
                await asyncio.sleep(0.002)
        assert len(open_streams) == 20
        assert len(set(begun.values())) == 2
        assert (await ask(running, headers))[0] == 429
        victim = running.children("gateway.cli.server")[0]
        os.kill(victim, signal.SIGKILL)
        killed_s = time.monotonic()
        while len(open_streams) == 20:
            await asyncio.sleep(0.01)
        (gone,) = {begun[number] for number in set(range(20)) - open_streams}
        others = {number for number in range(20) if begun[number] != gone}
        while (await ask(running, headers))[0] == 429:
            assert time.monotonic() - killed_s < 1.5
            await asyncio.sleep(0.05)
        while open_streams - others:  # the client sees the ends of what was killed one after the other
            await asyncio.sleep(0.01)
        assert open_streams == others, "those of the other process go on"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
