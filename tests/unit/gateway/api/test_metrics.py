"""`/admin/metrics`: what there is, plots of it, and what is wrong to ask."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import httpx
import pytest

from auth.principal import Role
from gateway.metering.sampled import SAMPLED, Figures
from gateway.store import samples
from gateway.store.samples import STEP_S
from tests.unit.gateway.api.conftest import Plane

SERIES = "/admin/metrics/series"
ADDED: Figures = {
    ("gateway_requests_total", ("chat", "echo-1", "chat", "2xx")): [30.0],
    ("gateway_requests_total", ("embed", "echo-1", "embeddings", "5xx")): [15.0],
    ("gateway_request_duration_seconds", ("chat", "", "chat", "")): [2.0, 2.0, *[0.0] * 14],
    ("gateway_requests_in_flight", ("chat", "", "", "")): [3.0],
}


async def put(plane: Plane) -> int:
    """A reading, one minute ago; when its step began."""
    place = int(time.time() // STEP_S) - 4
    async with plane.control.db.write() as conn:
        await samples.add(conn, [place], ADDED)
    return place * STEP_S


async def test_the_names(admin: httpx.AsyncClient) -> None:
    listed = (await admin.get("/admin/metrics/names")).json()
    assert {one["name"] for one in listed["data"]} == set(SAMPLED)
    assert listed["data"][0] == {
        "name": "gateway_requests_total", "kind": "counter", "unit": "requests", "labels": ["model", "backend", "operation", "status"],
        "description": "Admitted requests that have ended.",
    }  # fmt: skip


async def test_a_plot(plane: Plane, admin: httpx.AsyncClient) -> None:
    at = await put(plane)
    plot = (await admin.get(SERIES, params={"metric": "gateway_requests_total", "since": "2m"})).json()
    assert {name: plot[name] for name in ("object", "metric", "kind", "unit", "by", "step_s")} == {
        "object": "plot", "metric": "gateway_requests_total", "kind": "counter", "unit": "requests", "by": None, "step_s": 15,
    }  # fmt: skip
    place = plot["at"].index(datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z"))
    (series,) = plot["series"]
    assert (series["group"], series["others"]) == (None, False)
    assert series["values"]["rate"] == [3.0 if number == place else None for number in range(len(plot["at"]))]


async def test_groups_filters_quantiles_and_means(plane: Plane, admin: httpx.AsyncClient) -> None:
    await put(plane)

    async def known(**query: str) -> dict[str | None, dict[str, list[float]]]:
        plot = (await admin.get(SERIES, params={"since": "5m", **query})).json()
        return {
            one["group"]: {name: [v for v in values if v is not None] for name, values in one["values"].items()} for one in plot["series"]
        }

    assert await known(metric="gateway_requests_total", by="model") == {"chat": {"rate": [2.0]}, "embed": {"rate": [1.0]}}
    assert await known(metric="gateway_requests_total", status="5xx", backend="echo-1") == {None: {"rate": [1.0]}}
    assert await known(metric="gateway_requests_in_flight", model="chat") == {None: {"mean": [3.0]}}
    assert await known(metric="gateway_request_duration_seconds", operation="chat") == {
        None: {"rate": [2 / 15], "p50": [0.005], "p95": [pytest.approx(0.0095)], "p99": [pytest.approx(0.0099)]}
    }
    assert (await admin.get(SERIES, params={"metric": "gateway_requests_total", "since": "1h", "step": "4m"})).json()["step_s"] == 300


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("", "metric"),
        ("metric=gateway_requests", "metric"),
        ("metric=gateway_requests_total&by=key", "by"),
        ("metric=gateway_retries_total&by=backend", "by"),
        ("metric=gateway_retries_total&status=5xx", "status"),
        ("metric=gateway_retries_total&since=yesterday", "since"),
        ("metric=gateway_retries_total&since=1h&until=2h", "until"),
        ("metric=gateway_retries_total&step=-5m", "step"),
        ("metric=gateway_retries_total&model=%00", "NUL"),
    ],
)
async def test_what_is_wrong_to_ask(admin: httpx.AsyncClient, query: str, param: str) -> None:
    response = await admin.get(f"{SERIES}?{query}")
    assert response.status_code == 400, response.text
    assert param in response.text


@pytest.mark.parametrize(
    "query", ["since=9999w", "since=1970-01-01T00:00:00Z", "until=2100-01-01T00:00:00Z", "step=0s", "step=9999w", "model=absent"]
)
async def test_odd_but_right(admin: httpx.AsyncClient, query: str) -> None:
    plot = (await admin.get(f"{SERIES}?metric=gateway_requests_total&{query}")).json()
    assert len(plot["at"]) <= 1000
    assert all(value is None for value in plot["series"][0]["values"]["rate"])


async def test_admins_alone(plane: Plane) -> None:
    for role, status in ((Role.ADMIN, 200), (Role.MANAGER, 403), (Role.MEMBER, 403)):
        async with plane.client(plane.token(role)) as client:
            for path in ("/admin/metrics/names", f"{SERIES}?metric=gateway_requests_total"):
                assert (await client.get(path)).status_code == status, role
