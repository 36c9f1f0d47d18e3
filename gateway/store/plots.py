"""Plots from the samples of `store.samples`: rates of counters, means of gauges, rates and quantiles of histograms, step by step.

What a plot reads is bounded whatever it is of: at most three rows for each point of each series (seven where a point is a week), 1000
points of one series or 400 of ten (200 of a histogram) and of the sum of the others. Which ten: the largest over the span, found in rows so
wide that there are a few dozen for each.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ColumnElement, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.metering.sampled import LABELS, Label, Sampled
from gateway.store.samples import ALL, BUCKETS, COVERED, STEP_S, WIDTHS, Width
from gateway.store.tables import metric_samples

STEPS_S = (15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 86_400, 604_800)
MOST_POINTS = 1000
MOST_POINTS_OF_MANY = 400
MOST_QUANTILES_OF_MANY = 200
MOST_SERIES = 10
QUANTILES: Mapping[str, float] = {"p50": 0.5, "p95": 0.95, "p99": 0.99}  # rising
_RANKED_IN = 12  # steps that the span has at least where the largest series are looked for


@dataclass(frozen=True, slots=True)
class Asked:
    """Times in Unix seconds. `step_s`: at least so wide; 0: as narrow as may be. `by`: a series for each value of this label."""

    metric: Sampled
    since_s: float
    until_s: float
    step_s: int
    only: Mapping[Label, str]
    by: Label | None
    series: int = MOST_SERIES


@dataclass(frozen=True, slots=True)
class Line:
    """`group`: of the label that it was asked by; None: all, or all `others`. None in `values`: nobody read, or there was nothing to see.

    `values`: "rate" (per second) of counters, "mean" of gauges; of histograms "rate" and the quantiles in the metric's unit.
    """

    group: str | None
    others: bool
    values: Mapping[str, list[float | None]]


@dataclass(frozen=True, slots=True)
class Plot:
    """`at`: Unix seconds at which the steps begin. `lines`: the largest first, the others last."""

    step_s: int
    at: list[int]
    lines: list[Line]


@dataclass(frozen=True, slots=True)
class _Window:
    """[start, end) in whole steps, and the rows it is read from."""

    start: int
    end: int
    step_s: int
    width: Width

    def times(self) -> list[int]:
        return list(range(self.start, self.end, self.step_s))


async def plot(conn: AsyncConnection, asked: Asked, now_s: float) -> Plot:
    """What lies before the time that is kept is left out."""
    window = _window(asked, now_s)
    covered = await _covered(conn, window)
    if asked.by is None:
        whole = await _sums(conn, asked, window, None)
        return Plot(window.step_s, window.times(), [_line(asked.metric, window, covered, None, whole.get("", {}))])
    names = await _largest(conn, asked, window)
    shown = names[: asked.series]
    found = await _sums(conn, asked, window, shown) if shown else {}
    lines = []
    for name in shown:
        lines.append(_line(asked.metric, window, covered, name, found.get(name, {})))
        await asyncio.sleep(0)  # quantiles of ten series are 20 ms of work: not in one piece, requests are relayed in this loop
    if len(names) > len(shown):
        whole = await _sums(conn, asked, window, None)
        lines.append(_line(asked.metric, window, covered, None, _less(whole.get("", {}), found.values()), others=True))
    return Plot(window.step_s, window.times(), lines)


def _window(asked: Asked, now_s: float) -> _Window:
    until_s = min(asked.until_s, now_s // STEP_S * STEP_S)  # the step that runs has not been read yet
    since_s = min(max(asked.since_s, now_s - WIDTHS[-1].kept_s + WIDTHS[-1].step_s), until_s)  # the oldest step is half gone
    most = MOST_POINTS if asked.by is None else MOST_QUANTILES_OF_MANY if asked.metric.bounds else MOST_POINTS_OF_MANY
    for step_s in STEPS_S:
        width = next(width for width in reversed(WIDTHS) if width.step_s <= step_s)
        start, end = int(since_s // step_s) * step_s, math.ceil(until_s / step_s) * step_s
        if step_s >= asked.step_s and end - start <= most * step_s and since_s >= now_s - width.kept_s:
            break
    return _Window(start, end, step_s, width)


def _where(width: Width, grain: str, name: str, start: int, end: int) -> list[ColumnElement[bool]]:
    table = metric_samples.c
    return [table.step_s == width.step_s, table.grain == grain, table.name == name, table.at >= start, table.at < end]


def _grain(labels: Iterable[str]) -> str:
    named = sorted(set(labels))
    return ALL if len(named) > 1 else named[0] if named else ""


def _only(asked: Asked) -> list[ColumnElement[bool]]:
    return [metric_samples.c[label] == value for label, value in asked.only.items()]


async def _covered(conn: AsyncConnection, window: _Window) -> dict[int, float]:
    """Seconds that were read, by step."""
    place = _place(window)
    query: Any = select(place, func.sum(metric_samples.c.value)).where(*_where(window.width, "", COVERED, window.start, window.end))
    rows: Iterable[Any] = (await conn.execute(query.group_by(place))).all()
    return {row[0]: row[1] for row in rows}


async def _largest(conn: AsyncConnection, asked: Asked, window: _Window) -> list[str]:
    """The groups that there are, the largest first; one more than are shown, if there are more."""
    assert asked.by is not None
    span_s = window.end - window.start
    width = next((width for width in reversed(WIDTHS) if width.step_s * _RANKED_IN <= span_s and width.step_s >= window.width.step_s), None)
    width = width or window.width
    name, total = metric_samples.c[asked.by], func.sum(metric_samples.c.value)
    chosen = _where(width, _grain((asked.by, *asked.only)), asked.metric.name, window.start // width.step_s * width.step_s, window.end)
    query: Any = select(name).where(*chosen, *_only(asked)).group_by(name).order_by(total.desc(), name).limit(asked.series + 1)
    return list((await conn.execute(query)).scalars())


async def _sums(conn: AsyncConnection, asked: Asked, window: _Window, names: Sequence[str] | None) -> dict[str, dict[int, list[float]]]:
    """By group and step; `names` None: of all together, whose group is ""."""
    labels: set[str] = set(asked.only)
    chosen, group = _only(asked), cast("ColumnElement[Any]", literal_column("''"))
    if names is not None and asked.by is not None:
        labels.add(asked.by)
        group = metric_samples.c[asked.by]
        chosen.append(group.in_(names))
    grain, place, table = _grain(labels), _place(window), metric_samples.c
    if grain != ALL:  # so that the index by labels is used to its end
        chosen += [table[label] == "" for label in LABELS if label not in labels]
    columns = ("value", *BUCKETS[: len(asked.metric.bounds) + 1]) if asked.metric.bounds else ("value",)
    query: Any = select(group, place, *(func.sum(table[column]) for column in columns))
    query = query.where(*_where(window.width, grain, asked.metric.name, window.start, window.end), *chosen)
    grouped = [place] if names is None else [group, place]
    found: dict[str, dict[int, list[float]]] = {}
    for name, at, *values in (await conn.execute(query.group_by(*grouped))).all():
        found.setdefault(name, {})[at] = values
    return found


def _place(window: _Window) -> ColumnElement[int]:
    return metric_samples.c.at - metric_samples.c.at % literal_column(str(window.step_s))


def _less(whole: Mapping[int, list[float]], parts: Iterable[Mapping[int, list[float]]]) -> dict[int, list[float]]:
    left = {at: list(values) for at, values in whole.items()}
    for part in parts:
        for at, values in part.items():
            if at in left:
                left[at] = [max(0.0, have - value) for have, value in zip(left[at], values, strict=True)]
    return left


def _line(
    metric: Sampled, window: _Window, covered: Mapping[int, float], group: str | None, sums: Mapping[int, list[float]], others: bool = False
) -> Line:
    times = window.times()
    rates = [_rate(sums.get(at), covered.get(at)) for at in times]
    if metric.kind == "gauge":
        return Line(group, others, {"mean": rates})
    values = {"rate": rates}
    if metric.bounds:
        of_steps = [quantiles(QUANTILES.values(), metric.bounds, sums[at][1:] if at in sums and at in covered else ()) for at in times]
        values |= {name: [of_step[number] for of_step in of_steps] for number, name in enumerate(QUANTILES)}
    return Line(group, others, values)


def _rate(sums: Sequence[float] | None, seconds: float | None) -> float | None:
    if not seconds:
        return None
    return sums[0] / seconds if sums else 0.0


def quantiles(parts: Iterable[float], bounds: Sequence[float], counts: Sequence[float]) -> list[float | None]:
    """Rising parts of all. Within its bucket taken to lie evenly; beyond the last bound: that bound. None: no observations.

    `counts`: by bucket, one more than `bounds`.
    """
    wanted = list(parts)
    total = sum(counts)
    if total <= 0:
        return [None] * len(wanted)
    found: list[float | None] = []
    low = below = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count > 0:
            while len(found) < len(wanted) and below + count >= wanted[len(found)] * total:
                found.append(low + (bound - low) * (wanted[len(found)] * total - below) / count)
            if len(found) == len(wanted):
                return found
            below += count
        low = bound
    return found + [bounds[-1]] * (len(wanted) - len(found))
