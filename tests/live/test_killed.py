"""A gateway that is killed in the middle of an answer: the row says what the client has had."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from decimal import Decimal
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
                lines = answer.iter_lines()  # kept: one that is dropped closes the connection
                for line in lines:
                    heard += '"word "' in line
                    if heard == HEARD:
                        break
                asking = threading.Thread(target=_ask_in_vain, args=(url, headers, silent), daemon=True)
                asking.start()
                deadline_s = time.monotonic() + 20
                while len(up.seen) < 2:
                    assert time.monotonic() < deadline_s
                    time.sleep(0.01)
                time.sleep(2)  # that a request has left over a fresh connection is noted within a quarter of a second
                made.kill()
        rows = [json.loads(line) for line in made.cli("ledger", "export").splitlines()]
        spoken, silence = sorted(rows, key=lambda row: str(row["started_at"]))
        assert [row["ending"] for row in (spoken, silence)] == ["interrupted", "interrupted"]
        assert HEARD <= spoken["completion_tokens"] <= HEARD + 1
        assert (silence["completion_tokens"], silence["status"], spoken["status"]) == (0, 499, 200)
        for row in (spoken, silence):
            assert row["prompt_tokens"] > 0, "it reached the backend"
            assert (row["token_source"], row["backend"], row["attempts"], row["price"]) == ("estimate", "up", 1, "0.15/0.6/")
            cost = Decimal(row["prompt_tokens"]) * Decimal("0.15") + Decimal(row["completion_tokens"]) * Decimal("0.6")
            assert Decimal(row["cost"]) == cost / 10**6
        assert not list((made.home / "run" / "ledger").glob("*.slots"))


def _ask_in_vain(url: str, headers: dict[str, str], body: dict[str, object]) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False)
