"""Metric samples: this host's own /metrics, read over loopback like any Prometheus would."""

from __future__ import annotations

from pathlib import Path

import httpx

from gateway import own_client
from gateway.metering.exposition import parse

# What plots are drawn from. Histograms are kept as sum and count.
KEPT = frozenset(
    (
        "gateway_requests_total",
        "gateway_tokens_total",
        "gateway_cost_usd_total",
        "gateway_requests_in_flight",
        "gateway_limit_refusals_total",
        "gateway_request_duration_seconds_sum",
        "gateway_request_duration_seconds_count",
        "gateway_time_to_first_token_seconds_sum",
        "gateway_time_to_first_token_seconds_count",
    )
)


def client(run_dir: Path) -> httpx.AsyncClient:
    """One for the keeper's life. To ourselves: no proxy is asked, and a certificate would name the public host, not this address."""
    return httpx.AsyncClient(trust_env=False, verify=own_client.context(run_dir), timeout=5)


async def scrape(client: httpx.AsyncClient, server_url: str) -> list[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of the kept series; empty while the server does not answer."""
    try:
        answer = await client.get(f"{server_url}/metrics")
    except httpx.HTTPError:
        return []
    return parse(answer.text, KEPT) if answer.status_code == 200 else []
