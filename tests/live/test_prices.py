"""Money to the smallest unit: what a running gateway recorded is worked out again from its export by a script that shares nothing with it.

Several models, two backends at different prices, cached tokens, streams, a fallback, and prices that change while requests flow.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_process import PLAIN, Gateway, free_port, gateway

SCRIPT = Path(__file__).parents[1] / "recompute_costs.py"
CONFIG = """
models:
  - id: chat
    prices: {{input: "0.15", output: "0.60", cached: "0.075"}}
    backends:
      - type: custom
        id: own
        baseURL: http://127.0.0.1:{up}/v1
        prices: {{input: "123456.654321", output: "0.000001", cached: "0.000003"}}
      - {{type: custom, id: shared, baseURL: "http://127.0.0.1:{up}/v1"}}
  - id: plain
    prices: {{input: "3", output: "15"}}
    backends: [{{type: custom, baseURL: "http://127.0.0.1:{up}/v1"}}]
  - id: falling
    fallback: plain
    prices: {{input: "1", output: "1"}}
    backends: [{{type: custom, baseURL: "http://127.0.0.1:{dead}/v1", prices: {{input: "999", output: "999"}}}}]
  - id: unpriced
    backends: [{{type: custom, baseURL: "http://127.0.0.1:{up}/v1"}}]
"""
MODELS = ("chat", "chat", "plain", "falling", "unpriced")


class Answers(BaseHTTPRequestHandler):
    """Answers with the usage that the request names as its `user`: "prompt,completion,cached"."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt, completion, cached = map(int, body["user"].split(","))
        usage = {
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip
        head = {"id": "c", "created": 1, "model": "m"}
        if not body.get("stream"):
            message = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
            self._send("application/json", json.dumps(head | {"object": "chat.completion", "choices": [message], "usage": usage}))
            return
        head["object"] = "chat.completion.chunk"
        piece = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
        events = [head | {"choices": [piece]}, head | {"choices": [], "usage": usage}]
        self._send("text/event-stream", "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n")

    def _send(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


class Traffic:
    """Requests of all kinds, one after the other; what each was said to use, by request id."""

    def __init__(self, made: Gateway) -> None:
        headers = {"authorization": f"Bearer {made.key()}"}
        self._client = httpx.Client(base_url=made.url, headers=headers, timeout=30, trust_env=False, verify=PLAIN)
        self.asked: dict[str, tuple[str, int, int, int]] = {}

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def send(self, count: int) -> None:
        for _ in range(count):
            number = len(self.asked)
            model = MODELS[number % len(MODELS)]
            prompt, completion = 1 + number * 7919 % 100_003, number * 104_729 % 10_007
            cached = (0, prompt // 3, prompt)[number // len(MODELS) % 3]
            body = {
                "model": model, "user": f"{prompt},{completion},{cached}", "stream": number % 2 == 0,
                "messages": [{"role": "user", "content": "hello"}],
            }  # fmt: skip
            answer = self._client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            self.asked[answer.headers["x-request-id"]] = (model, prompt, completion, cached)


def recompute(lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", str(SCRIPT)], input=lines, capture_output=True, text=True, timeout=60)


def expected_price(record: dict[str, Any], switched: bool) -> str | None:
    """By the target that served, and whether the request began after the switch."""
    return {
        "own": "123456.654321/0.000001/0.000003",
        "shared": "0.2/0.8/" if switched else "0.15/0.6/0.075",
        "custom-1": None if record["model"] == "unpriced" else "2.999999/15/0" if switched else "3/15/",
        "plain/custom-1": "2.999999/15/0" if switched else "3/15/",
    }[record["backend"]]


def test_cost_is_what_an_independent_script_finds(tmp_path: Path, upstream: int) -> None:
    config = CONFIG.format(up=upstream, dead=free_port())
    with gateway(tmp_path, config) as made, Traffic(made) as traffic:
        traffic.send(60)
        switch = datetime.fromtimestamp(int(time.time()), UTC) + timedelta(seconds=3)
        table = "model,input,output,cached\nchat,0.2,0.8,\nplain,2.999999,15,0\n"
        made.cli("prices", "import", "-", "--from", switch.isoformat(), stdin=table)
        while datetime.now(UTC) < switch + timedelta(seconds=0.2):
            traffic.send(5)
        traffic.send(60)
        lines = made.cli("ledger", "export")
        listed = made.cli("prices", "list", "--csv")
        made.stop()
        made.start()
        assert made.cli("prices", "list", "--csv") == listed  # the file has not changed since: what was imported still counts
        assert made.cli("prices", "import", "-", "--json", stdin=listed).count('"was"') == 0
        made.cli("ledger", "verify")

    records = [json.loads(line) for line in lines.splitlines()]
    found = {
        one["request_id"]: (one["model"], one["prompt_tokens"], one["completion_tokens"], one["cached_tokens"]) for one in records
    }  # fmt: skip
    assert found == traffic.asked
    served = Counter((one["backend"], one["price"]) for one in records)
    assert len(served) == 8, served  # every target, before and after the switch; "own" and "unpriced" have none
    for record in records:
        began = datetime.fromisoformat(record["started_at"])
        if abs(began - switch) > timedelta(milliseconds=1):  # an export says no more than the millisecond
            assert record["price"] == expected_price(record, began >= switch), record
    assert any(one["cached_tokens"] and one["backend"] == "own" for one in records)
    assert any(len(one["cost"].partition(".")[2]) == 12 for one in records)  # the smallest unit is there to be lost

    done = recompute(lines)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[:2000]
    total = sum((Decimal(one["cost"]) for one in records), Decimal(0))
    assert done.stdout == f"{len(records)} records, {total.normalize():f} USD, 0 with another cost\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cost": "0.000000000017"}, "its tokens and price 0.000000000018"),
        ({"prompt_tokens": 11}, "0.000000000019"),
        ({"cached_tokens": 4}, "0.000000000019"),
        ({"price": "0.000001/0.000002/0.000002"}, "0.000000000015"),
        ({"price": None}, "its tokens and price 0"),
        ({"cost": 0.000000000018}, "the record says"),
    ],
)
def test_the_script_finds_a_cost_that_is_not_so(change: dict[str, Any], says: str) -> None:
    record: dict[str, Any] = {
        "request_id": "r", "prompt_tokens": 10, "cached_tokens": 3, "completion_tokens": 1, "price": "0.000001/0.000005/0.000002",
        "cost": "0.000000000018",
    }  # fmt: skip
    good, bad = recompute(json.dumps(record)), recompute(json.dumps(record | change))
    assert (good.returncode, good.stdout) == (0, "1 records, 0.000000000018 USD, 0 with another cost\n")
    assert bad.returncode == 1
    assert says in bad.stderr
