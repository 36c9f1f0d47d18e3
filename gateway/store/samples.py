"""Metrics over time. A row is what one series added up to in one step of time, over all processes and hosts: hosts add to the same rows.

Each reading is written at six widths at once, the wide ones kept longer, so that a plot of any span reads few rows; and, beside each
series with all its labels, once by each label alone and once without any (the `grain`), so that a sum over a thousand models is one series.
A gauge adds its value times the seconds: its mean is the sum over the seconds, as a rate is. Which seconds were read at all is a series of
its own (`COVERED`): a step with readings and no row is a zero, one without readings a gap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.metering.sampled import LABELS, MOST_BUCKETS, SAMPLED, Figures
from gateway.store.tables import metric_samples

STEP_S = 15
"""Between two readings, and the narrowest width."""
COVERED = "covered_s"
ALL = "all"
"""The grain of the series with all their labels, where they have more than one."""
BUCKETS = tuple(f"b{number:02}" for number in range(MOST_BUCKETS))
_DAY_S = 86_400
_KEY = ("step_s", "grain", "name", "at", *LABELS)


@dataclass(frozen=True, slots=True)
class Width:
    """Rows of so many seconds each, kept for so long."""

    step_s: int
    kept_s: int


WIDTHS = (
    Width(STEP_S, _DAY_S // 4),
    Width(60, _DAY_S),
    Width(300, 7 * _DAY_S),
    Width(1800, 31 * _DAY_S),
    Width(7200, 190 * _DAY_S),
    Width(_DAY_S, 400 * _DAY_S),
)


async def add(conn: AsyncConnection, places: Sequence[int], added: Figures) -> int:
    """What was added in these steps (Unix seconds divided by `STEP_S`), evenly over them; gauges as they were all the time.

    Returns how many rows were written. Rows are locked in one order: hosts that write at once wait for each other, and never in a circle.
    """
    insert = (sqlite if conn.dialect.name == "sqlite" else postgresql).insert(metric_samples)
    table, new = metric_samples.c, insert.excluded
    adding = insert.on_conflict_do_update(index_elements=_KEY, set_={name: table[name] + new[name] for name in ("value", *BUCKETS)})
    first = []
    for place in places:
        row = _row(STEP_S, "", COVERED, place * STEP_S, ("",) * len(LABELS), [STEP_S])
        if (await conn.execute(insert.values(row).on_conflict_do_nothing().returning(table.at))).first() is not None:
            first.append(place)  # no other host has read this step yet
    covered = [
        _row(width.step_s, "", COVERED, at, ("",) * len(LABELS), [count * STEP_S])
        for width in WIDTHS[1:]
        for at, count in sorted(_times(first, width.step_s).items())
    ]
    sums = sorted(_summed(added).items())
    rows = covered + [row for width in WIDTHS for row in _rows(width.step_s, places, sums)]
    if rows:
        await conn.execute(adding, rows)
    return len(rows) + len(first)


async def purge(conn: AsyncConnection, width: Width, now_s: float) -> int:
    """Forget what is older than this width need be; returns how many rows. By name, as the rows lie: nothing else is looked at."""
    table, gone = metric_samples.c, 0
    names = [("", COVERED), *((grain, one.name) for one in SAMPLED.values() for grain in _grains(one.labels))]
    for grain, name in names:
        chosen = (table.step_s == width.step_s, table.grain == grain, table.name == name)
        before_s = now_s - width.kept_s - width.step_s
        gone += (await conn.execute(delete(metric_samples).where(*chosen, table.at < before_s))).rowcount
    return gone


_Sums = dict[tuple[str, str, tuple[str, ...]], list[float]]


def _summed(added: Figures) -> _Sums:
    """By grain, name and labels."""
    sums: _Sums = {}
    for (name, labels), values in added.items():
        for grain in _grains(SAMPLED[name].labels):
            shown = tuple(value if grain in (ALL, label) else "" for label, value in zip(LABELS, labels, strict=True))
            have = sums.get((grain, name, shown))
            sums[grain, name, shown] = values if have is None else [a + b for a, b in zip(have, values, strict=True)]
    return sums


def _rows(
    step_s: int, places: Sequence[int], sums: Sequence[tuple[tuple[str, str, tuple[str, ...]], list[float]]]
) -> Iterable[dict[str, Any]]:
    for at, count in sorted(_times(places, step_s).items()):
        for (grain, name, shown), values in sums:
            share = count * STEP_S if SAMPLED[name].kind == "gauge" else count / len(places)
            yield _row(step_s, grain, name, at, shown, [value * share for value in values])


def _grains(labels: Sequence[str]) -> tuple[str, ...]:
    return ("", *labels, ALL) if len(labels) > 1 else ("", *labels)


def _times(places: Sequence[int], step_s: int) -> Counter[int]:
    """How many of the readings' steps lie in each step of this width, by its start."""
    return Counter(place * STEP_S // step_s * step_s for place in places)


def _row(step_s: int, grain: str, name: str, at: int, labels: Sequence[str], values: Sequence[float]) -> dict[str, Any]:
    buckets = dict(zip(BUCKETS, [*values[1:], *[None] * len(BUCKETS)], strict=False))
    key: tuple[Any, ...] = (step_s, grain, name, at, *labels)
    return dict(zip(_KEY, key, strict=True)) | {"value": values[0]} | buckets
