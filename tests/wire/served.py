"""One whole gateway over echo models, for the points that concern what lies beside the relay too. One per test run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests.gateway_process import PLAIN, Gateway, free_port, gateway


@dataclass(frozen=True)
class Served:
    gateway: Gateway
    key: str

    def http(self, key: str | None = None) -> httpx.Client:
        return httpx.Client(
            base_url=self.gateway.url, headers={"authorization": f"Bearer {key or self.key}"}, trust_env=False, verify=PLAIN, timeout=20
        )

    def bare(self) -> httpx.Client:
        return httpx.Client(base_url=self.gateway.url, trust_env=False, verify=PLAIN, timeout=20)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    dead = {"type": "custom", "baseURL": f"http://127.0.0.1:{free_port()}/v1", "apiKey": "upstream-secret"}
    models = [
        {"id": "echo", "backends": [{"type": "echo"}]},
        {"id": "org/echo-2", "backends": [{"type": "echo"}]},
        {"id": "dead", "backends": [dead]},
    ]
    with gateway(tmp_path_factory.mktemp("wire"), json.dumps({"models": models})) as made:
        yield Served(made, made.key("wire"))
