"""Two server processes, two backends, 200 streams at any time, and something happens: whoever should live lives, the books are right."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from tests.acceptance.admin import Admin, admin
from tests.acceptance.streaming_backend import WORDS, StreamingBackend, streaming_backends
from tests.gateway_process import Gateway, gateway

pytestmark = pytest.mark.alone

STREAMS = 200
IN_FORCE_S = 0.05
PATIENCE = aiohttp.ClientTimeout(total=30)
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


@dataclass
class Outcome:
    """What one client saw of one stream. Times are time.monotonic()."""

    began_s: float
    ended_s: float = 0.0
    status: int = 0  # 0: no answer
    request_id: str = ""
    backend: str = ""
    body: bytes = b""

    @property
    def whole(self) -> bool:
        return self.status == 200 and self.body.endswith(b"data: [DONE]\n\n") and self.body.count(b"data: ") == WORDS + 3

    @property
    def told(self) -> bool:
        """It broke, and the client was told so in the stream."""
        return b'data: {"error"' in self.body and not self.body.endswith(b"[DONE]\n\n")

    @property
    def process(self) -> str:
        return self.request_id[4:20]


@dataclass
class Load:
    """Keeps STREAMS streams running, each on a connection of its own, until told to stop."""

    url: str
    keys: list[str]
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    stopping: bool = False
    _running: set[int] = field(default_factory=set)
    _all_run: asyncio.Event = field(default_factory=asyncio.Event)

    def all(self) -> list[Outcome]:
        return [outcome for outcomes in self.outcomes.values() for outcome in outcomes]

    async def full(self) -> None:
        """Wait until all of them run at once, in the middle of their streams."""
        await asyncio.wait_for(self._all_run.wait(), 20)

    async def client(self, http: aiohttp.ClientSession, number: int) -> None:
        key = self.keys[number % len(self.keys)]
        while not self.stopping:
            outcome = Outcome(time.monotonic())
            self.outcomes.setdefault(key, []).append(outcome)
            try:
                await self._stream(http, key, number, outcome)
            except (aiohttp.ClientError, ConnectionError):
                pass
            self._running.discard(number)
            outcome.ended_s = time.monotonic()
            if outcome.status == 401:
                return

    async def _stream(self, http: aiohttp.ClientSession, key: str, number: int, outcome: Outcome) -> None:
        async with http.post("/v1/chat/completions", json=BODY, headers={"authorization": f"Bearer {key}"}) as answer:
            outcome.status = answer.status
            outcome.request_id = answer.headers["x-request-id"]
            async for piece in answer.content.iter_any():
                outcome.body += piece
                if not outcome.backend and b'"system_fingerprint":"' in outcome.body:
                    outcome.backend = outcome.body.partition(b'"system_fingerprint":"')[2][:1].decode()
                    self._running.add(number)
                    if len(self._running) >= STREAMS * 0.8:
                        self._all_run.set()


@asynccontextmanager
async def load(running: Gateway, *keys: str) -> AsyncIterator[Load]:
    """Leaves only when every stream has ended."""
    made = Load(running.url, list(keys))
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(running.url, timeout=PATIENCE, connector=connector) as http:
        tasks = [asyncio.create_task(made.client(http, number)) for number in range(STREAMS)]
        try:
            await made.full()
            yield made
            made.stopping = True
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(scope="module")
def backends() -> Iterator[list[StreamingBackend]]:
    with streaming_backends("a", "b") as made:
        yield made


def document(backends: list[StreamingBackend], *weights: int) -> dict[str, Any]:
    entries = [
        {"type": "custom", "id": backend.name, "base_url": backend.url, "model": "up", "weight": weight}
        for backend, weight in zip(backends, weights, strict=True)
    ]
    return {"models": [{"id": "m", "prices": {"input": "1", "output": "1"}, "backends": entries}]}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, backends: list[StreamingBackend]) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("chaos"), json.dumps(document(backends, 3, 1)), arguments=("--workers", "2")) as made:
        yield made


@pytest.fixture(scope="module")
def boss(running: Gateway) -> Iterator[Admin]:
    with admin(running) as made:
        yield made


@pytest.fixture(scope="module")
def key(boss: Admin) -> str:
    return boss.key("chaos")


async def apply(boss: Admin, made: dict[str, Any]) -> float:
    """Make it the live revision; when it must be in force."""
    await asyncio.to_thread(boss.apply, made)
    at_s = time.monotonic() + IN_FORCE_S
    await asyncio.sleep(IN_FORCE_S)
    return at_s


def now() -> str:
    return datetime.now(UTC).isoformat()


async def check_books(running: Gateway, since: str, outcomes: list[Outcome], nameless: int = 0) -> None:
    """Exactly one row per request. `nameless`: requests that may have a row although the client never learnt their id."""
    asked = {outcome.request_id: outcome for outcome in outcomes if outcome.status == 200}
    deadline = time.monotonic() + 15
    while True:
        lines = (await asyncio.to_thread(running.cli, "ledger", "export", "--since", since)).splitlines()
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        found = {row["request_id"]: row for row in rows}
        if asked.keys() <= found.keys() or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    assert len(found) == len(rows), "a request has two rows"
    assert asked.keys() <= found.keys(), f"{len(asked.keys() - found.keys())} requests have no row"
    assert len(found) - len(asked) <= nameless
    for request_id, outcome in asked.items():
        row = found[request_id]
        assert (row["ending"] == "success") == outcome.whole, (row, outcome)
        if outcome.whole:
            assert (row["backend"], row["prompt_tokens"], row["completion_tokens"], row["token_source"]) == (
                outcome.backend,
                7,
                3,
                "backend",
            )


def faults(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if not outcome.whole]


async def test_a_weight_changes(running: Gateway, boss: Admin, backends: list[StreamingBackend], key: str) -> None:
    since = now()
    async with load(running, key) as made:
        asked_s = time.monotonic()
        at_s = await apply(boss, document(backends, 1, 3))
        await asyncio.sleep(2.5)
    assert not faults(made.all())
    before = Counter(o.backend for o in made.all() if o.began_s < asked_s)
    after = Counter(o.backend for o in made.all() if o.began_s > at_s)
    assert before["a"] > before["b"]
    assert after["b"] > 1.5 * after["a"] > 0, after
    await check_books(running, since, made.all())


async def test_a_backend_is_drained(running: Gateway, boss: Admin, backends: list[StreamingBackend], key: str) -> None:
    await apply(boss, document(backends, 1, 1))
    since = now()
    async with load(running, key) as made:
        at_s = await apply(boss, document(backends, 0, 1))
        await asyncio.sleep(2.5)
    assert not faults(made.all())
    assert len([o for o in made.all() if o.backend == "a" and o.ended_s > at_s]) > 20, "nothing ran there when it was drained"
    assert {o.backend for o in made.all() if o.began_s > at_s} == {"b"}
    await check_books(running, since, made.all())


async def test_a_backend_is_killed(running: Gateway, boss: Admin, backends: list[StreamingBackend], key: str) -> None:
    await apply(boss, document(backends, 1, 1))
    since = now()
    async with load(running, key) as made:
        await asyncio.sleep(1)
        killed_s = time.monotonic()
        await asyncio.to_thread(backends[0].kill)
        dead_s = time.monotonic()
        await asyncio.sleep(3)
        await asyncio.to_thread(backends[0].start)
        revived_s = time.monotonic()
        await asyncio.sleep(1.5)
    broken = faults(made.all())
    assert {o.backend for o in broken} == {"a"}, "only what it was streaming may break"
    assert all(o.began_s < dead_s and o.ended_s > killed_s and o.told for o in broken), broken[:1]
    assert 40 < len(broken) <= STREAMS
    assert len([o for o in made.all() if o.began_s > dead_s]) >= STREAMS
    assert revived_s > dead_s
    await check_books(running, since, made.all())


async def test_a_key_is_revoked(running: Gateway, boss: Admin, key: str) -> None:
    issued = await asyncio.to_thread(boss.issue, "goes")
    since = now()
    await asyncio.sleep(IN_FORCE_S)
    async with load(running, key, issued["key"]) as made:
        await asyncio.to_thread(boss.revoke, issued["id"])
        revoked_s = time.monotonic() + IN_FORCE_S
        await asyncio.sleep(2.5)
    assert not faults(made.outcomes[key])
    gone = made.outcomes[issued["key"]]
    assert all(o.whole or o.status == 401 for o in gone), "a running stream was cut"
    assert len([o for o in gone if o.whole and o.ended_s > revoked_s]) > 50, "nothing ran when it was revoked"
    late = [o for o in gone if o.began_s > revoked_s]
    assert {o.status for o in late} == {401}
    assert len({o.process for o in late}) == 2
    await check_books(running, since, made.all())


async def test_a_server_process_is_killed(running: Gateway, key: str) -> None:
    since = now()
    servers = set(running.children("gateway.cli.server"))
    assert len(servers) == 2
    async with load(running, key) as made:  # all are in the middle of their streams: none is near its end
        killed_s = time.monotonic()
        os.kill(min(servers), signal.SIGKILL)
        await asyncio.sleep(4)
        assert len(servers & set(running.children("gateway.cli.server"))) == 1
    broken = faults(made.all())
    # what never got a head had reached the dead process too, or it would have been taken by its successor
    assert all(o.began_s < killed_s + 0.05 and killed_s <= o.ended_s < killed_s + 5 for o in broken), broken[:1]
    named = {o.process for o in broken if o.status == 200}
    assert len(named) == 1
    assert not [o for o in made.all() if o.process in named and o.whole and o.ended_s > killed_s + 1], "it goes on"
    assert 40 < len(broken) < STREAMS
    assert len({o.process for o in made.all() if o.began_s > killed_s and o.whole} - named) == 2, "the successor has no work"
    await check_books(running, since, made.all(), nameless=sum(1 for o in broken if o.status == 0))
