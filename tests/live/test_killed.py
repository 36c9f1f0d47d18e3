"""A gateway that is killed in the middle of an answer: the row says what the client has had."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx

from tests.faults.scripts import ROLE, WORD, closed, frame
from tests.gateway_process import gateway
from tests.upstream import Seen, Upstream, Wire

CONFIG = """
models:
  - id: m
    prices: {{input: "0.15", output: "0.60"}}
    backends:
      - {{type: custom, id: up, base_url: "{url}"}}
"""
HEARD = 37


async def _some(wire: Wire, seen: Seen) -> None:
    if seen.json["messages"][0]["content"] == "silence":
        await closed(wire, seen)
        return
    await wire.sse_head()
    await wire.chunk(frame(ROLE))
    for _ in range(HEARD):
        await wire.chunk(frame(WORD))
    await closed(wire, seen)


async def test_a_killed_gateway_accounts_for_what_it_handed_on(tmp_path: Path) -> None:
    async with Upstream(_some) as up:
        await asyncio.to_thread(_kill_and_look, tmp_path, up)


def _kill_and_look(folder: Path, up: Upstream) -> None:
    with gateway(folder, CONFIG.format(url=up.url)) as made:
        key = made.key()
        headers = {"authorization": f"Bearer {key}"}
        asked = {"model": "m", "stream": True}
        url = f"{made.url}/v1/chat/completions"
        with httpx.Client(headers=headers, timeout=30, trust_env=False) as client:
            hello = {**asked, "messages": [{"role": "user", "content": "hello there"}]}
            silent = {**asked, "messages": [{"role": "user", "content": "silence"}]}
            with client.stream("POST", url, json=hello) as answer:
                heard = 0
                for line in answer.iter_lines():
                    heard += '"word "' in line
                    if heard == HEARD:
                        break
                silence = client.build_request("POST", url, json=silent)
                with httpx.Client(timeout=1, trust_env=False) as other:
                    try:
                        other.send(silence)
                    except httpx.ReadTimeout:
                        pass  # it reached the backend, and was given up: client_gone
                made.kill()
        rows = [json.loads(line) for line in made.cli("ledger", "export").splitlines()]
        assert [row["ending"] for row in sorted(rows, key=lambda row: row["started_at"])] == ["interrupted", "client_gone"]
        row = next(row for row in rows if row["ending"] == "interrupted")
        assert HEARD <= row["completion_tokens"] <= HEARD + 1
        assert row["prompt_tokens"] > 0
        assert (row["token_source"], row["backend"], row["attempts"], row["status"]) == ("estimate", "up", 1, 200)
        assert row["price"] == "0.15/0.6/"
        assert float(row["cost"]) > 0
        assert not list((made.home / "run" / "ledger").glob("*.slots"))
