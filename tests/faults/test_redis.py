"""Whole gateways on two hosts (two homes, one PostgreSQL) that share limits through Redis; and what happens without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.databases import Postgres
from tests.gateway_process import PLAIN, Gateway
from tests.redis_server import RedisServer

CONFIG = "models: [{id: m, backends: [{type: echo}]}]"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
SECRET = "a secret that is the same on all hosts 0123456789"


class Hosts:
    """Two of them. `start` says which settings both have."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self._environment = {"GATEWAY_DATABASE_URL": database_url, "GATEWAY_SECRET_KEY": SECRET}
        self.both = [Gateway(folder / name / "home", None, dict(self._environment)) for name in ("first", "second")]
        for host in self.both:
            host.home.parent.mkdir()

    def start(self, **environment: str) -> tuple[Gateway, Gateway]:
        first, second = self.both
        for host in self.both:
            host.environment |= environment
        first.config = CONFIG
        first.start()
        second.start()
        return first, second

    def stop(self) -> None:
        for host in self.both:
            if host.process is not None:
                host.kill()


@pytest.fixture
def hosts(postgres: Postgres, tmp_path: Path) -> Iterator[Hosts]:
    name = asyncio.run(postgres.create())
    made = Hosts(tmp_path, postgres.url(name))
    yield made
    made.stop()
    asyncio.run(postgres.drop(name))


def chat(host: Gateway, key: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{host.url}/v1/chat/completions", json=CHAT, headers=headers, timeout=10, trust_env=False, verify=PLAIN)


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def until_known(host: Gateway, key: str) -> None:
    """A key made on another host is known here within a second."""
    deadline_s = time.monotonic() + 10
    while chat(host, key).status_code == 401:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def until_told(host: Gateway, line: str) -> None:
    """The metrics say so within a few seconds."""
    deadline_s = time.monotonic() + 10
    while line not in (text := httpx.get(f"{host.url}/metrics", timeout=10, trust_env=False, verify=PLAIN).text):
        assert time.monotonic() < deadline_s, [line for line in text.splitlines() if "redis" in line]
        time.sleep(0.1)


def test_one_keys_limits_hold_over_both_hosts_with_redis_killed_and_back(hosts: Hosts, redis_server: RedisServer) -> None:
    first, second = hosts.start(GATEWAY_REDIS_URL=redis_server.url)
    free = first.key("free")
    key = first.key("limited", "--rpd", "6")
    until_known(second, free)
    until_known(second, key)  # one is used up
    answers = [chat((first, second)[number % 2], key) for number in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert code(answers[-1]) == "rate_limit_exceeded"
    assert answers[0].headers["x-ratelimit-limit-requests"] == "6"
    assert answers[-1].headers["x-ratelimit-remaining-requests"] == "0"

    until_told(second, 'gateway_limits_redis_up{away="closed"} 1.0')
    redis_server.stop()
    refused = chat(second, key)
    assert (refused.status_code, code(refused), refused.headers["retry-after"]) == (503, "limits_unavailable", "1")
    assert chat(second, free).status_code == 200
    until_told(second, 'gateway_limits_redis_up{away="closed"} 0.0')
    redis_server.start()  # it has forgotten everything; the hosts have not
    deadline_s = time.monotonic() + 10
    while (answer := chat(second, key)).status_code == 503:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert (answer.status_code, chat(first, key).status_code) == (429, 429)
    until_told(second, 'gateway_limits_redis_up{away="closed"} 1.0')


def test_each_host_decides_alone_while_redis_is_away_where_that_is_wanted(hosts: Hosts, redis_server: RedisServer) -> None:
    redis_server.stop()
    first, second = hosts.start(GATEWAY_REDIS_URL=redis_server.url, GATEWAY_REDIS_AWAY="open")
    key = first.key("limited", "--rpd", "2")
    until_known(second, key)
    assert [chat(second, key).status_code for _ in range(2)] == [200, 429]
    assert [chat(first, key).status_code for _ in range(3)] == [200, 200, 429]


def test_a_second_host_without_redis_refuses_who_has_limits(hosts: Hosts) -> None:
    first, second = hosts.start()
    free, key = first.key("free"), first.key("limited", "--rpd", "100")
    until_known(second, free)
    until_known(second, key)
    refused = chat(second, key)
    assert (refused.status_code, code(refused)) == (503, "limits_unavailable")
    assert "GATEWAY_REDIS_URL" in refused.json()["error"]["message"]
    assert (chat(second, free).status_code, chat(first, key).status_code) == (200, 200)
    first.kill()
    first.start()  # it is not new for having been killed
    assert (chat(second, key).status_code, chat(first, key).status_code) == (503, 200)
    first.stop()
    deadline_s = time.monotonic() + 20
    while chat(second, key).status_code != 200:  # it is the first now
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
