"""Metrics over time, from the samples that the database keeps: which there are, and plots of them."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Query
from fastapi.responses import Response
from pydantic import BaseModel, Field

from gateway.api.context import TheControl
from gateway.api.moments import before, duration_s, moment
from gateway.api.paging import NO_NUL
from gateway.errors import InvalidRequest
from gateway.metering.sampled import LABELS, SAMPLED, Kind, Label
from gateway.store import plots
from gateway.store.plots import MOST_POINTS, MOST_POINTS_OF_MANY, MOST_QUANTILES_OF_MANY, MOST_SERIES, Asked, Line

Metric = Annotated[
    str, Query(max_length=100, pattern=NO_NUL, description="One of `/admin/metrics/names`.", examples=["gateway_requests_total"])
]
Since = Annotated[str, Query(max_length=60, description="A duration back from now (6h) or an RFC 3339 time.", examples=["6h"])]
Until = Annotated[str, Query(max_length=60, description="As `since`; absent: now.")]
Step = Annotated[
    str,
    Query(
        max_length=20,
        description="How wide a step is at least (15s, 5m, 1h): the answer's is the next one there is that gives no more than "
        f"{MOST_POINTS} points ({MOST_POINTS_OF_MANY} with `by`, {MOST_QUANTILES_OF_MANY} of a histogram then) and is kept for so long. "
        "Absent: the narrowest.",
        examples=["5m"],
    ),
]
Only = Annotated[str, Query(max_length=200, pattern=NO_NUL)]
By = Annotated[
    Label | None,
    Query(description=f"A series for each value of this label: the {MOST_SERIES} largest, and the sum of the others. Absent: one of all."),
]


class MetricOut(BaseModel):
    """What is kept of one metric."""

    name: str = Field(examples=["gateway_requests_total"])
    kind: Kind = Field(description="What its series show. counter: `rate`; gauge: `mean`; histogram: `rate`, `p50`, `p95`, `p99`.")
    unit: str = Field(examples=["requests"], description="Of `mean` and of quantiles; of the `rate` of a counter: per second.")
    labels: list[Label] = Field(description="What it can be narrowed to and split by.", examples=[["model", "operation"]])
    description: str


class MetricList(BaseModel):
    """All there are."""

    object: Literal["list"] = "list"
    data: list[MetricOut]


class SeriesOut(BaseModel):
    """One line of a plot. Each list of `values` has a value for each time of `at`; null: nobody looked, or there was nothing to measure."""

    group: str | None = Field(description="The value of the label it was split by; null: all, or the others.", examples=["chat"])
    others: bool = Field(description="Of all that are too small to be shown on their own.")
    values: dict[str, list[float | None]] = Field(examples=[{"rate": [2.4, 2.6, None]}])


class MetricPlot(BaseModel):
    """A plot: the largest series first, the others last."""

    object: Literal["plot"] = "plot"
    metric: str
    kind: Kind
    unit: str
    by: Label | None
    step_s: int = Field(examples=[60])
    at: list[datetime] = Field(description="When each step begins.", examples=[["2026-11-20T13:00:00Z", "2026-11-20T13:01:00Z"]])
    series: list[SeriesOut]


async def metric_names() -> MetricList:
    """Which metrics the database keeps: the others are at `/metrics` alone."""
    shown = [MetricOut(name=m.name, kind=m.kind, unit=m.unit, labels=list(m.labels), description=m.help) for m in SAMPLED.values()]
    return MetricList(data=shown)


async def metric_series(
    control: TheControl,
    metric: Metric,
    model: Annotated[Only, Query(description="Only this model's.")] = "",
    backend: Annotated[Only, Query(description='Only this backend\'s; "none": where none was reached.')] = "",
    operation: Annotated[Only, Query(description="Only these.", examples=["chat"])] = "",
    status: Annotated[Only, Query(description="Only this class of status.", examples=["5xx"])] = "",
    since: Since = "6h",
    until: Until = "",
    step: Step = "",
    by: By = None,
) -> Any:
    """Rates, means and quantiles over time, of all hosts and processes together."""
    now_s = time.time()
    asked = _asked(metric, dict(zip(LABELS, (model, backend, operation, status), strict=True)), by, since, until, step, now_s)
    async with control.db.look() as conn:
        plot = await plots.plot(conn, asked, now_s)
    of = asked.metric
    shown: dict[str, Any] = {"object": "plot", "metric": of.name, "kind": of.kind, "unit": of.unit, "by": by, "step_s": plot.step_s}
    shown |= {"at": [moment(at) for at in plot.at], "series": [_series(line) for line in plot.lines]}
    # not through the model: thousands of points would hold up the loop, and with it what is relayed
    return Response(orjson.dumps(shown, option=orjson.OPT_UTC_Z), media_type="application/json")


def add_routes(app: FastAPI) -> None:
    """Register them."""
    tags: list[Any] = ["metrics"]
    app.add_api_route("/admin/metrics/names", metric_names, methods=["GET"], response_model=MetricList, tags=tags)
    app.add_api_route("/admin/metrics/series", metric_series, methods=["GET"], response_model=MetricPlot, tags=tags)


def _asked(name: str, given: dict[Label, str], by: Label | None, since: str, until: str, step: str, now_s: float) -> Asked:
    metric = SAMPLED.get(name)
    if metric is None:
        raise InvalidRequest("There is no such metric; /admin/metrics/names has those that are kept.", param="metric")
    only = {label: value for label, value in given.items() if value}
    for param, label in [*((label, label) for label in only), *([("by", by)] if by else [])]:
        if label not in metric.labels:
            has = ", ".join(metric.labels) or "none"
            raise InvalidRequest(f"{param}: this metric is not kept by {label}; its labels: {has}.", param=param)
    since_s, until_s = max(0.0, before(since, now_s, "since")), before(until, now_s, "until") if until else now_s
    if until_s <= since_s:
        raise InvalidRequest("'until' lies before 'since'.", param="until")
    return Asked(metric, since_s, until_s, duration_s(step, "step") if step else 0, only, by)


def _series(line: Line) -> dict[str, Any]:
    return {"group": line.group, "others": line.others, "values": line.values}
