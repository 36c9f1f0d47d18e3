"""gateway metrics: the list, figures as JSON, and a plot that a terminal shows."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.cli.metrics import spark
from gateway.metering.sampled import SAMPLED, Figures
from gateway.settings import load_settings
from gateway.store import samples
from gateway.store.engine import Database
from gateway.store.samples import STEP_S

from .conftest import Gateway

ADDED: Figures = {
    ("gateway_requests_total", ("chat", "echo-1", "chat", "2xx")): [30_000.0],
    ("gateway_requests_total", ("embed", "echo-1", "embeddings", "5xx")): [15.0],
    ("gateway_request_duration_seconds", ("chat", "", "chat", "")): [2.0, 2.0, *[0.0] * 14],
}


def put() -> None:
    async def add() -> None:
        db, place = Database(load_settings().database), int(time.time() // STEP_S)
        async with db.write() as conn:
            await samples.add(conn, [place - 4], ADDED)
            await samples.add(conn, [place - 3], {})
        await db.close()

    asyncio.run(add())


def test_the_list(ready: Gateway) -> None:
    assert [one["name"] for one in ready("metrics", "list", "--json").json] == list(SAMPLED)
    lines = ready("metrics", "list").out.splitlines()
    assert len(lines) == 1 + len(SAMPLED)
    assert lines[1].split()[:3] == ["gateway_requests_total", "counter", "requests"]


def test_as_json(ready: Gateway) -> None:
    put()
    plot = ready("metrics", "show", "gateway_requests_total", "--by", "model", "--since", "2m", "--json").json
    assert (plot["metric"], plot["kind"], plot["by"], plot["step_s"]) == ("gateway_requests_total", "counter", "model", 15)
    assert [one["group"] for one in plot["series"]] == ["chat", "embed"]
    assert all(len(one["values"]["rate"]) == len(plot["at"]) for one in plot["series"])
    assert [rate for rate in plot["series"][0]["values"]["rate"] if rate is not None] == [2000.0, 0.0]


def test_a_plot_for_people(ready: Gateway) -> None:
    put()
    lines = ready("metrics", "show", "requests_total", "--by", "model", "--since", "2m").out.splitlines()
    assert lines[0].startswith("gateway_requests_total (requests per second), ")
    assert lines[0].endswith("a step is 15s")
    assert lines[1].split() == ["MODEL", "FIGURE", "MIN", "MEAN", "MAX", "LAST"]
    assert lines[2].split()[:3] == ["chat", "rate", "█▁"]
    assert lines[2].split()[3:6] == ["0", "1k", "2k"]
    assert lines[3].split()[:3] == ["embed", "rate", "█▁"]
    times = ready("metrics", "show", "gateway_request_duration_seconds", "--model", "chat").out.splitlines()
    assert [line.split()[1] for line in times[2:]] == ["rate", "p50", "p95", "p99"]


def test_nothing_yet(ready: Gateway) -> None:
    done = ready("metrics", "show", "gateway_requests_total")
    assert (done.code, done.out) == (0, "")
    assert "no samples" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("no_such_metric",),
        ("gateway_requests_total", "--by", "key"),
        ("gateway_retries_total", "--status", "5xx"),
        ("gateway_requests_total", "--since", "1h", "--until", "2h"),
        ("gateway_requests_total", "--step", "soon"),
    ],
)
def test_wrong_usage(ready: Gateway, arguments: tuple[str, ...]) -> None:
    assert ready("metrics", "show", *arguments).code == 2


def test_bars() -> None:
    assert spark([]) == ""
    assert spark([0.0, None, 4.0, 8.0]) == "▁ ▅█"
    assert spark([0.0, 0.0]) == "▁▁"
    assert spark([None]) == " "
    assert len(spark([1.0] * 1000)) <= 60
    assert "█" in spark([0.0] * 999 + [1.0])
