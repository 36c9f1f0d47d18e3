"""Active probes in a whole gateway: a backend that goes dead and comes back, a keeper that is killed, another revision."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from tests.gateway_process import PASSWORD, Gateway, gateway
from tests.upstream import Seen, Upstream, Wire, chat_answer

CONFIG = """
models:
  - id: chat
    backends:
      - type: custom
        id: first
        baseURL: "{first}"
        apiKey: upstream-key
        weight: 1000000
        probe: {{path: models, intervalS: 0.2, timeoutS: 0.5}}
      - {{type: custom, id: second, baseURL: "{second}", probe: {{path: /health, intervalS: 0.2, timeoutS: 0.5}}}}
"""


class Backend:
    """Serves chat and answers its probe, until it is told to be dead to one of them."""

    def __init__(self) -> None:
        self.probe_status = 200
        self.upstream = Upstream(self._serve)

    async def _serve(self, wire: Wire, seen: Seen) -> None:
        if seen.method == "GET":
            await wire.answer({}, self.probe_status)
        else:
            await wire.answer(chat_answer())

    def probes(self) -> list[Seen]:
        return [seen for seen in self.upstream.seen if seen.method == "GET"]

    def chats(self) -> int:
        return sum(seen.method == "POST" for seen in self.upstream.seen)


class Watcher:
    """Asks the gateway what it thinks."""

    def __init__(self, server: Gateway, http: httpx.AsyncClient) -> None:
        self._server, self._http = server, http
        self._admin = {"authorization": ""}
        self._key = {"authorization": ""}

    async def log_in(self) -> None:
        answer = await self._http.post("/auth/login", json={"email": "admin@localhost", "password": PASSWORD})
        self._admin["authorization"] = f"Bearer {answer.json()['access_token']}"
        self._key["authorization"] = f"Bearer {await asyncio.to_thread(self._server.key)}"

    async def health(self) -> dict[str, Any]:
        answer = await self._http.get("/admin/backends", headers=self._admin)
        return {target["backend"]: target["health"] for target in answer.json()["data"]}

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async with asyncio.timeout(15):
            while not holds(found := await self.health()):
                await asyncio.sleep(0.02)
        return found

    async def until_metric(self, line: str) -> None:
        async with asyncio.timeout(10):
            while line not in (await self._http.get("/metrics")).text.splitlines():
                await asyncio.sleep(0.05)

    async def chat(self) -> int:
        body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
        return (await self._http.post("/v1/chat/completions", json=body, headers=self._key)).status_code


def probe_of(name: str, state: str) -> Callable[[dict[str, Any]], bool]:
    return lambda found: found[name]["probe"] is not None and found[name]["probe"]["state"] == state


async def in_gateway(tmp_path: Path, story: Callable[[Watcher, Gateway, Backend, Backend], Awaitable[None]]) -> None:
    first, second = Backend(), Backend()
    async with first.upstream, second.upstream:
        made = gateway(tmp_path, CONFIG.format(first=first.upstream.url, second=second.upstream.url))
        server = await asyncio.to_thread(made.__enter__)
        try:
            async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=20) as http:
                watcher = Watcher(server, http)
                await watcher.log_in()
                await story(watcher, server, first, second)
        finally:
            await asyncio.to_thread(made.__exit__, None, None, None)


async def test_dead_is_left_out_and_alive_is_back(tmp_path: Path) -> None:
    async def story(watcher: Watcher, server: Gateway, first: Backend, second: Backend) -> None:
        await watcher.until(probe_of("first", "alive"))
        await watcher.until_metric('gateway_backend_probe_up{backend="first",model="chat"} 1.0')
        assert [await watcher.chat() for _ in range(3)] == [200] * 3
        assert (first.chats(), second.chats()) == (3, 0)  # a million to one

        first.probe_status = 503
        found = (await watcher.until(probe_of("first", "dead")))["first"]
        assert (found["state"], found["probe"]["reason"], found["consecutive_failures"]) == ("open", "503", 0)
        assert [await watcher.chat() for _ in range(3)] == [200] * 3
        assert (first.chats(), second.chats()) == (3, 3)
        await watcher.until_metric('gateway_backend_state{backend="first",model="chat"} 2.0')
        await watcher.until_metric('gateway_backend_probe_up{backend="first",model="chat"} 0.0')

        second.probe_status = 500  # nobody is left: the least bad serves rather than nobody
        await watcher.until(probe_of("second", "dead"))
        assert await watcher.chat() == 200

        first.probe_status = 200
        assert (await watcher.until(probe_of("first", "alive")))["first"]["state"] == "closed"
        before = first.chats()
        assert await watcher.chat() == 200
        assert first.chats() == before + 1

        assert {(seen.path, seen.headers.get("authorization")) for seen in first.probes()} == {("/v1/models", "Bearer upstream-key")}
        assert {(seen.path, seen.headers.get("authorization")) for seen in second.probes()} == {("/health", None)}
        assert "upstream-key" not in server.log()
        assert "upstream-key" not in (server.home / "run" / "probes.json").read_text()

    await in_gateway(tmp_path, story)


async def test_another_revision_ends_a_probe_and_its_verdict(tmp_path: Path) -> None:
    async def story(watcher: Watcher, server: Gateway, first: Backend, second: Backend) -> None:
        first.probe_status = 404
        await watcher.until(probe_of("first", "dead"))
        without = f'models: [{{id: chat, backends: [{{type: custom, id: first, baseURL: "{first.upstream.url}", apiKey: upstream-key}}]}}]'
        await asyncio.to_thread(server.cli, "apply", "-f", str(server.write_config(without)))
        found = (await watcher.until(lambda found: found["first"]["probe"] is None))["first"]
        assert found["state"] == "closed"
        asked = len(first.probes()) + len(second.probes())
        await asyncio.sleep(0.6)
        assert len(first.probes()) + len(second.probes()) <= asked + 2  # those that were on their way

    await in_gateway(tmp_path, story)


async def test_a_keeper_that_is_gone_keeps_nobody_out(tmp_path: Path) -> None:
    async def story(watcher: Watcher, server: Gateway, first: Backend, second: Backend) -> None:
        first.probe_status = 500
        await watcher.until(probe_of("first", "dead"))
        for pid in server.children("gateway.keeper"):
            os.kill(pid, signal.SIGSTOP)  # not killed: the supervisor would start another
        found = (await watcher.until(probe_of("first", "unknown")))["first"]
        assert found["state"] == "closed"
        for pid in server.children("gateway.keeper"):
            os.kill(pid, signal.SIGCONT)
        assert (await watcher.until(probe_of("first", "dead")))["first"]["state"] == "open"

    await in_gateway(tmp_path, story)
