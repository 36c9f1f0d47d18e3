"""deploy/prometheus.yml, the alerts and the dashboard against a real Prometheus that scrapes a real gateway under traffic of all kinds.

Only the address and the intervals of deploy/prometheus.yml are replaced. Without Prometheus (Debian: `apt-get install prometheus`) these
tests are skipped with that reason; where CI=true they fail instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_process import PLAIN, Gateway, free_port, gateway

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "gateway.json").read_text())
SCRAPE_S = 1
RATE_WINDOW = "10s"  # what Grafana puts in for $__rate_interval at this scrape interval, and some
WITHIN_S = 20
CONFIG = """
models:
  - id: chat
    prices: {{input: "0.15", output: "0.60"}}
    backends:
      - {{type: echo, id: first, weight: 3}}
      - {{type: echo, id: second, weight: {weight}}}
  - {{id: slow, backends: [{{type: echo, chunk_delay_ms: 50}}]}}
  - {{id: embed, backends: [{{type: echo}}]}}
  - {{id: broken, backends: [{{type: custom, baseURL: "http://127.0.0.1:{dead_port}/v1"}}]}}
  - id: shaky
    backends:
      - {{type: custom, baseURL: "http://127.0.0.1:{dead_port}/v1"}}
      - {{type: echo, priority: 1}}
  - id: strict
    retries: {{ratio: 0}}
    backends:
      - {{type: custom, baseURL: "http://127.0.0.1:{dead_port}/v1", model: one}}
      - {{type: custom, baseURL: "http://127.0.0.1:{dead_port}/v1", model: two}}
  - id: probed
    backends: [{{type: custom, baseURL: "http://127.0.0.1:{live_port}/v1", probe: {{path: /health, intervalS: 0.5}}}}]
"""


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed (Debian: apt-get install prometheus)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@dataclass
class Prometheus:
    url: str
    started_s: float

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The vector now."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=10, trust_env=False, verify=PLAIN)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"]["result"])

    def graph(self, expression: str) -> list[dict[str, Any]]:
        """The series since the start, as a panel draws them; two steps a scrape, and one beyond the last, so that none is left out."""
        window = {"start": self.started_s, "end": time.time() + SCRAPE_S, "step": SCRAPE_S / 2}
        answer = httpx.get(
            f"{self.url}/api/v1/query_range", params={"query": expression, **window}, timeout=10, trust_env=False, verify=PLAIN
        )
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"]["result"])

    def wait_for(self, expression: str, value: float) -> None:
        deadline_s, seen = time.monotonic() + WITHIN_S, None
        while time.monotonic() < deadline_s:
            with contextlib.suppress(httpx.HTTPError):
                seen = [float(s["value"][1]) for s in self.query(expression)]
                if seen == [value]:
                    return
            time.sleep(0.1)
        raise AssertionError(f"{expression} is {seen}, not {value}, after {WITHIN_S} s")


@contextlib.contextmanager
def prometheus(folder: Path, target_port: int) -> Iterator[Prometheus]:
    text = (DEPLOY / "prometheus.yml").read_text()
    replaced = text.replace("127.0.0.1:8000", f"127.0.0.1:{target_port}").replace("interval: 15s", f"interval: {SCRAPE_S}s")
    assert replaced.count(str(target_port)) == 1
    (folder / "prometheus.yml").write_text(replaced)
    shutil.copy(DEPLOY / "alerts.yml", folder)
    port = free_port()
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([tool("prometheus"), *options], stdout=log, stderr=log)
        try:
            yield Prometheus(f"http://127.0.0.1:{port}", time.time())
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Traffic:
    """Requests of every kind. `admitted` counts those that reach the ledger."""

    def __init__(self, server: Gateway) -> None:
        self._client = httpx.Client(base_url=server.url, timeout=20, trust_env=False)
        self._key = server.key("free")
        self._limited = server.key("limited", "--rpm", "1")
        self.admitted = 0

    def close(self) -> None:
        self._client.close()

    def send(self, status: int, path: str, body: Any, key: str | None = None) -> str:
        headers = {"authorization": f"Bearer {key or self._key}"}
        answer = self._client.post(f"/v1/{path}", json=body, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.text

    def round(self) -> None:
        chat = {"model": "chat", "messages": [{"role": "user", "content": "one two three"}]}
        for _ in range(8):
            self.send(200, "chat/completions", chat)
            assert self.send(200, "chat/completions", chat | {"stream": True}).endswith("data: [DONE]\n\n")
        self.send(200, "completions", {"model": "chat", "prompt": "one two"})
        self.send(200, "embeddings", {"model": "embed", "input": ["one", "two"]})
        for _ in range(2):  # over all rounds enough for its breaker to open
            self.send(502, "chat/completions", chat | {"model": "broken"})
        self.send(200, "chat/completions", chat | {"model": "shaky"})
        self.send(502, "chat/completions", chat | {"model": "strict"})
        self._leave_early(chat | {"model": "slow", "stream": True})
        self.admitted += 16 + 7
        self.send(404, "chat/completions", chat | {"model": "no-such-model"})
        self.send(400, "chat/completions", {"model": "chat"})
        self.send(401, "chat/completions", chat, "sk-gw-not-a-key")
        self._beyond_the_limit(chat)

    def _leave_early(self, body: Any) -> None:
        headers = {"authorization": f"Bearer {self._key}"}
        with self._client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            assert answer.status_code == 200
            next(answer.iter_bytes())

    def _beyond_the_limit(self, body: Any) -> None:
        headers = {"authorization": f"Bearer {self._limited}"}
        statuses = [self._client.post("/v1/chat/completions", json=body, headers=headers).status_code for _ in range(2)]
        self.admitted += statuses.count(200)
        assert statuses[-1] == 429


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def answering() -> Iterator[int]:
    """A server that a probe finds alive; its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Prometheus]]:
    """A gateway that has seen everything, scraped while it did."""
    folder = tmp_path_factory.mktemp("watched")
    dead_port = free_port()
    with contextlib.ExitStack() as stack:
        live_port = stack.enter_context(answering())
        server = stack.enter_context(gateway(folder, CONFIG.format(weight=1, dead_port=dead_port, live_port=live_port)))
        scraper = stack.enter_context(prometheus(folder, server.port))
        traffic = Traffic(server)
        stack.callback(traffic.close)
        ended = "sum(gateway_requests_total)"
        traffic.round()
        scraper.wait_for(ended, traffic.admitted)
        first = float(scraper.query("max(gateway_revision)")[0]["value"][1])
        server.cli("apply", "-f", str(server.write_config(CONFIG.format(weight=2, dead_port=dead_port, live_port=live_port))))
        for _ in range(3):  # a rate needs two scrapes between which something happened
            traffic.round()
            scraper.wait_for(ended, traffic.admitted)
        scraper.wait_for("max(gateway_revision)", first + 1)
        scraper.wait_for('count(max_over_time(gateway_backend_state{model="broken"}[1m]) > 0)', 1)
        yield server, scraper


