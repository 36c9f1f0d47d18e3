"""Samples as they are written, by several hosts and over the years, and the plots that are read from them; on both databases."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select

from gateway.metering.names import DURATION_BUCKETS_S
from gateway.metering.sampled import SAMPLED, Figures, Label
from gateway.store import samples
from gateway.store.engine import Database
from gateway.store.plots import MOST_POINTS, MOST_POINTS_OF_MANY, MOST_QUANTILES_OF_MANY, STEPS_S, Asked, Plot, plot, quantiles
from gateway.store.samples import STEP_S, WIDTHS
from gateway.store.tables import metric_samples

NOW_S = 1_780_000_200  # a whole step, not a whole hour
PLACE = NOW_S // STEP_S
DAY_S = 86_400


def requests(count: float, model: str = "m", backend: str = "b", status: str = "2xx") -> Figures:
    return {("gateway_requests_total", (model, backend, "chat", status)): [count]}


def in_flight(value: float, model: str = "m") -> Figures:
    return {("gateway_requests_in_flight", (model, "", "", "")): [value]}


def durations(*counts: float, model: str = "m") -> Figures:
    padded = [*counts, *[0.0] * (len(DURATION_BUCKETS_S) + 1 - len(counts))]
    return {("gateway_request_duration_seconds", (model, "", "chat", "")): [sum(counts), *padded]}


async def add(db: Database, places: list[int], *added: Figures) -> None:
    merged: Figures = {}
    for one in added:
        merged |= one
    async with db.write() as conn:
        await samples.add(conn, places, merged)


async def read(
    db: Database, metric: str = "gateway_requests_total", span_s: float = 60, *, only: dict[Label, str] | None = None,
    by: Label | None = None, step_s: int = 0, series: int = 10, until_s: float = NOW_S, now_s: float = NOW_S,
) -> Plot:  # fmt: skip
    asked = Asked(SAMPLED[metric], until_s - span_s, until_s, step_s, only or {}, by, series)
    async with db.read() as conn:
        return await plot(conn, asked, now_s)


def shown(found: Plot) -> dict[str | None, Any]:
    return {("others" if line.others else line.group): line.values.get("rate", line.values.get("mean")) for line in found.lines}


async def test_a_rate_is_per_second_a_step_without_requests_zero_and_one_without_readings_a_gap(db: Database) -> None:
    await add(db, [PLACE - 4], requests(30))
    await add(db, [PLACE - 3])
    await add(db, [PLACE - 1], requests(15))
    found = await read(db)
    assert (found.step_s, found.at) == (15, [NOW_S - 60, NOW_S - 45, NOW_S - 30, NOW_S - 15])
    assert shown(found) == {None: [2.0, 0.0, None, 1.0]}


async def test_hosts_are_added_up_whichever_reads_first(db: Database) -> None:
    await asyncio.gather(*(add(db, [PLACE - 1], requests(15), requests(5, "n"), in_flight(2)) for _ in range(4)))
    assert shown(await read(db, span_s=15)) == {None: [80 / 15]}
    assert shown(await read(db, "gateway_requests_in_flight", 15)) == {None: [8.0]}
    assert shown(await read(db, span_s=15, step_s=60)) == {None: [80 / 15]}  # 15 s of the minute were read, by whomever


async def test_a_host_that_takes_the_place_of_another_within_a_wide_step(db: Database) -> None:
    for place in range(PLACE // 20 * 20 - 20, PLACE // 20 * 20 - 10):
        await add(db, [place], requests(15))
    for place in range(PLACE // 20 * 20 - 10, PLACE // 20 * 20):
        await add(db, [place], requests(15))
    found = await read(db, span_s=300, step_s=300, until_s=PLACE // 20 * 300)
    assert shown(found) == {None: [1.0]}


async def test_what_was_read_late_lies_evenly_over_the_time(db: Database) -> None:
    await add(db, [PLACE - 3, PLACE - 2, PLACE - 1], requests(45), in_flight(2))
    assert shown(await read(db, span_s=45)) == {None: [1.0, 1.0, 1.0]}
    assert shown(await read(db, "gateway_requests_in_flight", 45)) == {None: [2.0, 2.0, 2.0]}


async def test_filters_and_groups(db: Database) -> None:
    await add(
        db, [PLACE - 1], requests(15), requests(30, backend="c"), requests(45, "n"), requests(60, "n", status="5xx"),
        requests(75, "o", "none"),
    )  # fmt: skip
    assert shown(await read(db, span_s=15)) == {None: [15.0]}
    assert shown(await read(db, span_s=15, by="model")) == {"n": [7.0], "o": [5.0], "m": [3.0]}
    assert shown(await read(db, span_s=15, by="status")) == {"2xx": [11.0], "5xx": [4.0]}
    assert shown(await read(db, span_s=15, only={"model": "m"})) == {None: [3.0]}
    assert shown(await read(db, span_s=15, only={"model": "m"}, by="backend")) == {"c": [2.0], "b": [1.0]}
    assert shown(await read(db, span_s=15, only={"model": "n", "status": "5xx"})) == {None: [4.0]}
    assert shown(await read(db, span_s=15, only={"backend": "b", "operation": "chat"}, by="status")) == {"5xx": [4.0], "2xx": [4.0]}
    assert shown(await read(db, span_s=15, only={"model": "absent"})) == {None: [0.0]}
    assert shown(await read(db, span_s=15, only={"model": "m"}, by="model")) == {"m": [3.0]}
    assert shown(await read(db, "gateway_retries_total", 15, by="model")) == {}


async def test_the_largest_are_shown_and_the_others_added_up(db: Database) -> None:
    many: Figures = {}
    for number in range(30):
        many |= requests(15 * (number + 1), f"model-{number:02}") | durations(0, 4, model=f"model-{number:02}")
    await add(db, [PLACE - 1], many)
    found = shown(await read(db, span_s=15, by="model", series=3))
    assert found == {"model-29": [30.0], "model-28": [29.0], "model-27": [28.0], "others": [pytest.approx(sum(range(1, 28)))]}
    histogram = await read(db, "gateway_request_duration_seconds", 15, by="model", series=3)
    assert [line.group for line in histogram.lines] == ["model-00", "model-01", "model-02", None]
    assert histogram.lines[-1].values["rate"] == [27 * 4 / 15]
    assert histogram.lines[-1].values["p50"] == [pytest.approx(0.015)]


async def test_quantiles_of_all_that_was_seen_in_a_step(db: Database) -> None:
    await add(db, [PLACE - 2], durations(0, 98, 0, 0, 2), durations(0, 100, model="n"))
    await add(db, [PLACE - 1])
    (line,) = (await read(db, "gateway_request_duration_seconds", 30, only={"model": "m"})).lines
    assert line.values["rate"] == [100 / 15, 0.0]
    assert line.values["p50"] == [pytest.approx(0.01 + 0.01 * 50 / 98), None]
    assert line.values["p99"] == [pytest.approx(0.08 + 0.08 * 0.5), None]


def test_quantiles() -> None:
    bounds = (1.0, 2.0, 4.0)
    assert quantiles((0.5, 0.9), bounds, [0, 0, 0, 0]) == [None, None]
    assert quantiles((0.5,), bounds, []) == [None]
    assert quantiles((0.25, 0.5, 1), bounds, [4, 0, 0, 0]) == [0.25, 0.5, 1.0]
    assert quantiles((0.5, 0.75), bounds, [1, 1, 2, 0]) == [2.0, 3.0]
    assert quantiles((0.05, 0.5, 0.99), bounds, [1, 0, 0, 9]) == [0.5, 4.0, 4.0]  # no more is known


@pytest.mark.parametrize(
    ("metric", "by", "most"),
    [
        ("gateway_requests_total", None, MOST_POINTS),
        ("gateway_requests_total", "model", MOST_POINTS_OF_MANY),
        ("gateway_request_duration_seconds", "model", MOST_QUANTILES_OF_MANY),
    ],
)
async def test_any_span_has_a_bounded_number_of_points_of_a_width_that_is_kept(
    db: Database, metric: str, by: Label | None, most: int
) -> None:
    for span_s in (1, 60, 3600, 6 * 3600, DAY_S, 7 * DAY_S, 30 * DAY_S, 31 * DAY_S, 366 * DAY_S, 50 * 366 * DAY_S):
        for step_s in (0, 15, 16, 3600, DAY_S, 10 * DAY_S):
            found = await read(db, metric, span_s=span_s, step_s=step_s, by=by)
            assert len(found.at) <= most
            assert found.step_s in STEPS_S
            assert found.step_s >= min(step_s, DAY_S)
            assert all(at % found.step_s == 0 for at in found.at)
            width = max(width.step_s for width in WIDTHS if width.step_s <= found.step_s)
            assert found.step_s <= (3 if found.step_s <= DAY_S else 7) * width
            assert next(w for w in WIDTHS if w.step_s == width).kept_s >= min(span_s, 399 * DAY_S)


async def test_a_time_long_ago_is_read_from_what_is_kept_of_it(db: Database) -> None:
    await add(db, [PLACE - 100 * DAY_S // STEP_S], requests(7200))
    found = await read(db, span_s=3600, until_s=NOW_S - 100 * DAY_S + 3600)
    assert found.step_s == 7200
    assert sum(rate * 15 for rate in found.lines[0].values["rate"] if rate) == 7200


async def test_the_step_that_runs_is_left_out(db: Database) -> None:
    await add(db, [PLACE - 1], requests(15))
    found = await read(db, span_s=30, until_s=NOW_S + 10, now_s=NOW_S + 10)
    assert found.at[-1] == NOW_S - 15


async def test_a_time_to_come_is_empty(db: Database) -> None:
    assert (await read(db, span_s=60, until_s=NOW_S + 3600)).at == []


async def test_each_width_is_forgotten_in_its_time(db: Database) -> None:
    await add(db, [PLACE], requests(1))
    for days, left in ((0, 6), (0.3, 5), (2, 4), (8, 3), (32, 2), (200, 1), (402, 0)):
        async with db.write() as conn:
            for width in WIDTHS:
                await samples.purge(conn, width, NOW_S + days * DAY_S)
            widths = select(func.count(metric_samples.c.step_s.distinct()))
            assert (await conn.execute(widths)).scalar_one() == left, days
