"""Traffic makes a plot: a real gateway of two processes and the samples that its keeper takes of them, over the API and as a command."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_process import Gateway, gateway

CONFIG = """
models:
  - {id: chat, prices: {input: "0.15", output: "0.60"}, backends: [{type: echo, id: first}]}
  - {id: slow, backends: [{type: echo, id: second, chunk_delay_ms: 30}]}
"""
WITHIN_S = 75  # a sample is taken every 15 s


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Gateway]:
    with gateway(tmp_path, CONFIG, arguments=("--workers", "2")) as made:
        yield made


def plot(server: Gateway, admin: str, **query: str) -> dict[str, Any]:
    params = {"since": "5m", **query}
    answer = httpx.get(f"{server.url}/admin/metrics/series", params=params, headers={"authorization": f"Bearer {admin}"}, trust_env=False)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def known(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def total(found: dict[str, Any], group: str | None) -> float:
    """How many the rates come to."""
    rates = [one["values"]["rate"] for one in found["series"] if one["group"] == group]
    return sum(sum(known(line)) for line in rates) * float(found["step_s"])


def wait_until(server: Gateway, admin: str, done: Any, **query: str) -> dict[str, Any]:
    deadline_s = time.monotonic() + WITHIN_S
    while not done(found := plot(server, admin, **query)):
        assert time.monotonic() < deadline_s, found
        time.sleep(0.5)
    return found


def send(server: Gateway, key: str, model: str, count: int, status: int = 200) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "one two three"}], "stream": model == "slow"}
    for _ in range(count):  # each on a connection of its own: both processes get some
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, trust_env=False)
        assert answer.status_code == status, answer.text


def test_traffic_makes_a_plot(running: Gateway) -> None:
    admin, key = running.key("watcher", "--scopes", "admin"), running.key("caller")
    requests = {"metric": "gateway_requests_total"}
    wait_until(running, admin, lambda found: known(found["series"][0]["values"]["rate"]), **requests)
    send(running, key, "chat", 20)
    send(running, key, "slow", 4)
    send(running, key, "name-that-no-table-has", 3, status=404)

    def complete(found: dict[str, Any]) -> bool:
        return round(total(found, "chat")) == 20 and round(total(found, "slow")) == 4

    found = wait_until(running, admin, complete, by="model", **requests)
    assert [one["group"] for one in found["series"]] == ["chat", "slow"]
    assert total(found, "slow") == pytest.approx(4)
    of_status = plot(running, admin, by="status", model="chat", backend="first", operation="chat", **requests)
    assert total(of_status, "2xx") == pytest.approx(20)
    (times,) = plot(running, admin, metric="gateway_time_to_first_token_seconds", model="slow")["series"]
    assert all(0 < value < 20 for value in known(times["values"]["p95"]))
    assert len(known(times["values"]["p95"])) >= 1
    os.kill(running.children("gateway.cli.server")[-1], signal.SIGKILL)
    ask_while_a_process_is_replaced(running, key)
    found = wait_until(running, admin, lambda found: round(total(found, "chat")) >= 30, by="model", **requests)
    assert all(0 <= rate <= 30 / 15 for one in found["series"] for rate in known(one["values"]["rate"]))
    shown = running.cli("metrics", "show", "gateway_requests_total", "--by", "model", "--since", "5m")
    assert "chat" in shown
    assert "█" in shown
    assert "name-that-no-table-has" not in shown
    names = [one["group"] for one in running.cli_json("metrics", "show", "gateway_requests_total", "--by", "model")["series"]]
    assert names == ["chat", "slow"]


def ask_while_a_process_is_replaced(server: Gateway, key: str) -> None:
    """Ten that are served."""
    served, deadline_s = 0, time.monotonic() + WITHIN_S
    while served < 10:
        assert time.monotonic() < deadline_s
        try:
            send(server, key, "chat", 1)
            served += 1
        except httpx.HTTPError:
            time.sleep(0.05)