def with_values(expression: str) -> str:
    """The expression as Grafana sends it, for all models."""
    text = expression.replace("$__rate_interval", RATE_WINDOW).replace("$__range", "1m").replace("$model", ".*")
    text = text.replace(":15s]", f":{SCRAPE_S}s]")  # the step of a subquery is the scrape interval
    assert "$" not in text, text
    return text


def queries() -> list[tuple[str, str]]:
    """(where, expression) of everything that the dashboard asks."""
    panels = [(p["title"], t["expr"]) for p in DASHBOARD["panels"] for t in p.get("targets", [])]
    return panels + [(a["name"], a["expr"]) for a in DASHBOARD["annotations"]["list"]]


@pytest.mark.parametrize(("where", "expression"), queries())
def test_every_query_of_the_dashboard_returns_data(watched: tuple[Gateway, Prometheus], where: str, expression: str) -> None:
    series = watched[1].graph(with_values(expression))
    values = [float(value) for one in series for _, value in one["values"]]
    assert any(value == value for value in values), f"{where}: nothing but {series[:3]}"  # NaN differs from itself


def test_figures_move(watched: tuple[Gateway, Prometheus]) -> None:
    """Every panel that draws what happens, and not what is, shows something above zero."""
    resting = {"In flight", "Revision", "Revision in force"}
    for where, expression in queries():
        if where not in resting:
            values = [float(value) for one in watched[1].graph(with_values(expression)) for _, value in one["values"]]
            assert any(value > 0 for value in values), where


def test_variables_have_values(watched: tuple[Gateway, Prometheus]) -> None:
    found = [
        re.fullmatch(r"label_values\((\w+), (\w+)\)", v["definition"]) for v in DASHBOARD["templating"]["list"] if v["type"] == "query"
    ]
    assert found
    for match in found:
        assert match
        models = {series["metric"].get(match[2]) for series in watched[1].query(match[1])}
        assert {"chat", "slow", "embed", "broken"} <= models


def test_the_exposition_is_clean(watched: tuple[Gateway, Prometheus]) -> None:
    text = httpx.get(f"{watched[0].url}/metrics", trust_env=False).text
    done = subprocess.run([tool("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_rules_are_loaded_and_a_healthy_gateway_raises_none_of_the_loud_ones(watched: tuple[Gateway, Prometheus]) -> None:
    answer = httpx.get(f"{watched[1].url}/api/v1/rules", trust_env=False).json()
    rules = {rule["name"]: rule for group in answer["data"]["groups"] for rule in group["rules"]}
    assert len(rules) == (DEPLOY / "alerts.yml").read_text().count("- alert:")
    assert all(rule["health"] != "err" for rule in rules.values()), rules
    assert rules["GatewayDown"]["state"] == rules["GatewayCannotAccount"]["state"] == "inactive"


def test_the_files_pass_promtool() -> None:
    for command in (["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"]):
        done = subprocess.run([tool("promtool"), *command], cwd=DEPLOY, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then() -> None:
    cases = Path(__file__).with_name("alerts.test.yml")
    done = subprocess.run([tool("promtool"), "test", "rules", cases.name], cwd=cases.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
